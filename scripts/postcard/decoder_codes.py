"""What codes cost the decoder's frames: PSNR against the exact decoder, by the bits of the weights.

    python -m scripts.postcard.decoder_codes

The ranges are those of a build for `cpu`. Streams of `--streams` calibration prompts that did not go into them are
decoded both ways, in torch.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor, nn

from rtgen.build.calibration import make_ranges, make_streams
from rtgen.build.chosen_prompts import DECODER_PROMPTS
from rtgen.build.plan import BuildPlan, plan_build
from rtgen.build.request import BuildRequest
from rtgen.config.locate import calibration_files
from rtgen.export import coded_convolution
from rtgen.export.coded_decoder import CodedDecoderStep, past_codes
from rtgen.export.decoder import DecoderStep, past_frames
from rtgen.export.ranges import DecoderRanges
from rtgen.export.streaming import PastFrames
from rtgen.models.autoencoder import StreamingDecoder
from rtgen.models.registry import load
from rtgen.progress import SilentProgress
from rtgen.quantize.calibration_set import CalibrationSet
from rtgen.quantize.prompts import read_prompts

BITS = (8, 7, 6)


def recorded(plan: BuildPlan, folder: Path) -> CalibrationSet:
    """Streams of the plan's prompts, also in ``folder``."""
    folder.mkdir()
    make_streams(plan, folder, SilentProgress())
    return CalibrationSet.read(folder)


@torch.no_grad()
def decoded(step: nn.Module, latents: Tensor, past: list[PastFrames]) -> Tensor:
    """Frames [F, H, W, 3] float32 of latents [chunks, C, F, h, w]."""
    rows, columns = latents.shape[-2:]
    states = [
        torch.zeros(
            state.arranged(rows * state.scale, columns * state.scale),
            dtype=torch.uint8 if state.coded else torch.float32,
        )
        for state in past
    ]
    frames = []
    for chunk in latents:
        made, *states = step(chunk[None], states)
        frames.append(made)
    return torch.cat(frames).float()


def psnr_db(frames: Tensor, exact: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (frames - exact).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description="What codes cost the decoder's frames.")
    parser.add_argument("--streams", type=int, default=2, help="streams to decode")
    streams = parser.parse_args().streams
    plan = plan_build(BuildRequest("cpu", "postcard", "int8-cpu"))
    prompts = read_prompts(calibration_files()[plan.model.calibration.prompts])
    others = replace(plan, calibration_prompts=prompts[DECODER_PROMPTS : DECODER_PROMPTS + streams])
    with TemporaryDirectory() as name:
        folder = Path(name)
        recorded(plan, folder / "given")
        make_ranges(plan, folder / "given", folder, SilentProgress())
        ranges, held_out = DecoderRanges.read(folder), recorded(others, folder / "others")
    model = load("decoder", plan.model, plan.weights, "float32")[0]
    assert isinstance(model, StreamingDecoder)
    past = past_frames(plan.model, model)
    exact = [decoded(DecoderStep(model), stream.clean, past) for stream in held_out.streams]
    for bits in BITS:
        with patch.object(coded_convolution, "WEIGHT_HIGHEST", 2 ** (bits - 1) - 1):
            step = CodedDecoderStep(model, ranges)
        found = [
            psnr_db(decoded(step, stream.clean, past_codes(past)), frames)
            for stream, frames in zip(held_out.streams, exact, strict=True)
        ]
        print(f"weights of {bits} bits: {', '.join(f'{value:.1f} dB' for value in found)}")


if __name__ == "__main__":
    main()

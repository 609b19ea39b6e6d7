"""Build a published model at full size from random weights, and say what each stage costs in time and memory.

    python -m scripts.full_size --gpu rtx4080-laptop --recipe fp16 --work /some/folder

The weights are random numbers in the published files' layout (Self-Forcing's ``.pt``, Wan's ``.pth``), since the real
ones cannot be shipped. Times and sizes are those of real weights; what such a model draws is noise.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from rtgen.bench.random_model import random_state
from rtgen.build.plan import with_decoder
from rtgen.build.request import BuildRequest
from rtgen.build.walk import BuildOutcome, build
from rtgen.config.load import load_model
from rtgen.config.model import ModelConfig
from rtgen.models.registry import create
from scripts.postcard.tokens import save_tokenizer


def write_published(config: ModelConfig, folder: Path) -> None:
    """Random weights as Self-Forcing and Wan publish theirs. Files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        modules = {component: create(component, config) for component in ("text_encoder", "denoiser", "decoder")}
    text, denoiser = folder / "models_t5_umt5-xxl-enc-bf16.pth", folder / "self_forcing_dmd.pt"
    decoder = folder / ("Wan2.1_VAE.pth" if config.decoder == "vae" else "taew2_1.pth")
    if not text.exists():
        torch.save(random_state(modules["text_encoder"], torch.bfloat16), text)
    if not denoiser.exists():
        state = random_state(modules["denoiser"], torch.float32)
        torch.save({"generator_ema": {f"model.{name}": value for name, value in state.items()}}, denoiser)
    if not decoder.exists():
        torch.save(random_state(modules["decoder"], torch.float32), decoder)
    save_tokenizer(folder / "tokenizer.json")


class Watch:
    """A progress that notes, for each stage, the seconds and the greatest memory of this process and its children."""

    def __init__(self) -> None:
        self.stage, self.peaks, self.began, self.ended = (
            "start",
            dict[str, int](),
            dict[str, float](),
            dict[str, float](),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def update(self, stage: str, fraction: float | None, detail: str = "") -> None:
        now = time.monotonic()
        if stage != self.stage:
            print(f"{stage} …", flush=True)
        self.stage = stage
        self.began.setdefault(stage, now)
        self.ended[stage] = now

    def note(self, message: str) -> None:
        print(message, flush=True)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), total)


def report(outcome: BuildOutcome, watch: Watch) -> dict[str, Any]:
    """Seconds, peak bytes and engine sizes."""
    return {
        "seconds": round(outcome.seconds, 1),
        "cached": outcome.cached,
        "peak_bytes": max(watch.peaks.values(), default=0),
        "stages": {
            stage: {
                "seconds": round(watch.ended[stage] - watch.began[stage], 1),
                "peak_bytes": watch.peaks.get(stage, 0),
            }
            for stage in watch.began
        },
        "files": {name: entry.size for name, entry in outcome.manifest.files.items()},
        "memory_plan": {**outcome.manifest.memory_plan.model_dump(), "total": outcome.manifest.memory_plan.total},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wan2.1-1.3b-self-forcing")
    parser.add_argument("--gpu", default="rtx4080-laptop")
    parser.add_argument("--recipe")
    parser.add_argument("--decoder", help="another than the model's own, such as vae")
    parser.add_argument("--size", action="append", default=[], metavar="HxW")
    parser.add_argument("--work", type=Path, required=True, help="folder for the random weights and the store")
    parser.add_argument("--json", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    config = with_decoder(load_model(arguments.model), arguments.decoder)
    write_published(config, arguments.work / "weights")
    sizes = tuple((int(height), int(width)) for height, width in (size.split("x") for size in arguments.size))
    watch = Watch()
    request = BuildRequest(
        arguments.gpu,
        arguments.model,
        arguments.recipe,
        sizes,
        arguments.work / "weights",
        arguments.work / "store",
        decoder=arguments.decoder,
    )
    try:
        outcome = build(request, watch)
    finally:
        watch.stop()
    result = report(outcome, watch)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What calibrating a model costs in time and memory, measured on random weights of full width.

    python -m scripts.calibration_cost --recipe int4 --blocks 3 --size 128x128 --work /some/folder

Blocks are worked on one at a time, so that a few of them tell what all take. The text encoder is cut to one small
block: prompts are encoded once, and what they take is no part of this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from rtgen.bench.random_model import random_state
from rtgen.build.calibration import CODES, STREAMS, make_codes, make_streams
from rtgen.build.chosen_prompts import calibration_prompts
from rtgen.build.plan import BuildPlan
from rtgen.cli.options import parse_size
from rtgen.config.load import can_run, list_gpus, load_gpu, load_model, load_recipe
from rtgen.config.model import CalibrationConfig, ModelConfig, Size, WeightsConfig
from rtgen.models.registry import COMPONENTS, create
from rtgen.store.store import Store
from scripts.full_size import Watch
from scripts.postcard.tokens import save_tokenizer

SMALL_TEXT_ENCODER = {"vocabulary": 512, "heads": 4, "head_dim": 32, "ffn_dim": 256, "layers": 1}


def cut(config: ModelConfig, blocks: int, size: Size) -> ModelConfig:
    """The model with a few blocks of its denoiser, for streams of one frame size."""
    return config.model_copy(
        update={
            "denoiser": config.denoiser.model_copy(update={"layers": blocks}),
            "text_encoder": config.text_encoder.model_copy(update=SMALL_TEXT_ENCODER),
            "calibration": CalibrationConfig(chunks=config.calibration.chunks, size=size),
            "weights": WeightsConfig(
                directory="",
                text_encoder=("text_encoder.0.safetensors",),
                denoiser=("denoiser.0.safetensors",),
                decoder=("decoder.0.safetensors",),
                licence="none",
            ),
        }
    )


def write_weights(config: ModelConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for component in COMPONENTS:
        with torch.device("meta"):
            module = create(component, config)
        save_file(random_state(module, torch.float16), folder / f"{component}.0.safetensors")
    save_tokenizer(folder / "tokenizer.json")


def made_up_plan(arguments: argparse.Namespace) -> BuildPlan:
    """The plan of a build of the cut model, with random weights in its folder."""
    config = cut(load_model(arguments.model), arguments.blocks, arguments.size)
    weights = arguments.work / "weights"
    write_weights(config, weights)
    recipe = load_recipe(arguments.recipe)
    gpu = next(gpu for gpu in map(load_gpu, list_gpus()) if can_run(gpu, recipe))
    prompts = calibration_prompts(None, config, recipe)[: arguments.prompts]
    store = Store(arguments.work / "store")
    return BuildPlan(store, gpu, config, recipe, config.resolution.profiles, weights, "", None, prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wan2.1-1.3b-self-forcing")
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--size", type=parse_size, default=(128, 128), metavar="HxW")
    parser.add_argument("--work", type=Path, required=True, help="folder for the random weights and the stages")
    plan = made_up_plan(arguments := parser.parse_args())
    watch = Watch()
    try:
        streams = plan.store.stage(STREAMS, plan.calibration_key, lambda folder: make_streams(plan, folder, watch))
        plan.store.stage(CODES, plan.codes_key, lambda folder: make_codes(plan, streams, folder, watch))
    finally:
        watch.stop()
    stages = {
        name: {"seconds": round(watch.ended[name] - watch.began[name], 1), "peak_bytes": watch.peaks.get(name, 0)}
        for name in watch.began
    }
    print(json.dumps({"blocks": arguments.blocks, "size": arguments.size, "stages": stages}, indent=1))


if __name__ == "__main__":
    main()

"""Reports made by hand."""

import numpy as np

from rtgen.fidelity.findings import Build, Clip, FidelityReport, Measured, Recipe, Reference, Stage, Verdict
from rtgen.quantize.result import LayerResult


def clip(seed, frames=9, size=(32, 48)):
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)


def layer(number, snr, weights="int8", **changes):
    return LayerResult(name=f"blocks.{number}.self_attn.q.weight", weights=weights, snr_db=snr, elements=64, **changes)


def measured(seconds, psnr):
    return Measured(
        seconds=seconds, clips=2, psnr_db=psnr, clip_psnr_db=(psnr, psnr), frame_psnr_db=(None, 41.0, psnr), ssim=0.9,
        lpips=None, attributes=None, attribute_accuracy=None, attribute_points=None, attribute_margin=None,
        colour_shift=1.0, detail_ratio=0.9,
    )  # fmt: skip


def build():
    stages = (Stage(name="codes", seconds=30, cached=False), Stage(name="engines", seconds=11.5, cached=False))
    return Build(package_bytes=40_000_000, denoiser_bytes=9_000_000, seconds=42, cached=False, stages=stages)


def recipe(name, psnr, verdicts=(), **changes):
    layers = (layer(0, 31.0), layer(0, 14.0, "float", reason="sensitive"), layer(1, None, "float", reason="excluded"))
    fields = {
        "name": name, "title": f"{name} & <more>", "way": "simulated", "weight_bits": 8.01, "kept_share": 0.05,
        "build": build(), "velocity_snr_db": 22.0, "graph_snr_db": 61.0, "layers": layers,
        "measured": (measured(5.0, psnr), measured(30.0, psnr)), "verdicts": tuple(verdicts),
    }  # fmt: skip
    return Recipe(**(fields | changes))


def report(*recipes):
    return FidelityReport(
        rtgen="0.1.0", model="tiny", title="A model", model_digest="0", gpu="rtx5090", precision="float16",
        made="2026-11-21T12:00:00+00:00", machine="Linux x86_64, 2 CPU cores", versions={"torch": "2.13"},
        size=(32, 48), frames_per_second=16, seconds=60, clips=(Clip(prompt="a <red> kite", seed=0),),
        references=tuple(Reference(seconds=s, attributes=None, attribute_accuracy=None) for s in (5.0, 30.0)),
        reference_build=build(), floor=(measured(5.0, 70.0),), recipes=recipes,
        attributes_note="classifier.onnx is not there", lpips_note="weights of the network not present",
    )  # fmt: skip


def verdict(kind, reached, why=""):
    seconds = 30.0 if kind == "drift" else 5.0
    return Verdict(name=kind, kind=kind, seconds=seconds, measured="1", wanted="2", reached=reached, why=why)

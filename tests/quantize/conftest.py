"""Recorded streams of the tiny model."""

from types import SimpleNamespace

import pytest

PROMPTS = ("a red kite drifts right over the sea", "a kite")


@pytest.fixture(scope="session")
def recorded(tiny_models, tmp_path_factory):
    """The tiny model, its streams as they were recorded, and everything needed to make them again.

    Five chunks: the ring of three (a sink and two that take turns) has turned over.
    """
    pytest.importorskip("torch")
    from rtgen.config.model import CalibrationConfig
    from rtgen.models.registry import load
    from rtgen.quantize.contexts import encode_prompts
    from rtgen.quantize.device import Device
    from rtgen.quantize.layered import LayeredDenoiser
    from rtgen.quantize.recorder import record_streams

    tiny = tiny_models["tiny"]
    config = tiny.config.model_copy(update={"calibration": CalibrationConfig(chunks=(0, 1, 4))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTGEN_CONFIGS", str(tiny.configs))
        from rtgen.build.engines import model_entry
        from rtgen.build.plan import plan_build

        entry = model_entry(plan_build(tiny.request()))
    device = Device("cpu")
    contexts = encode_prompts(config, tiny.weights, PROMPTS, device, warn=lambda text: None)
    layered = LayeredDenoiser(load("denoiser", config, tiny.weights, "float16")[0], device, resident=False)
    streams = record_streams(config, entry, layered, contexts, device, advance=lambda fraction, detail: None)
    return SimpleNamespace(
        tiny=tiny, config=config, entry=entry, device=device, contexts=contexts, layered=layered, set=streams
    )

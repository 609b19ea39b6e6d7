"""The child process of ``rtgen doctor``: loads one native library and answers with one line of JSON.

``python -m rtgen.cli.doctor_probes NAME``. A crash in here costs the report one row.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

KERNEL = """
extern "C" __global__ void scale(float* values, float factor) { values[threadIdx.x] *= factor; }
"""
ARCHITECTURE = "sm_89"
ENCODERS = {
    "libx264": "yuv420p",
    "h264_nvenc": "yuv420p",
    "libvpx-vp9": "yuv420p",
    "libwebp_anim": "yuv420p",
    "gif": "rgb8",
    "png": "rgb24",
}
"""FFmpeg encoders and a pixel format that each takes."""


def nvml() -> dict[str, Any]:
    """Driver version and the GPUs that CUDA may use here."""
    import pynvml

    from rtgen.runtime.select import detect_gpus

    pynvml.nvmlInit()  # says why it fails, which detect_gpus does not
    driver = pynvml.nvmlSystemGetDriverVersion()
    return {"driver": str(driver), "devices": [dataclasses.asdict(gpu) for gpu in detect_gpus()]}


def tensorrt_rtx() -> dict[str, Any]:
    """The version that TensorRT for RTX itself reports once loaded."""
    from rtgen.engine.trt import load

    return {"version": str(load("tensorrt_rtx").__version__)}


def tensorrt() -> dict[str, Any]:
    """The version that TensorRT itself reports once loaded."""
    from rtgen.engine.trt import load

    return {"version": str(load("tensorrt").__version__)}


def nvrtc() -> dict[str, Any]:
    """Compiles a kernel to a cubin, for a GPU that need not be here."""
    from cuda.core import Program, ProgramOptions

    Program(KERNEL, "c++", ProgramOptions(arch=ARCHITECTURE)).compile("cubin")
    return {"version": version("nvidia-cuda-nvrtc"), "architecture": ARCHITECTURE}


def onnxruntime() -> dict[str, Any]:
    """Version and execution providers of ONNX Runtime."""
    import onnxruntime as runtime

    return {"version": runtime.__version__, "providers": runtime.get_available_providers()}


def codecs() -> dict[str, Any]:
    """Which encoders encode a frame here; a listed one may still lack its hardware or driver."""
    return {"usable": {name: _encodes(name, pixel_format) for name, pixel_format in ENCODERS.items()}}


def _encodes(name: str, pixel_format: str) -> bool:
    from fractions import Fraction

    import av

    try:
        encoder = av.CodecContext.create(name, "w")
        encoder.width, encoder.height, encoder.pix_fmt = 256, 256, pixel_format
        encoder.time_base = Fraction(1, 24)
        encoder.encode(av.VideoFrame(256, 256, pixel_format))
        encoder.encode(None)
    except (av.error.FFmpegError, ValueError, OSError):
        return False
    return True


PROBES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "nvml": nvml,
    "tensorrt_rtx": tensorrt_rtx,
    "tensorrt": tensorrt,
    "nvrtc": nvrtc,
    "onnxruntime": onnxruntime,
    "codecs": codecs,
}


def answer(name: str) -> int:
    """Run a probe; its result goes to stdout as JSON, its failure to stderr as one line. Returns the exit code."""
    try:
        result = PROBES[name]()
    except Exception as error:
        sys.stderr.write(" ".join(str(error).split()) or type(error).__name__)
        return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1]))

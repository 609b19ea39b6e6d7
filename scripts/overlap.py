"""What denoising ahead gains: streams of one package with and without overlap, in turns, in one run.

    python -m scripts.overlap engines/postcard/cpu/KEY --threads 1 2

For each number of threads and each round: seconds a chunk in turn and overlapped, and the gain, which is the first over
the second. Then the median of the gains. Times of a busy machine differ from round to round; the two of a round follow
each other closely. For packages of ONNX Runtime.
"""

import argparse
import statistics
import time
from pathlib import Path

from rtgen.engine.package import open_package
from rtgen.runtime.backends.onnxruntime import OnnxRuntimeBackend
from rtgen.runtime.pipeline import Pipeline


def seconds_a_chunk(pipeline: Pipeline, chunks: int) -> float:
    """Of a stream's later chunks, on average."""
    stream = pipeline.stream(pipeline.manifest.model.example_prompts[0])
    next(stream)
    start = time.perf_counter()
    for _ in range(chunks):
        next(stream)
    seconds = time.perf_counter() - start
    stream.close()
    return seconds / chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", required=True, help="of each component")
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    package = open_package(arguments.package)
    for threads in arguments.threads:
        pair = [
            Pipeline(package, OnnxRuntimeBackend(package, threads=threads), overlap=overlap)
            for overlap in (False, True)
        ]
        gains = []
        for _ in range(arguments.rounds):
            in_turn, overlapped = (seconds_a_chunk(pipeline, arguments.chunks) for pipeline in pair)
            gains.append(in_turn / overlapped)
            print(f"{threads} threads: {in_turn:.3f} s in turn, {overlapped:.3f} s overlapped, gain {gains[-1]:.2f}")
        print(f"{threads} threads: median gain {statistics.median(gains):.2f}", flush=True)
        for pipeline in pair:
            pipeline.close()


if __name__ == "__main__":
    main()

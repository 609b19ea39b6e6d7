"""The worker process with one more plugin, for tests: ``python -m tests.engine.plugin_worker``.

``rtgen::Accumulate`` (x, total) => (y, total_out): y is as x, and the total is updated in place. It asks for scratch
memory and has no kernel to launch: what is built here is not run.
"""

import os
import sys

from rtgen.engine import worker
from rtgen.plugins.base import Output, Plugin
from rtgen.plugins.registry import PLUGINS

BYTES_A_TOKEN = 1 << 16


class Kernel:
    def sources(self, attributes, compute_capability):
        return ()

    def workspace(self, inputs, attributes, compute_capability):
        return BYTES_A_TOKEN * inputs[0][0] * attributes["parts"]

    def launch(self, *arguments):
        raise NotImplementedError


ACCUMULATE = Plugin(
    "Accumulate",
    ("x", "total"),
    ("y", "total_out"),
    body="""<domain: "rtgen", opset_import: ["" : 24]>
    Accumulate <parts: int = 1> (x, total) => (y, total_out) {
        sum = ReduceSum <keepdims = 1> (x)
        y = Add (x, sum)
        total_out = Add (total, sum)
    }""",
    attributes={"parts": 1},
    kernel=Kernel(),
    results=(Output(0, ((0, 0), (0, 1))), Output(1, ((1, 0), (1, 1)), alias=1)),
    input_types=("float16", "float16"),
)

if __name__ == "__main__":
    PLUGINS[ACCUMULATE.name] = ACCUMULATE
    os._exit(worker.run(sys.stdin.buffer))

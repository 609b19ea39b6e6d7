"""Which matrix products an engine has, and what they multiply, from the text of its compiled program.

TensorRT for RTX keeps the program of a network as text inside the engine; kernels are made of it on the GPU. The text
is not documented, so a version that writes it in another way fails the tests that use this, and nothing else.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_TENSOR = re.compile(r'tensor=\{.*? name="([^"]*)".* type=(\w+)')
_PRODUCT = re.compile(r'fully_connected=\{ name="([^"]*)" output=\{[^}]*\} input=\{([^}]*)\}')


@dataclass(frozen=True)
class Product:
    """A product of the program."""

    nodes: tuple[str, ...]
    """Names of the ONNX nodes; several where the compiler made one product of them."""
    factors: tuple[str | None, str | None]
    """Element types of activations and weights; None for activations that come out of the same kernel."""
    reads: frozenset[str]
    """Element types of all that the kernel it is in reads and writes."""


def products(engine: Path) -> list[Product]:
    text = re.sub(rb"[^\x0a\x20-\x7e]+", b"\n", engine.read_bytes()).decode("ascii")
    found = []
    for region in text.split("header {"):
        types = dict(_TENSOR.findall(region))
        for names, inputs in _PRODUCT.findall(region):
            factors = [types.get(name) for name in re.findall(r'"([^"]*)"', inputs)[:2]]
            found.append(Product(tuple(names.split("+")), (factors[0], factors[1]), frozenset(types.values())))
    return found

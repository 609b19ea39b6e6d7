"""What a kernel's machine code (SASS) consists of, each instruction counted once, whatever loop it is in.

``nvdisasm`` reads it: of a CUDA toolkit, or of the package nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from rtgen.errors import BuildError
from rtgen.plugins.base import KernelSource
from rtgen.plugins.compiler import compile_kernel

Kind = Literal["tensor", "float", "integer", "shared", "global", "local", "other"]
Mix = Mapping[Kind, int]

INSTALL: Final = "pip install nvidia-cuda-nvdisasm"

_KINDS: Final[tuple[tuple[Kind, str], ...]] = (
    ("tensor", r"[A-Z]+MMA\b"),
    ("shared", r"LDS|STS|LDSM|STSM|ATOMS|MOVM"),
    ("local", r"LDL|STL"),
    ("global", r"LDG|STG|ATOM|RED\b|UTMA|UBLK|LD\b|ST\b"),
    ("float", r"[FH](ADD|MUL|FMA|MNMX|SEL|SET|CHK)|MUFU|I2F|F2[FIP]"),
    ("integer", r"U?(IADD|VIADD|IMAD|V?IMNMX|IABS|ISETP|LOP|PLOP|SHF|LEA|PRMT|SEL|POPC|FLO|BREV|SGXT|BMSK|MOV)"),
)
"""By the beginning of an opcode; the first that fits. LDGSTS, which copies to shared memory, counts as global."""
_PATTERNS: Final = tuple((kind, re.compile(pattern)) for kind, pattern in _KINDS)
_ENTRY: Final = re.compile(r"^\.text\.(\w+):", re.M)
_OPCODE: Final = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9]*)")
_SECONDS: Final = 120.0


def find_disassembler() -> Path | None:
    """Where nvdisasm is, if it is installed."""
    if found := shutil.which("nvdisasm"):
        return Path(found)
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(root).glob("cu*/bin/nvdisasm*"):
            return path
    return None


@cache
def instruction_mix(source: KernelSource, compute_capability: str) -> Mapping[str, Mix]:
    """Counts by the kernel's name; empty without nvdisasm. Raises as :func:`compile_kernel` does, BuildError."""
    program = find_disassembler()
    return {} if program is None else count(_disassemble(program, compile_kernel(source, compute_capability).code))


def count(text: str) -> dict[str, Mix]:
    """Of what nvdisasm prints."""
    parts = _ENTRY.split(text)[1:]
    found: dict[str, Mix] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        counts: dict[Kind, int] = dict.fromkeys((*(kind for kind, _ in _KINDS), "other"), 0)
        for opcode in _OPCODE.findall(body):
            if opcode != "NOP":  # padding
                counts[_kind(opcode)] += 1
        found[name] = counts
    return found


def _kind(opcode: str) -> Kind:
    return next((kind for kind, pattern in _PATTERNS if pattern.match(opcode)), "other")


def _disassemble(program: Path, code: bytes) -> str:
    with TemporaryDirectory(prefix="rtgen-") as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(code)
        done = subprocess.run([str(program), "-c", str(file)], capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise BuildError(f"nvdisasm refuses a kernel: {done.stderr.strip()}", hint=f"{INSTALL} --upgrade")
    return done.stdout

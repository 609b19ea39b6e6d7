"""docs/plugins/adding.md, followed: a copy of rtgen gets the plugin, whose tests pass and which an engine takes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rtgen.engine import trt

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
pytest.importorskip("cuda.core")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "plugins" / "adding.md"
FILE = re.compile(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", re.M | re.S)
"""A line with the file's name, and its content."""
UNNAMED = re.compile(r"[^:]\n\n```python\n(.*?)^```$|[^`]:\n\n```python\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """rtgen's sources with what the page writes."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("rtgen", "plugins"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    text = PAGE.read_text(encoding="utf-8")
    files = dict(FILE.findall(text))
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    registration, script = (first or second for first, second in UNNAMED.findall(text))
    with (root / "rtgen" / "plugins" / "registry.py").open("a", encoding="utf-8") as registry:
        registry.write(registration)
    (root / "engine.py").write_text(script, encoding="utf-8")
    listed = re.findall(r"^\| `([\w/.]+)` \|", text, re.M)
    assert [*files] == listed and len(listed) == 4
    return root


def run(tree, *arguments):
    """Python in the copy; what it printed."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_plugins_own_tests_pass(tree):
    printed = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/plugins/test_rms_norm.py")
    assert re.search(r"\b12 passed", printed)


@pytest.mark.skipif(trt.installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_has_the_plugin(tree):
    assert run(tree, "engine.py").strip() == "{'RMSNorm': 1}"
    assert "It prints `{'RMSNorm': 1}`." in PAGE.read_text(encoding="utf-8")

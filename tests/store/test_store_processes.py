"""Many processes, and processes that are killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import rtgen
from rtgen.store.keys import fields_digest
from rtgen.store.stage import stage_problem
from rtgen.store.store import Store

SCRIPT = Path(__file__).with_name("builder_process.py")
KEY = fields_digest({"test": "processes"})


def start(root: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPT), str(root), KEY, str(seconds)]
    # The same rtgen as here, also where it is not installed.
    environment = {**os.environ, "PYTHONPATH": str(Path(rtgen.__file__).parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_eight_processes_at_once_build_once_and_agree(tmp_path: Path) -> None:
    processes = [start(tmp_path, 1.5) for _ in range(8)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len((tmp_path / "builds.log").read_text().split()) == 1
    assert sum("building" in output for output in outputs) == 1
    assert {output[-1] for output in outputs} == {str(tmp_path / ".stages" / "onnx" / KEY)}
    assert stage_problem(tmp_path / ".stages" / "onnx" / KEY, hashes=True) is None


def test_a_killed_builder_never_leaves_a_partial_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    moments = random.Random(7)
    entry = tmp_path / ".stages" / "onnx" / KEY
    for _ in range(6):
        process = start(tmp_path, 0.04)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "building"
        time.sleep(moments.uniform(0.0, 0.08))
        process.kill()
        process.communicate(timeout=30)
        assert not entry.exists() or stage_problem(entry, hashes=True) is None
        if entry.exists():
            store.remove(store.stages()[0])

    def make(folder: Path) -> None:
        (folder / "whole.bin").write_bytes(b"whole")

    assert store.stage("onnx", KEY, make) == entry
    assert (entry / "whole.bin").read_bytes() == b"whole"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_prune_removes_what_a_killed_builder_left_and_spares_a_living_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    process = start(tmp_path, 30.0)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "building"
        assert store.prune().removed == ()
        assert len(list((tmp_path / ".tmp").iterdir())) == 1
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert len(store.prune(dry_run=True).removed) == 1
    assert len(list((tmp_path / ".tmp").iterdir())) == 1
    assert [removal.reason for removal in store.prune().removed] == ["left by a process that was killed"]
    assert list((tmp_path / ".tmp").iterdir()) == []

"""``rtgen bench kernels``: what is measured where, what is written, and what it says without a GPU."""

import json
import sys
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest

from rtgen.bench import kernels
from rtgen.bench.chart import ratios
from rtgen.bench.result import Measurement
from rtgen.cli.main import run

FAST = Measurement("W4A4Linear: 1536 to 8960", 0.5, "ms", 1.0, 2.0, "baseline: cuBLAS <INT8>")
SLOW = Measurement("W4A4Linear: 8960 to 1536", 4.0, "ms", 1.0, 0.25)


@pytest.fixture
def command(capsys):
    def call(*arguments):
        code = run(["bench", "kernels", *map(str, arguments)])
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    return call


@pytest.fixture
def measured(monkeypatch):
    """A GPU and measurers that are not there; how often each was asked for."""
    asked = []
    for name, bench in kernels.BENCHES.items():
        module = ModuleType(bench.module)
        module.measure = lambda repeats, name=name: asked.append((name, repeats)) or [FAST, SLOW]
        monkeypatch.setitem(sys.modules, bench.module, module)
    monkeypatch.setattr(kernels, "require_gpu", lambda: None)
    return asked


def test_without_a_gpu_it_says_what_works_and_exits_with_3(command):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ran = command("--json")
    body = json.loads(ran.out)
    assert ran.code == 3 and body["error"]["code"] == "no_gpu" and "--computed" in body["error"]["hint"]


def test_without_torch_it_says_how_to_get_it(command, monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    ran = command()
    assert ran.code == 3 and "torch" in ran.err and "pip install" in ran.err


def test_only_what_is_named_is_measured(command, measured):
    ran = command("--only", "w4a4_linear", "--repeats", 7, "--json")
    data = json.loads(ran.out)["data"]
    assert measured == [("w4a4_linear", 7)] and data["machine"]["host"]
    assert data["results"][0] == {
        "name": FAST.name, "value": 0.5, "unit": "ms", "baseline": 1.0, "ratio": 2.0, "note": FAST.note,
    }  # fmt: skip
    assert command().code == 0 and [name for name, _ in measured[1:]] == list(kernels.BENCHES)


def test_an_unknown_name_is_a_usage_error_that_lists_the_known(command):
    ran = command("--only", "w4a4")
    assert ran.code == 2 and "w4a4_linear" in ran.err


def test_a_report_says_where_its_figures_come_from(command, measured, tmp_path):
    file = tmp_path / "made" / "kernels.json"
    ran = command("--only", "w4a4_linear", "--report", file)
    report = json.loads(file.read_text(encoding="utf-8"))
    assert ran.code == 0 and str(file) in ran.err
    assert len(report["plugin_sources"]) == 64 and report["rtgen"] and report["date"] and report["machine"]["host"]
    assert [result["ratio"] for result in report["results"]] == [2.0, 0.25]
    chart = ElementTree.fromstring(file.with_suffix(".svg").read_text(encoding="utf-8"))
    bars = [element for element in chart.iter() if element.get("class") in ("bar", "slow")]
    assert [bar.get("class") for bar in bars] == ["bar", "slow"]
    assert float(bars[0].get("width")) == pytest.approx(8 * float(bars[1].get("width")), rel=0.01)


def test_there_is_nothing_to_draw_without_baselines():
    assert ratios([Measurement("x", 1.0, "ms", None, None)], "title") is None


def test_a_report_has_the_ending_of_json(command, measured, tmp_path):
    ran = command("--report", tmp_path / "kernels.txt")
    assert ran.code == 2 and not measured and not list(tmp_path.iterdir())

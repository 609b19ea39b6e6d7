"""``rtgen quantize --report``: what it says in every mode, and what it refuses."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("av")

from rtgen.fidelity import report as reports
from rtgen.fidelity.pictures import Pictures, side_by_side, strip
from rtgen.fidelity.studio import FinishedReport
from tests.fidelity.handmade_report import clip, recipe, report, verdict


@pytest.fixture
def requests(monkeypatch):
    """Instead of any work, a report made by hand; the list has what was asked for."""
    asked = []

    def make(request, progress):
        asked.append(request)
        beside = side_by_side(clip(0), clip(1), 16, "a clip")
        found = report(recipe("int8", 27.5, [verdict("psnr", False, "Weakest layers: many.")]), recipe("fp8", None))
        pictures = Pictures((beside,), strip(clip(0), clip(1), 16, "stills"))
        return FinishedReport(found, {"int8": pictures, "fp8": pictures})

    monkeypatch.setattr(reports, "make_report", make)
    return asked


def test_the_report_is_written_and_summed_up(rtgen, requests, tmp_path):
    ran = rtgen("quantize", "--gpu", "rtx5090", "--recipe", "int8", "--recipe", "fp8", "--report", tmp_path / "out")
    assert ran.code == 0
    assert "27.5 dB (not reached)" in ran.out and "equal" in ran.out
    assert ran.out.rstrip().endswith(str(tmp_path / "out" / "index.html"))
    assert "Weakest layers: many." in ran.err
    assert (tmp_path / "out" / "report.json").is_file()
    request = requests[0]
    assert (request.recipes, request.clips, request.lengths) == (("int8", "fp8"), 8, (5.0, 30.0))
    assert (request.build.gpu, request.build.force) == ("rtx5090", False)


def test_the_json_object_has_paths_and_verdicts(rtgen, requests, tmp_path):
    options = ("--clips", 3, "--seconds", 2, "--seconds", 4.5, "--force", "--report", tmp_path, "--json")
    ran = rtgen("quantize", "--gpu", "rtx5090", *options)
    assert ran.code == 0 and ran.json["ok"] and ran.json["command"] == "quantize"
    data = ran.json["data"]
    assert data["page"] == str(tmp_path / "index.html")
    assert [one["name"] for one in data["recipes"]] == ["int8", "fp8"]
    assert data["recipes"][0]["verdicts"][0]["reached"] is False
    assert data["recipes"][1]["measured"][0]["psnr_db"] is None
    request = requests[0]
    assert (request.recipes, request.clips, request.lengths, request.build.force) == ((), 3, (2.0, 4.5), True)


def test_quiet_prints_the_page_alone(rtgen, requests, tmp_path):
    ran = rtgen("quantize", "--gpu", "rtx5090", "--report", tmp_path, "-q")
    assert ran.out == f"{tmp_path / 'index.html'}\n" and not ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clips", "2"), "--clips would change nothing"),
        (("--seconds", "2", "--force"), "--seconds and --force would change nothing"),
        (("--report", "out", "--clips", "0"), "--clips"),
        (("--report", "out", "--seconds", "0"), "--seconds"),
        (("--report", "out", "--recipe", "fp16"), "quantizes nothing"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(rtgen, requests, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    ran = rtgen("quantize", "--gpu", "rtx5090", *options)
    assert ran.code == 2 and message in ran.err and not requests


def test_a_folder_that_cannot_be_is_told_before_any_work(rtgen, requests, tmp_path):
    (tmp_path / "file").touch()
    ran = rtgen("quantize", "--gpu", "rtx5090", "--report", tmp_path / "file")
    assert ran.code == 1 and "there is a file of that name" in ran.err and not requests

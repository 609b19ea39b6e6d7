"""The page: whole in one file, sound, and true to the report."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("av")

from rtgen.errors import OutputError
from rtgen.fidelity.charts import Line, layer_bars, psnr_over_time
from rtgen.fidelity.findings import FidelityReport
from rtgen.fidelity.page import page
from rtgen.fidelity.pictures import Pictures, difference, shrunk, side_by_side, strip
from rtgen.fidelity.saved import prepare_folder, save_report
from rtgen.fidelity.studio import FinishedReport
from tests.fidelity.handmade_report import clip, layer, measured, recipe, report, verdict

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Checker(HTMLParser):
    """Tags that close in order, and every attribute and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.text = [], set(), [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        self.links += [given["href"]] if "href" in given else []
        self.sources += [given[name] for name in ("src", "poster") if name in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Nothing stays open: shapes of charts."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def pictures():
    beside = side_by_side(clip(0), clip(1), 16, "The <median> clip")
    return Pictures((beside,), strip(clip(0), clip(1), 16, "stills"))


def test_the_page_is_one_sound_file_that_needs_no_other(pictures):
    verdicts = [verdict("psnr", False, "Weakest layers: a & b."), verdict("attributes", None), verdict("drift", True)]
    found = report(recipe("int8", 27.5, verdicts), recipe("nvfp4", 33.0, build=None, build_note="no FP4 here"))
    text = page(found, {"int8": pictures, "nvfp4": pictures})
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(source.startswith("data:") for source in checker.sources) and len(checker.sources) == 6
    assert all(link.startswith("#") and link[1:] in checker.ids for link in checker.links)
    assert "http" not in text
    shown = " ".join(" ".join(checker.text).split())
    for part in (
        "27.5 dB", "not reached", "Weakest layers: a & b.", "a <red> kite", "The <median> clip", "no FP4 here",
        "61.0 dB", "70.0 dB", "5% in FP16", "weights of the network not present", "classifier.onnx is not there",
        "1 of 2 measured figures reached",
    ):  # fmt: skip
        assert part in shown, part


def test_a_report_without_anything_measured_besides_still_makes_a_page(pictures):
    lonely = recipe("int4", None, layers=(), measured=(measured(5.0, None), measured(30.0, None)), weight_bits=None)
    checker = Checker()
    checker.feed(page(report(lonely), {"int4": pictures}))
    assert checker.open == [] and "∞" in " ".join(checker.text)


def test_every_colour_and_mark_of_the_page_is_in_its_style(pictures):
    recipes = [recipe(f"r{number}", 30.0, [verdict("psnr", True)]) for number in range(10)]
    text = page(report(*recipes), {one.name: pictures for one in recipes})
    style = text[text.index("<style>") : text.index("</style>")]
    body = text[text.index("</style>") :]
    used = {name for names in re.findall(r'class="([^"]+)"', body) for name in names.split()}
    unstyled = {name for name in used if f".{name}" not in style}
    assert unstyled <= {"bars", "tick"}  # hooks without a look of their own
    assert "prefers-color-scheme: dark" in style


def shapes(svg):
    return list(ElementTree.fromstring(svg).iter())


def test_lines_stay_in_the_picture_and_names_apart():
    lines = [Line(f"recipe {n}", n + 1, tuple(40.0 - n / 10 for _ in range(480))) for n in range(6)]
    lines.append(Line("equal", 7, (None, None, 55.0)))
    elements = shapes(psnr_over_time(lines, 30.0))
    points = [
        tuple(map(float, pair.split(","))) for e in elements if e.tag == "polyline" for pair in e.get("points").split()
    ]
    assert all(0 <= x <= 640 and 0 <= y <= 250 for x, y in points)
    heights = sorted(float(e.get("y")) for e in elements if e.get("class", "").startswith("name"))
    assert len(heights) == 7 and min(np.diff(heights)) >= 13.9 and heights[-1] <= 250


def test_a_dip_of_one_frame_is_not_thinned_away():
    values = [50.0] * 480
    values[333] = 12.0
    elements = shapes(psnr_over_time([Line("dips", 1, tuple(values))], 30.0))
    heights = [float(pair.split(",")[1]) for e in elements if e.tag == "polyline" for pair in e.get("points").split()]
    assert max(heights) > 2 * min(heights)


def test_nothing_to_draw_is_nothing():
    assert psnr_over_time([Line("equal", 1, (None, None))], 5.0) == ""
    assert layer_bars([layer(0, None)]) == ""


def test_bars_are_as_high_as_the_layer_is_good_and_hollow_where_it_stays():
    layers = [layer(0, 10.0), layer(0, 20.0), layer(1, 20.0, "float", reason="<worst>"), layer(1, None), layer(2, -5.0)]
    bars = [element for element in shapes(layer_bars(layers)) if element.tag == "rect"]
    assert len(bars) == 4
    low, high, kept, negative = (float(bar.get("height")) for bar in bars)
    assert high == kept > low > negative
    assert ["kept" in bar.get("class") for bar in bars] == [False, False, True, False]
    assert "<worst>" in bars[2][0].text


def test_a_difference_is_shown_four_times_and_saturates():
    dark, bright = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 10, np.uint8)
    assert (difference(dark, bright) == 40).all() and (difference(bright, dark) == 40).all()
    assert (difference(dark, np.full_like(dark, 255)) == 255).all()


def test_wide_frames_are_made_smaller_by_means():
    wide = np.zeros((1, 20, 960, 3), np.uint8)
    wide[:, :, 1::3] = 90
    assert shrunk(wide).shape == (1, 6, 320, 3) and (shrunk(wide) == 30).all()
    assert np.array_equal(shrunk(clip(0)), clip(0))


def test_pictures_show_both_clips_and_their_difference(pictures):
    import base64
    import io

    import av

    reference, candidate = np.full((4, 32, 48, 3), 200, np.uint8), np.full((4, 32, 48, 3), 170, np.uint8)
    made = side_by_side(candidate, reference, 16, "")
    with av.open(io.BytesIO(base64.b64decode(made.video.partition(",")[2]))) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (32, 144, 3)
    third = [frames[0][8:24, start + 8 : start + 40].mean() for start in (0, 48, 96)]
    assert third == pytest.approx([200, 170, 120], abs=4)
    assert pictures.strip.times == (0.0, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5)


def test_both_files_are_written_and_replaced(tmp_path, pictures):
    folder = tmp_path / "deep" / "report"
    prepare_folder(folder)
    for psnr in (30.0, 31.0):
        saved = save_report(FinishedReport(report(recipe("int8", psnr)), {"int8": pictures}), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.json"]
    again = FidelityReport.model_validate_json(saved.data.read_bytes())
    assert again.recipes[0].measured[0].psnr_db == 31.0
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="there is a file of that name"):
        prepare_folder(tmp_path / "file")

"""The evaluation of the bundled model: right arithmetic, honest about what was read, the same tables on the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from scripts.postcard import budgets, contact_sheet, evaluate, evaluate_package, prompt_sheet, results, targets
from scripts.postcard.classifier import CLIP_FRAMES, Classifier
from scripts.postcard.evaluate import Settings
from scripts.postcard.frechet import frechet_distance
from scripts.postcard.grammar import ATTRIBUTES, Scene, canonical_caption, held_out_scenes
from scripts.postcard.judging import accuracy, misread
from scripts.postcard.prompt_switch import CHANGING, partners
from scripts.postcard.recording import record
from scripts.postcard.render import render
from scripts.postcard.rollout import BatchStream, Sampling
from tests.scripts.test_postcard_rollout import PROMPTS, SIZE, SeededStream, tiny_parts


def numbered(first: int, count: int) -> Tensor:
    """A chunk [1, F, 3, 2, 2] whose every pixel is the number of its frame."""
    return torch.arange(first, first + count, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, 3, 2, 2)


def test_a_recording_keeps_both_ends_and_every_change() -> None:
    recording = record((numbered(first, 12) for first in range(0, 250, 12)), 200)
    assert recording.early[0, :, 0, 0, 0].tolist() == list(range(80))
    assert recording.late[0, :, 0, 0, 0].tolist() == list(range(120, 200))
    assert recording.changes.tolist() == [[1.0] * 199] and recording.jolts.tolist() == [[0.0] * 198]
    assert recording.flicker("early") == recording.flicker("late") == 1.0
    with pytest.raises(ValueError, match="was given 96"):
        record((numbered(first, 12) for first in range(0, 96, 12)), 97)


def test_a_jolt_is_a_frame_out_of_place_and_not_a_cut() -> None:
    clip = torch.full((2, 84, 3, 2, 2), 10, dtype=torch.uint8)
    clip[0, 50:] = 110  # a cut
    clip[1, 36] = 110  # a flash, the first frame of a chunk
    found = record(clip.split(12, dim=1), 84)
    assert found.changes[0].max() == found.changes[1].max() == 100
    assert found.jolts[0].max() == 0
    assert found.jolts[1].argmax() == 35 and found.jolts[1].max() == 100


@given(st.integers(1, 6), st.integers(0, 2**31), st.floats(0.1, 5), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_the_distance_of_scaled_and_moved_copies_is_known(size: int, seed: int, scale: float, shift: float) -> None:
    one = torch.randn(40, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = scale * one + shift
    means = (other.mean(0) - one.mean(0)).square().sum()
    spread = (scale - 1) ** 2 * one.var(0).sum()
    assert frechet_distance(one, other) == pytest.approx(float(means + spread), rel=1e-6, abs=1e-9)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), rel=1e-6, abs=1e-9)


def test_the_distance_agrees_with_the_root_of_a_product() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(50, 5, generator=generator).double() @ torch.randn(5, 5, generator=generator).double()
                  for _ in range(2))  # fmt: skip
    # C1 C2 is similar to a positive matrix: the trace of its root is the sum of the roots of its eigenvalues.
    roots = torch.linalg.eigvals(one.T.cov() @ other.T.cov()).real.sqrt().sum()
    means = (one.mean(0) - other.mean(0)).square().sum()
    expected = means + one.T.cov().trace() + other.T.cov().trace() - 2 * roots
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-9)


def test_the_distance_stands_fewer_clips_than_dimensions() -> None:
    features = torch.randn(4, 64)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 1) == pytest.approx(64, rel=1e-5)
    assert frechet_distance(torch.zeros(3, 8), torch.ones(3, 8)) == pytest.approx(8)
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(features[:1], features)


def test_what_was_read_is_counted_and_named() -> None:
    scenes = held_out_scenes(4, seed=0)
    answers = torch.tensor([scene.indices() for scene in scenes])
    answers[0, list(ATTRIBUTES).index("colour")] ^= 1
    found = accuracy(answers, scenes)
    assert found["attributes"] == {name: 0.75 if name == "colour" else 1.0 for name in ATTRIBUTES}
    assert found["mean"] == pytest.approx(27 / 28) and found["all_seven"] == 0.75
    wrong = misread(answers, scenes)
    assert [set(clip) for clip in wrong] == [{"colour"}, set(), set(), set()]
    assert wrong[0]["colour"] != scenes[0].colour


def test_a_switch_changes_all_it_can() -> None:
    scenes = held_out_scenes(60, seed=0)
    for scene, other in zip(scenes, partners(scenes), strict=True):
        assert all(getattr(scene, name) != getattr(scenes[other], name) for name in CHANGING)
    assert partners(scenes[:2]) == [1, 0]


@pytest.mark.parametrize(("budget", "passes"), [(0.0, [9, 9]), (1e6, [7, 7])])
def test_a_budget_spends_what_the_rule_says(tiny, budget: float, passes: list[int]) -> None:
    sampling = Sampling((1.0, 0.7, 0.4), "euler")
    parts, plan = tiny_parts(tiny), budgets.WithinBudget(2, sampling, budget)
    stream = BatchStream(parts, PROMPTS, sampling, seed=0, size=SIZE, plan=plan)
    for _ in range(3):
        stream.next_chunk()
    # Without limit the middle pass of every chunk but the first is left out.
    assert stream.passes.tolist() == passes


def test_a_budget_judges_every_stream_by_itself(tiny) -> None:
    sampling = Sampling((1.0, 0.8, 0.6, 0.3), "euler")
    parts = tiny_parts(tiny)

    def spent(prompts: tuple[str, ...]) -> list[list[int]]:
        plan = budgets.WithinBudget(len(prompts), sampling, 1.2)  # between what the two need
        stream = SeededStream(parts, prompts, sampling, seed=0, size=SIZE, plan=plan)
        counts = [stream.passes.clone()]
        for _ in range(4):
            stream.next_chunk()
            counts.append(stream.passes.clone())
        return torch.stack(counts).diff(dim=0).T.tolist()

    together = spent(PROMPTS)
    assert together[0] == spent(PROMPTS[:1])[0]
    assert min(together[0][1:]) < 4 and together[0] != together[1]


def test_psnr() -> None:
    one = torch.zeros(2, 80, 3, 4, 4, dtype=torch.uint8)
    assert budgets.peak_signal_to_noise(one, one) is None
    assert budgets.peak_signal_to_noise(one, one + 255) == pytest.approx(0)


class Settled(Classifier):
    """Too small to know anything, quick to run."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(width=8, dim=16)
        self.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def report(tiny_models) -> targets.Report:
    parts = tiny_parts(tiny_models["tiny"])
    chosen = Settings(count=3, seconds=6, batch=2, teacher_steps=3, guidance=1.5, budgets=(0.0, 1e6))
    return evaluate.evaluate(parts.config, parts, parts, Settled(), chosen)


def test_the_whole_evaluation(report) -> None:
    names = [stream["name"] for stream in report["streams"]]
    assert names == ["student", "teacher", "teacher, 2 steps"]
    student, teacher, undistilled = report["streams"]
    assert (teacher["steps"], teacher["guidance"], undistilled["steps"]) == (3, 1.5, 2)
    for judged in (*report["streams"], report["renders"], *report["adaptive"]):
        for window in ("early", "late"):
            assert set(judged[window]["attributes"]) == set(ATTRIBUTES)
            assert 0 <= judged[window]["mean"] <= 1 and judged[window]["flicker"] > 0
            assert judged[window]["frechet"] >= 0
    assert all(stream["finite"] for stream in report["streams"])
    # Nothing is left out of two levels, whatever the budget: the first and the last always run.
    for entry in report["adaptive"]:
        assert entry["passes_per_chunk"] == 2 and entry["psnr"] is None
        assert entry["early"] == student["early"]
    assert {"switch", "streams", "renders"} < set(report["switch"]["change"])
    assert len(report["clips"]) == 3
    assert json.loads(json.dumps(report))["targets"] == report["targets"]


def test_clips_say_what_was_read_wrong(report) -> None:
    for column, name in enumerate(ATTRIBUTES):
        wrong = sum(name in clip["misread"].get("student, early", {}) for clip in report["clips"])
        assert 1 - wrong / 3 == pytest.approx(report["streams"][0]["early"]["attributes"][name]), column


def test_targets_are_held_against_their_limits(report) -> None:
    def missed(renders: float = 0.99, camera: float = 0.9, **means: float) -> list[str]:
        """The targets that such shares do not reach; 95 % where nothing is said."""
        streams = [dict(stream) for stream in report["streams"]]
        for stream in streams:
            for window in ("early", "late"):
                shares = dict.fromkeys(ATTRIBUTES, 0.95) | {"camera": camera}
                stream[window] = {"mean": means.get(f"{stream['name']}_{window}", 0.95), "attributes": shares}
        judged = {**report, "streams": streams, "renders": {"early": {"mean": 0.99, "attributes": {"camera": renders}}}}
        del judged["switch"]
        return [target["name"] for target in targets.check_targets(judged) if not target["reached"]]

    assert missed() == []
    assert missed(student_early=0.92, student_late=0.92) == []  # just
    assert missed(student_early=0.915, student_late=0.92, teacher_early=0.94) == ["student's mean, 5 s"]
    assert missed(camera=0.79) == ["student's lowest attribute, 5 s: camera"]
    assert missed(student_late=0.90, teacher_late=0.90) == ["student's mean, 5 s less 6 s"]
    assert missed(student_late=0.91) == ["teacher's mean less student's, 6 s"]
    assert missed(teacher_early=0.99) == ["teacher's mean less student's, 5 s"]
    assert missed(renders=0.97) == ["classifier's lowest attribute on renders: camera"]


def test_a_limit_is_reached_in_spite_of_rounding_and_never_by_nan() -> None:
    assert targets.Target("", 0.96 - 0.92, "at most", 0.04, "difference").reached
    assert not targets.Target("", 0.041, "at most", 0.04, "difference").reached
    assert not targets.Target("", float("nan"), "at least", 0.9, "share").reached


def test_a_switch_that_breaks_frames_is_told(report) -> None:
    switch = json.loads(json.dumps(report["switch"]))
    reached = {target["name"]: target["reached"] for target in report["targets"]}
    assert {"greatest change at a switch", "greatest jolt at a switch"} < set(reached)
    switch["jolt"]["switch"]["maximum"] = 250.0
    switch["switched"]["mean"] = switch["without"]["mean"] - 0.05
    broken = [target["name"] for target in targets.check_targets({**report, "switch": switch}) if not target["reached"]]
    assert {"greatest jolt at a switch", "mean of prompts, from the start less switched to"} < set(broken)


def test_tables_go_between_the_markers_of_a_page(report, tmp_path, monkeypatch, capsys) -> None:
    page = tmp_path / "page.md"
    names = list(results.tables(report))
    page.write_text("".join(f"# {n}\n<!-- table: {n} -->\nold\n<!-- end -->\nkept\n" for n in names), encoding="utf-8")
    file = tmp_path / "folder" / "report.json"
    evaluate.write_report(file, report)
    assert list(file.parent.iterdir()) == [file]
    monkeypatch.setattr(sys, "argv", ["results", str(file), "--page", str(page)])
    results.main()
    text = page.read_text(encoding="utf-8")
    assert "old" not in text and text.count("kept") == len(names)
    assert "| camera | " in text and "| teacher, 2 steps | " in text
    results.main()
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(KeyError, match="unheard-of"):
        results.fill("<!-- table: unheard-of -->\n<!-- end -->\n", "table", {})
    for table in results.tables(report).values():
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_page_of_results_has_a_place_for_every_table(report) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "postcard-results.md").read_text(encoding="utf-8")
    filled = results.fill(page, "table", results.tables(report))
    for name, table in results.tables(report).items():
        assert table in filled, name


SCENES = held_out_scenes(4, seed=0)


class FakePipeline:
    """Renders what the prompt asks for, in chunks of 12 frames as the runtime does."""

    def stream(self, prompt: str, *, seed: int = 0, frames: int | None = None) -> Iterator[NDArray[np.uint8]]:
        scene = next(scene for scene in SCENES if canonical_caption(scene) == prompt)
        clip = render([scene], frames=frames or 12, height=32, width=32, seed=seed)[0].permute(0, 2, 3, 1).numpy()
        yield from (clip[first : first + 12] for first in range(0, len(clip), 12))


class Oracle(Settled):
    """Knows the scenes in the order they are shown, generated before rendered; misreads the first colour."""

    shown = 0

    def read(self, video: Tensor) -> Tensor:
        assert video.shape == (1, CLIP_FRAMES, 3, 32, 32) and video.dtype == torch.uint8
        answer = torch.tensor([SCENES[self.shown // 2].indices()])
        if self.shown == 0:
            answer[0, list(ATTRIBUTES).index("colour")] ^= 1
        self.shown += 1
        return answer


def test_a_package_is_judged_through_the_runtime(capsys) -> None:
    judged = evaluate_package.judge(FakePipeline(), Oracle(), SCENES, seconds=5.5, seed=0)
    assert "4 of 4 clips" in capsys.readouterr().out
    assert judged["generated"]["attributes"]["colour"] == 0.75 and judged["rendered"]["mean"] == 1
    # Renders stand in for generated clips, from the same seeds and time.
    assert judged["generated"]["flicker"] == pytest.approx(judged["rendered"]["flicker"], rel=1e-6)
    assert judged["clips"][0]["misread"]["generated"].keys() == {"colour"}
    assert not judged["clips"][1]["misread"]["generated"] and not judged["clips"][0]["misread"]["rendered"]


def test_a_strip_shows_the_frames_at_its_times(tiny) -> None:
    parts = tiny_parts(tiny)
    make = lambda: BatchStream(parts, PROMPTS, Sampling((1.0,)), seed=0, size=SIZE)  # noqa: E731
    whole = make()
    video = torch.cat([whole.next_chunk() for _ in range(3)], dim=1)
    strips = prompt_sheet.frames_at(make(), (0.0, 0.25, 1.9))
    assert torch.equal(strips, video[:, [0, 4, 30]])
    listed = prompt_sheet.listing(
        PROMPTS, [Path("docs/media/x/1.webp"), Path("docs/media/x/2.webp")], Path("docs/p.md")
    )
    assert f"1. {PROMPTS[0]}\n\n   ![{PROMPTS[0]}](media/x/1.webp)\n\n2. " in listed


@pytest.mark.parametrize("ending", [".png", ".webp"])
def test_pictures_are_written_and_read_back(tmp_path, ending: str) -> None:
    import av

    image = render([Scene("beach", "noon", "clear", "kite", "red", "hovers", "still")], frames=1, seed=0)[0, 0]
    contact_sheet.write_picture(tmp_path / f"x{ending}", contact_sheet.tile(image[None], 1))
    with av.open(str(tmp_path / f"x{ending}")) as file:
        shown = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert shown.shape == (130, 130, 3)
    difference = np.abs(shown[:128, :128].astype(int) - image.permute(1, 2, 0).numpy())
    assert difference.mean() < (0.01 if ending == ".png" else 6)
    with pytest.raises(ValueError, match=r"\.png or \.webp"):
        contact_sheet.write_picture(tmp_path / "x.jpg", image)

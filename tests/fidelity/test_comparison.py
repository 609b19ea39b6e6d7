"""Sums over clips, their figures, and the verdicts on them."""

import numpy as np
import pytest

pytest.importorskip("torch")

from rtgen.config.recipe import Targets
from rtgen.fidelity.comparison import Asked, Comparison, Points, reference_figures
from rtgen.fidelity.findings import Measured, Recipe, Reference
from rtgen.fidelity.verdicts import judged
from rtgen.quantize.result import LayerResult

NAMES = ("light", "change")


def clip(level, frames=8, blur=False):
    generator = np.random.default_rng(level)
    rough = generator.integers(-40, 40, (frames, 16, 16, 3))
    rough = (rough + np.roll(rough, 1, 2)) // 2 if blur else rough
    return np.clip(level + rough, 0, 255).astype(np.uint8)


def test_psnr_pools_all_frames_of_all_clips():
    comparison = Comparison(frames_per_second=4)
    base = np.full((2, 12, 12, 3), 100, np.uint8)
    for offset in (0, 2, 4):
        comparison.add(base + np.uint8(offset), base)
    measured = comparison.measured(0.5)
    assert measured.clips == 3
    assert measured.clip_psnr_db[0] is None and measured.clip_psnr_db[1] > measured.clip_psnr_db[2]
    assert measured.psnr_db == pytest.approx(10 * np.log10(255**2 / (20 / 3)), abs=0.01)
    assert measured.frame_psnr_db == (measured.psnr_db,) * 2
    assert measured.attribute_accuracy is None and measured.lpips is None


def test_drift_is_what_all_clips_have_in_common():
    """Differences that go either way cancel; the same change in every clip does not."""

    def shift(offsets):
        comparison = Comparison(frames_per_second=1)
        for number, offset in enumerate(offsets):
            reference = clip(100 + number)
            comparison.add((reference.astype(int) + offset).clip(0, 255).astype(np.uint8), reference)
        return comparison.measured(8.0).colour_shift

    assert shift((12, -12)) < 0.5 < 3 < shift((12, 12))


def test_lost_detail_is_seen():
    comparison = Comparison(frames_per_second=1)
    comparison.add(clip(120, blur=True), clip(120))
    assert comparison.measured(8.0).detail_ratio < 0.85


def test_lpips_is_the_mean_of_its_frames():
    comparison = Comparison(frames_per_second=1, network=lambda one, other: (one - other).abs().mean(dim=(1, 2, 3)))
    comparison.add(clip(100), clip(110))
    assert 0 < comparison.measured(8.0).lpips < 0.5


def test_attributes_are_held_against_the_prompts_and_against_the_reference():
    asked = Asked(NAMES, np.array([[1, 0], [0, 1], [0, 0], [1, 1]]))
    reference = [np.array(row) for row in ([1, 0], [0, 1], [0, 0], [1, 0])]  # one answer of eight is wrong
    ours = [np.array(row) for row in ([1, 0], [1, 1], [0, 0], [0, 0])]  # and here three
    comparison = Comparison(frames_per_second=1)
    for number in range(4):
        comparison.add(clip(100 + number), clip(100 + number))
    measured = comparison.measured(8.0, asked, ours, reference)
    assert measured.attributes == {"light": 0.5, "change": 0.75}
    assert measured.attribute_accuracy == 0.625
    assert measured.attribute_points == pytest.approx(-25)
    assert reference_figures(8.0, asked, reference).attribute_accuracy == 0.875


def test_the_margin_is_that_of_paired_clips():
    right = np.array([[True], [True], [False], [True]])
    same = Points.of(right, right)
    assert (same.mean, same.margin) == (0.0, 0.0)
    moved = Points.of(right, np.ones_like(right))
    assert moved.mean == -25 and moved.margin == pytest.approx(1.96 * 50 / 2)
    assert Points.of(right[:1], right[:1]).margin is None


def measured(seconds=5.0, psnr=32.0, frames=(40.0, 36.0, 28.0, 25.0), **changes):
    fields = {
        "seconds": seconds, "clips": 2, "psnr_db": psnr, "clip_psnr_db": (psnr, psnr), "frame_psnr_db": frames,
        "ssim": 0.9, "lpips": None, "attributes": {"light": 0.9, "change": 0.7}, "attribute_accuracy": 0.8,
        "attribute_points": -1.0, "attribute_margin": 0.5, "colour_shift": 0.5, "detail_ratio": 0.98,
    }  # fmt: skip
    return Measured(**(fields | changes))


def verdicts(*lengths, targets=None, note=""):
    layers = (
        LayerResult(name="blocks.1.ffn.0.weight", weights="int8", snr_db=31.0),
        LayerResult(name="blocks.0.self_attn.q.weight", weights="int8", snr_db=12.5),
        LayerResult(name="blocks.0.self_attn.k.weight", weights="float", snr_db=3.0, reason="sensitive"),
    )
    recipe = Recipe(
        name="int8", title="", way="", weight_bits=8, kept_share=0, build=None, velocity_snr_db=25.0, graph_snr_db=60.0,
        layers=layers, measured=lengths,
    )  # fmt: skip
    accuracy = {"light": 0.9, "change": 0.72}
    references = [Reference(seconds=m.seconds, attributes=accuracy, attribute_accuracy=0.81) for m in lengths]
    return judged(recipe, targets or Targets(psnr_db=30), references, [measured(psnr=60.0)], note)


def test_figures_that_are_reached_need_no_reason():
    found = verdicts(measured(), measured(30.0))
    assert [(v.kind, v.seconds) for v in found] == [
        ("psnr", 5.0), ("attributes", 5.0), ("attributes", 30.0), ("drift", 30.0),
    ]  # fmt: skip
    assert all(v.reached and not v.why for v in found)


def test_a_psnr_that_is_missed_says_when_and_where_it_is_lost():
    found = verdicts(measured(psnr=27.0, clip_psnr_db=(24.0, 33.0)))[0]
    assert found.reached is False and found.measured == "27.0 dB"
    for part in ("25.0 dB above its error", "below 30 dB at 2.5 s", "1 of 2 clips", "blocks.0.self_attn.q (12.5 dB)"):
        assert part in found.why
    assert "60.0 dB" in found.why and "self_attn.k" not in found.why


def test_lost_attributes_name_those_that_are_lost_and_whether_it_may_be_chance():
    missed = measured(attribute_points=-5.0, attribute_margin=7.0, attributes={"light": 0.9, "change": 0.6})
    found = next(v for v in verdicts(missed) if v.kind == "attributes")
    assert found.reached is False and "change (-12.0 points)" in found.why and "light" not in found.why
    assert "too few to tell it from chance" in found.why
    sure = measured(attribute_points=-5.0, attribute_margin=1.0, attributes={"light": 0.9, "change": 0.6})
    assert "chance" not in next(v for v in verdicts(sure) if v.kind == "attributes").why


def test_what_is_not_measured_is_neither_reached_nor_missed():
    blank = measured(attributes=None, attribute_accuracy=None, attribute_points=None, attribute_margin=None)
    found = next(v for v in verdicts(blank, note="no classifier") if v.kind == "attributes")
    assert found.reached is None and found.why == "no classifier"


@pytest.mark.parametrize(("change", "word"), [({"colour_shift": 3.0}, "colour"), ({"detail_ratio": 0.8}, "20% less")])
def test_drift_is_judged_on_the_longest_clips(change, word):
    found = verdicts(measured(), measured(30.0, **change))[-1]
    assert found.kind == "drift" and found.reached is False and word in found.why


def test_recipes_without_a_target_have_no_verdict_on_psnr():
    assert [v.kind for v in verdicts(measured(psnr=5.0), targets=Targets())] == ["attributes"]

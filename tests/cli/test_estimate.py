"""``rtgen estimate`` as people and programs see it, and as its page in docs shows it."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "estimate.md"
WAN = ["--gpu", "rtx4080-laptop", "--model", "wan2.1-1.3b-self-forcing"]


def test_people_see_the_limit_and_what_would_lift_it(rtgen: Callable[..., Any]) -> None:
    out = rtgen("estimate", *WAN, "--recipe", "fp16", "--window", 12).out
    assert "most goes to self-attention over the ring, limited by arithmetic" in out
    assert re.search(r"what would lift it most: --\S+ \S+ \(\+\d+%\)", out)
    shares = [int(share) for share in re.findall(r"^\S.*? ms +(\d+)%", out, re.M)]
    assert shares == sorted(shares, reverse=True) and 97 <= sum(shares) <= 103


def test_a_setting_that_does_not_fit_says_what_would(rtgen: Callable[..., Any]) -> None:
    out = rtgen("estimate", "--gpu", "rtx4050-laptop", "--model", "wan2.1-1.3b-self-forcing", "--recipe", "fp16").out
    assert ": does not fit" in out and "what would make it fit: --" in out
    best = re.search(r"what would lift it most: (--\S+ \S+)", out)
    assert best is not None and not re.search(rf"^{best[1]} .*too much", out, re.M)


def test_json_holds_the_whole_estimate(rtgen: Callable[..., Any]) -> None:
    data = rtgen("estimate", *WAN, "--kv-bits", 8, "--json").json["data"]
    assert data["recipe"] == "int4" and data["kv_bits"] == 8 and data["window"] == 21
    low, high = data["fps_range"]
    assert low < data["fps"] < high and data["fps"] < data["denoise_fps"]
    assert sum(part["share"] for part in data["parts"]) == pytest.approx(1)
    plan = data["memory_plan"]
    terms = ("weights", "activations", "kv_ring", "decoder_state", "io", "context")
    assert plan["total"] == data["memory"] == sum(plan[term] for term in terms)
    assert data["fits"] == (plan["total"] <= plan["vram"])
    assert all(entry["source"] and entry["status"] for entry in data["efficiencies"])


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        ("--gpu rtx9090", "unknown_name", "rtx5090"),
        ("--gpu h100 --recipe int4", "usage", "use --recipe"),
        ("--gpu cpu --kv-bits 4", "usage", "leave --kv-bits out"),
        ("--gpu t4 --window 4", "usage", "--window 3"),
        ("--gpu t4 --steps 0", "usage", "--steps 1"),
        ("--gpu t4 --size 20x20", "size_unsupported", "--size 32x32"),
        ("--gpu t4 --kv-bits 5", "usage", "--help"),
        ("--validate --steps 3", "usage", "rtgen estimate --validate"),
    ],
)
def test_bad_input_is_refused_with_a_hint(line: str, code: str, hint: str, rtgen: Callable[..., Any]) -> None:
    ran = rtgen("estimate", *line.split(), "--json")
    assert ran.code == 2
    assert ran.json["error"]["code"] == code and hint in ran.json["error"]["hint"]


def test_the_page_shows_what_the_commands_print(rtgen: Callable[..., Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"```sh\nrtgen (estimate [^\n]*)\n```\n\n```text\n(.*?)```", text, re.S)
    assert len(shown) >= 2
    for line, printed in shown:
        assert rtgen(*shlex.split(line)).out == printed, "python -m scripts.estimate_page"
    assert rtgen("estimate", "--validate").out in text, "python -m scripts.estimate_page"

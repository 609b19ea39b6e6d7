"""Tables of an evaluation's report, printed, or written into a page between its markers.

    python -m scripts.postcard.results runs/evaluation/report.json --page docs/postcard-results.md

A page says where each table goes: `<!-- table: targets -->` and `<!-- end -->` on lines of their own. What is between
them is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.postcard.grammar import ATTRIBUTES
from scripts.postcard.targets import Report


def tables(report: Report) -> dict[str, str]:
    """Every table that the report has numbers for, in markdown."""
    found = {
        "settings": settings_table(report),
        "targets": targets_table(report),
        "attributes": attributes_table(report),
        "streams": streams_table(report),
    }
    if "switch" in report:
        found |= {"switch": switch_table(report), "switch-frames": switch_frames_table(report)}
    if report.get("adaptive"):
        found["adaptive"] = adaptive_table(report)
    return found


def describe(report: Report) -> str:
    """All tables for a terminal."""
    return "\n\n".join(tables(report).values())


def settings_table(report: Report) -> str:
    settings, teacher = report["settings"], report["streams"][1:2]
    rows = [
        ["prompts", f"{settings['count']} held-out combinations, seed {settings['seed']}"],
        ["length of a stream", f"{settings['seconds']:g} s"],
        ["student", sampling_text(report["streams"][0])],
        *(["teacher", sampling_text(stream)] for stream in teacher),
        ["machine", f"{report['machine']}, {report['precision']}"],
        ["the whole evaluation took", f"{report['wall_seconds']:.0f} s"],
    ]
    return markdown(["", ""], rows)


def sampling_text(stream: Mapping[str, Any]) -> str:
    guidance = f", guidance {stream['guidance']:g}" if stream["guidance"] != 1 else ""
    return f"{stream['steps']} steps, sampler {stream['sampler']}{guidance}"


def targets_table(report: Report) -> str:
    rows = [
        [
            target["name"],
            f"{target['bound']} {amount(target['limit'], target['unit'])}",
            amount(target["measured"], target["unit"]),
            "reached" if target["reached"] else "**not reached**",
        ]
        for target in report["targets"]
    ]
    return markdown(["target", "limit", "measured", ""], rows)


def amount(value: float, unit: str) -> str:
    """A number for people."""
    match unit:
        case "share":
            return f"{100 * value:.1f} %"
        case "difference":
            return f"{100 * value:.1f} points"
        case "levels":
            return f"{value:.1f} levels"
        case _:
            return f"{value:g}"


def attributes_table(report: Report) -> str:
    """A row for each attribute, two columns for each source of clips."""
    sources = [*report["streams"], {"name": "renders", **report["renders"]}]
    return accuracy_table(
        {
            f"{source['name']}, {when(report, window)}": source[window]
            for source in sources
            for window in ("early", "late")
        }
    )


def accuracy_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What `scripts.postcard.judging.accuracy` gives for each column."""
    rows = [[name, *(percent(shares["attributes"][name]) for shares in found.values())] for name in ATTRIBUTES]
    rows += [
        [text, *(percent(shares[key]) for shares in found.values())]
        for text, key in (("mean", "mean"), ("all seven", "all_seven"))
    ]
    return markdown(["attribute", *found], rows)


def streams_table(report: Report) -> str:
    """A row for each source of clips: distance and flicker."""
    header = ["", *(f"{text}, {when(report, window)}" for text in ("mean", "Fréchet distance", "flicker")
                    for window in ("early", "late"))]  # fmt: skip
    rows = []
    for source in (*report["streams"], {"name": "renders against other renders", **report["renders"]}):
        early, late = source["early"], source["late"]
        numbers = [percent(w["mean"]) for w in (early, late)]
        numbers += [f"{w[key]:.2f}" for key in ("frechet", "flicker") for w in (early, late)]
        rows.append([source["name"], *numbers])
    return markdown(header, rows)


def switch_table(report: Report) -> str:
    switch = report["switch"]
    after = f"from {switch['chunks_after']} chunks after the switch"
    return accuracy_table({after: switch["switched"], "from the start": switch["without"]})


def switch_frames_table(report: Report) -> str:
    switch = report["switch"]
    rows = []
    for source in switch["change"]:
        cells = [switch[kind].get(source) for kind in ("change", "jolt")]
        rows.append([source, *(f"{c[key]:.1f}" if c else "" for c in cells for key in ("median", "maximum"))])
    return markdown(["", "change, median", "change, most", "jolt, median", "jolt, most"], rows)


def adaptive_table(report: Report) -> str:
    """Fixed passes in the first row, then a row for each budget."""
    fixed = report["streams"][0]
    rows = []
    for entry in (fixed, *report["adaptive"]):
        saved = 1 - entry["passes_per_chunk"] / fixed["passes_per_chunk"]
        lost = [fixed[window]["mean"] - entry[window]["mean"] for window in ("early", "late")]
        noise = "" if entry is fixed else "identical" if entry["psnr"] is None else f"{entry['psnr']:.1f} dB"
        rows.append(
            [
                "all passes" if entry is fixed else f"{entry['budget']:g}",
                f"{entry['passes_per_chunk']:.2f}",
                percent(saved),
                *(percent(entry[window]["mean"]) for window in ("early", "late")),
                *("" if entry is fixed else f"{100 * loss:.1f} points" for loss in lost),
                noise,
            ]
        )
    windows = [when(report, window) for window in ("early", "late")]
    header = ["budget", "passes a chunk", "saved", *(f"mean, {w}" for w in windows), *(f"lost, {w}" for w in windows)]
    return markdown([*header, "PSNR, 5 s"], rows)


def when(report: Report, window: str) -> str:
    """What to call a window of five seconds: by where it ends."""
    return "5 s" if window == "early" else f"{report['settings']['seconds']:g} s"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(re.sub(r" {2,}", " ", f"| {' | '.join(cells)} |") for cells in lines)


def fill(page: str, kind: str, found: Mapping[str, str]) -> str:
    """The page with text between the markers of a kind. Raises KeyError for a name that there is no text for."""
    marked = re.compile(rf"(^<!-- {kind}: ([a-z-]+) -->\n)(.*?)(^<!-- end -->$)", re.M | re.S)
    return marked.sub(lambda match: f"{match[1]}\n{found[match[2]]}\n\n{match[4]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--page", type=Path, help="markdown page to write the tables into, instead of printing them")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    if arguments.page:
        page = arguments.page.read_text(encoding="utf-8")
        arguments.page.write_text(fill(page, "table", tables(report)), encoding="utf-8")
    else:
        print(describe(report))


if __name__ == "__main__":
    main()

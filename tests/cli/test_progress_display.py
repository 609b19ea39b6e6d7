"""Progress in a log, and on a terminal."""

import io

from rich.console import Console
from rich.progress import Progress, TextColumn

from rtgen.cli.progress import LINE_INTERVAL_S, BarProgress, LineProgress


def test_a_log_gets_few_lines() -> None:
    now, written = [0.0], list[str]()
    progress = LineProgress(written.append, clock=lambda: now[0])
    for step in range(1001):
        now[0] = step * 2.5 * LINE_INTERVAL_S / 1000
        progress.update("export", step / 1000)
    progress.update("export", 1.0)
    progress.note("done with it")
    assert written == ["export …", "export: 40%", "export: 80%", "export: done in 25.0 s", "done with it"]


def test_unknown_lengths_and_broken_displays_are_survived() -> None:
    def broken(_: str) -> None:
        raise OSError

    LineProgress(broken).update("export", None)
    LineProgress(broken).note("x")


def test_bars_show_stage_and_detail_as_they_are() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    columns = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[detail]}", markup=False)
    with Progress(*columns, console=console) as display:
        progress = BarProgress(display)
        progress.update("engine: [denoiser]", None)
        progress.update("engine: [denoiser]", 1.0, "phase [3]")
        progress.note("a [note]")
    assert display.tasks[0].finished
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "engine: [denoiser]" in text and "phase [3]" in text and "a [note]" in text

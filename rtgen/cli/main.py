"""The ``rtgen`` command: a table of commands that are imported when they are used."""

import sys
from collections.abc import Sequence

import click

from rtgen import __version__
from rtgen.cli.errors import describe
from rtgen.cli.group import Group, Lazy
from rtgen.cli.output import Output

COMMANDS = {
    "build": Lazy("rtgen.cli.build", "build", "Compile a model into an engine package for a GPU."),
    "run": Lazy("rtgen.cli.run", "run", "Make a video from a prompt."),
    "export": Lazy("rtgen.cli.export", "export", "Write the ONNX files of a model, before compilation."),
    "quantize": Lazy("rtgen.cli.quantize", "quantize", "Quantize a model, and show what was decided for each layer."),
    "verify": Lazy("rtgen.cli.verify", "verify", "Compare what a package computes with ONNX Runtime on the processor."),
    "estimate": Lazy(
        "rtgen.cli.estimate",
        "estimate",
        "Predict the speed, memory and power of a model on a GPU, and what would lift it.",
    ),
    "bench": Lazy("rtgen.cli.bench", "bench", "Time kernels and pipelines beside what people use today."),
    "doctor": Lazy("rtgen.cli.doctor", "doctor", "Show what works on this machine, and how to fix what does not."),
    "gpu": Lazy("rtgen.cli.gpu", "gpu", "List and show the GPUs that packages are built for."),
    "model": Lazy("rtgen.cli.model", "model", "List and show the models."),
    "recipe": Lazy("rtgen.cli.recipe", "recipe", "List and show the numeric recipes."),
    "engine": Lazy("rtgen.cli.engine", "engine", "List, show, verify and remove engine packages."),
    "cache": Lazy("rtgen.cli.cache", "cache", "Key, place, size and pruning of the store."),
    "completion": Lazy("rtgen.cli.completion", "completion", "Print the completion script of a shell."),
}


@click.command(
    "rtgen",
    cls=Group,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command takes --json, --quiet and --verbose after its name.",
)
@click.version_option(__version__, "--version", prog_name="rtgen", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile autoregressive video diffusion for the GPU you own, and play it live."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code. Raises nothing but SystemExit."""
    output = Output(arguments)
    try:
        # Arguments are passed explicitly: left to itself, click expands * and ? in a prompt on Windows.
        return int(cli.main(list(arguments), prog_name="rtgen", standalone_mode=False, obj=output) or 0)
    except (Exception, KeyboardInterrupt) as error:
        return output.failure(describe(error, output.command), error)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))

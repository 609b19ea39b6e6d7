"""Documents and code agree: links resolve, commands parse, codes, rooms and targets are those of the code."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import rtgen.errors
from rtgen.cli import errors as cli_errors
from rtgen.cli.main import cli
from rtgen.config.load import list_gpus, list_models, list_recipes

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELLS = ("sh", "bash", "console", "powershell")
OWN = "my-"
"""What names that a reader chooses start with."""


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def fenced(document: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks in these languages."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield text


def prose(document: Path) -> str:
    """The text without fenced blocks and code spans, where brackets are no links."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "``", text)


def anchors(document: Path) -> set[str]:
    """The headings as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines() -> list[tuple[str, str]]:
    return [
        (name(document), line.strip().removeprefix("$ "))
        for document in DOCUMENTS
        for block in fenced(document, *SHELLS)
        for line in block.splitlines()
    ]


def commands_in(line: str, program: str) -> list[list[str]]:
    """The argument lists of ``program`` in a shell line: on its own, in a pipeline, after ``&&``, inside ``$(…)``."""
    inner = [arguments for nested in re.findall(r"\$\(([^()]*)\)", line) for arguments in commands_in(nested, program)]
    lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "SUBSTITUTED", line), posix=True, punctuation_chars="|&;<>")
    commands: list[list[str]] = [[]]
    skipping = False
    for token in lexer:
        if set(token) <= set("|&;"):
            commands.append([])
            skipping = False
        elif set(token) <= set("<>"):
            skipping = True  # the file of a redirection
        elif skipping:
            skipping = False
        else:
            commands[-1].append(token)
    return inner + [words[1:] for words in commands if words and words[0] == program]


def table_rows(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose header line starts with ``header``."""
    lines = text[text.index(f"\n| {header}") + 1 :].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


RTGEN_LINES = [
    pytest.param(arguments, id=f"{document}: rtgen {shlex.join(arguments)}"[:120])
    for document, line in command_lines()
    for arguments in commands_in(line, "rtgen")
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.is_relative_to(ROOT) or not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name(page) for page in (ROOT / "docs").glob("*.md") if f"({name(page)})" not in text] == []


def test_there_are_commands_to_check() -> None:
    assert len(RTGEN_LINES) > 40


@pytest.mark.parametrize("arguments", RTGEN_LINES)
def test_commands_parse(arguments: list[str]) -> None:
    command: click.Command = cli
    parent = click.Context(cli, info_name="rtgen")
    path, rest = "rtgen", arguments
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(parent, rest[0])
        assert found is not None, f"there is no command '{path} {rest[0]}'"
        command, path, rest = found, f"{path} {rest[0]}", rest[1:]
    try:
        context = command.make_context(path, list(rest), parent=parent)
    except click.exceptions.Exit:
        return  # --help and --version
    known = {"gpu": ("auto", *list_gpus()), "model": list_models(), "recipe": list_recipes()}
    if path.endswith(" show") and (kind := path.split()[1]) in known:
        known["name"] = known[kind]
    for parameter, names in known.items():
        value = context.params.get(parameter) or ()
        for given in (value,) if isinstance(value, str) else value:
            assert given in names or given.startswith(OWN), f"no {parameter} is called {given}"


def test_python_modules_and_make_targets_exist() -> None:
    lines = [line for _, line in command_lines()]
    modules = {arguments[1] for line in lines for arguments in commands_in(line, "python") if arguments[0] == "-m"}
    own = {module for module in modules if module.partition(".")[0] in ("scripts", "rtgen")}
    assert own
    assert [module for module in own if not (ROOT / f"{module.replace('.', '/')}.py").is_file()] == []
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    targets = {arguments[0] for line in lines for arguments in commands_in(line, "make")}
    assert targets and targets <= set(rules)


def test_json_examples_have_the_schema() -> None:
    examples = [json.loads(block) for block in fenced(ROOT / "docs" / "cli.md", "json")]
    assert examples
    for example in examples:
        assert list(example)[:3] == ["schema", "command", "ok"] and example["schema"] == "rtgen/1"
        assert ("data" if example["ok"] else "error") in example


def test_exit_codes_are_those_of_the_code() -> None:
    rows = table_rows((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "exit code |")
    written = {0, *(getattr(cli_errors, constant) for constant in ("FAILED", "USAGE", "ENVIRONMENT", "INTERRUPTED"))}
    assert {int(cells[0]) for cells in rows} == written


def test_error_codes_are_those_of_the_code() -> None:
    rows = table_rows((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "code | exit code")
    documented = {(cells[0].strip("`"), int(cells[1])) for cells in rows}
    assert documented == {*own_codes(), *foreign_codes()}


def own_codes() -> set[tuple[str, int]]:
    """Code and exit code of every exception class."""
    classes = [value for value in vars(rtgen.errors).values() if isinstance(value, type)]
    return {(kind.code, kind.exit_code) for kind in classes if issubclass(kind, rtgen.errors.RtgenError)}


def foreign_codes() -> set[tuple[str, int]]:
    """Those that ``cli/errors.py`` writes out for other exceptions: ``Failure("code", …, EXIT_CODE)``."""
    tree = ast.parse(Path(cli_errors.__file__).read_text(encoding="utf-8"))
    return {
        (node.args[0].value, getattr(cli_errors, node.args[3].id))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Failure"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[3], ast.Name)
    }


def test_rooms_and_modules_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sections = re.split(r"^#+ ", text, flags=re.M)
    rooms = {section.split()[0]: section for section in sections if section.startswith("rtgen/")}
    folders = {path for path in (ROOT / "rtgen").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    assert {*rooms} == {f"rtgen/{folder.name}" for folder in folders}
    listed = {f"{room}/{module}" for room, body in rooms.items() for module in re.findall(r"`([\w/]+\.py)`", body)}
    described = {*rooms, *(module.rpartition("/")[0] for module in listed)}  # a folder inside a room, once it is begun
    modules = {name(path) for path in (ROOT / "rtgen").glob("*/**/*.py") if path.name != "__init__.py"}
    assert listed == {module for module in modules if module.rpartition("/")[0] in described}


def test_the_readme_lists_every_target() -> None:
    rows = table_rows((ROOT / "README.md").read_text(encoding="utf-8"), "compute capability")
    assert sorted(target for cells in rows for target in re.findall(r"`([^`]+)`", cells[1])) == sorted(list_gpus())

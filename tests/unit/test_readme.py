"""What the documents tell people to type is what the program understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from tsns.cli import arguments
from tsns.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
COMMANDS = {*(info.name for info in app.registered_commands), *(info.name for info in app.registered_groups)}


def typed(document: Path) -> list[list[str]]:
    """The words of each `$ ...` line of a document."""
    lines = re.findall(r"^\$ (.+)$", document.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def of_tsns() -> list[list[str]]:
    found = []
    for document in DOCUMENTS:
        for words in typed(document):
            bare = words[1:] if words[0] == "sudo" else words
            if bare[0] == "tsns":
                found.append(bare[1:])
    return found


@pytest.mark.parametrize("words", of_tsns(), ids=" ".join)
def test_each_command_line_is_understood(words: list[str]) -> None:
    command, *rest = words
    assert command in COMMANDS
    if command in arguments.NAMES:
        arguments.parse(command, rest)  # UsageError otherwise
    else:
        group = typer.main.get_command(app)
        found = group.get_command(None, command)  # type: ignore[attr-defined]
        known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known


def test_each_command_has_its_row() -> None:
    rows = set(re.findall(r"^\| `tsns ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert rows == COMMANDS


def test_each_flag_in_the_table_exists() -> None:
    flags = re.findall(r"^\| `--(no-)?([a-z-]+)[ `]", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name for _, name in flags} <= {flag.name for flag in arguments.RUN_FLAGS}
    assert len(flags) >= 8


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_script_and_link_is_there(document: Path) -> None:
    text = document.read_text()
    scripts = {word for words in typed(document) for word in words if word.startswith("scripts/")}
    links = {link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not link.startswith("http")}
    missing = [name for name in scripts if not (ROOT / name).exists()]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert missing == []


def test_each_test_that_a_claim_names_is_there() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", text))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in code} == set()
    paths = set(re.findall(r"`((?:tests|docs|scripts|tsns)/[a-z0-9_/.]+?)/?`", text))
    assert {path for path in paths if not (ROOT / path).exists()} == set()

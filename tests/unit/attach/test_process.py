"""Finding the command before anything is given up for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsns.attach.process import NOT_EXECUTABLE, NOT_FOUND, find_program
from tsns.error import UserError


def program(path: Path, mode: int = 0o755) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_a_bare_name_is_searched_in_path_in_order(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        program(tmp_path / name / "tool")
    assert find_program("tool", {"PATH": f"{tmp_path}/none:{tmp_path}/two:{tmp_path}/one"}) == f"{tmp_path}/two/tool"


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = program(tmp_path / "tool")
    assert find_program(path, {"PATH": ""}) == path


@pytest.mark.parametrize("command", ["no-such-command", "./no/such/path", ""])
def test_what_is_not_there_is_127(command: str) -> None:
    with pytest.raises(UserError) as caught:
        find_program(command, {"PATH": "/bin"})
    assert caught.value.status == NOT_FOUND


def test_a_directory_is_126(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_program(str(tmp_path), {})
    assert caught.value.status == NOT_EXECUTABLE


def test_a_file_without_the_right_is_126(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_program(program(tmp_path / "data", 0o644), {})
    assert caught.value.status == NOT_EXECUTABLE

"""A node's log: two files of bounded size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsns.node import logfile
from tsns.node.logfile import LogFile


def test_a_full_log_becomes_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "MAX_FILE_BYTES", 10)
    log = LogFile(tmp_path / "log")
    for line in (b"first\n", b"second\n", b"third\n"):
        log.write(line)
    log.close()
    assert (tmp_path / "log").read_bytes() == b"third\n"
    assert (tmp_path / "log.1").read_bytes() == b"second\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        log = LogFile(tmp_path / "log")
        log.write(line)
        log.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_log_that_cannot_be_written_costs_lines_only(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "missing" / "log")
    log.write(b"lost\n")
    log.close()
    assert not (tmp_path / "missing").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    log = LogFile(tmp_path / "log")
    log.write(b"line\n")
    log.close()
    assert not (tmp_path / "elsewhere").exists()

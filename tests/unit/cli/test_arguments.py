"""One table of flags, two parsers: each line is read by both, and both find the same."""

from __future__ import annotations

from typing import Any

import pytest

from tsns import settings
from tsns.cli import app, arguments, enter
from tsns.cli.arguments import Parsed
from tsns.error import UsageError, UserError
from tsns.settings import SETTINGS


class _Stop(BaseException):
    """Ends a command where its work would begin."""


def by_typer(monkeypatch: pytest.MonkeyPatch, command: str, argv: list[str]) -> Parsed:
    """What typer finds in a `run` or `exec`."""
    seen: list[Parsed] = []

    def stop(parsed: Parsed) -> None:
        seen.append(parsed)
        raise _Stop

    monkeypatch.setattr(enter, "run", stop)
    monkeypatch.setattr(enter, "execute", stop)
    with pytest.raises(_Stop):
        app.main([command, *argv])
    return seen[0]


LINES: list[tuple[str, str, dict[str, Any], list[str], list[str]]] = [
    ("run", "-- true", {}, [], ["true"]),
    ("run", "true --version -x", {}, [], ["true", "--version", "-x"]),
    ("run", "-- env -- x", {}, [], ["env", "--", "x"]),
    ("run", "--name web -- curl -q http://x/", {"name": "web"}, [], ["curl", "-q", "http://x/"]),
    ("run", "--name=web sh -c x", {"name": "web"}, [], ["sh", "-c", "x"]),
    ("run", "--name= -- x", {"name": ""}, [], ["x"]),
    ("run", "--login-server https://a --login-server=https://b -- x", {"login-server": "https://b"}, [], ["x"]),
    ("run", "--auth-key k1 -- x", {"auth-key": "k1"}, [], ["x"]),
    ("run", "--authkey k1 -- x", {"auth-key": "k1"}, [], ["x"]),
    ("run", "--authkey=k=1 -- x", {"auth-key": "k=1"}, [], ["x"]),
    ("run", "--auth-key - -- x", {"auth-key": "-"}, [], ["x"]),
    ("run", "--auth-key - x -", {"auth-key": "-"}, [], ["x", "-"]),
    ("run", "--accept-dns -- x", {"accept-dns": True}, [], ["x"]),
    ("run", "--no-accept-dns -- x", {"accept-dns": False}, [], ["x"]),
    ("run", "--accept-dns=false -- x", {"accept-dns": False}, [], ["x"]),
    ("run", "--accept-dns=0 x", {"accept-dns": False}, [], ["x"]),
    ("run", "--accept-dns=TRUE -- x", {"accept-dns": True}, [], ["x"]),
    ("run", "--shields-up --no-shields-up x", {"shields-up": False}, [], ["x"]),
    ("run", "--no-shields-up --shields-up=t x", {"shields-up": True}, [], ["x"]),
    ("run", "--ephemeral=f -- x --ephemeral=t", {"ephemeral": False}, [], ["x", "--ephemeral=t"]),
    ("run", "--only-tailnet -- x", {"with-internet": False}, [], ["x"]),
    ("run", "--with-internet x --only-tailnet", {"with-internet": True}, [], ["x", "--only-tailnet"]),
    ("run", "--with-internet --only-tailnet=false x", {"with-internet": True}, [], ["x"]),
    ("run", "--exit-node= --accept-routes -- x", {"exit-node": "", "accept-routes": True}, [], ["x"]),
    ("run", "--exit-node auto:any x", {"exit-node": "auto:any"}, [], ["x"]),
    ("run", "--keep-caps -- x", {"keep-caps": True}, [], ["x"]),
    ("run", "--keep-caps=false -- x", {}, [], ["x"]),
    ("run", "--keep-caps --no-keep-caps x", {}, [], ["x"]),
    ("run", "-q -- x", {"quiet": True}, [], ["x"]),
    ("run", "-vv -- x", {"verbose": 2}, [], ["x"]),
    ("run", "-v --verbose -qv -- x", {"verbose": 3, "quiet": True}, [], ["x"]),
    (
        "run",
        "--timeout 5 --capver 113 --advertise-tags a,b -- x",
        {"timeout": "5", "capver": "113", "advertise-tags": "a,b"},
        [],
        ["x"],
    ),
    ("run", "--hostname h --accept-unverified-peers x", {"hostname": "h", "accept-unverified-peers": True}, [], ["x"]),
    ("run", "--timeout -5 -- x", {"timeout": "-5"}, [], ["x"]),
    ("run", "", {}, [], []),
    ("run", "--", {}, [], []),
    ("exec", "web -- true", {}, ["web"], ["true"]),
    ("exec", "web true -x", {}, ["web"], ["true", "-x"]),
    ("exec", "-q web --keep-caps -- ls -l", {"quiet": True, "keep-caps": True}, ["web"], ["ls", "-l"]),
    ("exec", "--keep-caps web ls", {"keep-caps": True}, ["web"], ["ls"]),
    ("exec", "web", {}, ["web"], []),
]


@pytest.mark.parametrize(
    ("command", "line", "given", "words", "child"), LINES, ids=[f"{line[0]} {line[1]}" for line in LINES]
)
def test_both_parsers_read_the_same(
    monkeypatch: pytest.MonkeyPatch, command: str, line: str, given: dict[str, Any], words: list[str], child: list[str]
) -> None:
    expected = Parsed(given=given, words=words, command=child)
    assert arguments.parse(command, line.split()) == expected
    assert by_typer(monkeypatch, command, line.split()) == expected


WRONG = [
    ("run", "--bogus -- x"),
    ("run", "--no-bogus -- x"),
    ("run", "--no-hostname -- x"),
    ("run", "--only-tailnet=maybe -- x"),
    ("run", "--no-only-tailnet -- x"),
    ("run", "-x -- true"),
    ("run", "-qx -- true"),
    ("run", "--hostname"),
    ("run", "--hostname -- x"),
    ("run", "--accept-dns=maybe -- x"),
    ("run", "--no-accept-dns=true -- x"),
    ("run", "--verbose=2 -- x"),
    ("exec", "--hostname a web -- x"),
]


@pytest.mark.parametrize(("command", "line"), WRONG)
def test_both_parsers_refuse_the_same(monkeypatch: pytest.MonkeyPatch, command: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        arguments.parse(command, line.split())
    assert caught.value.hint
    with pytest.raises(UsageError):
        by_typer(monkeypatch, command, line.split())


def test_a_slip_gets_the_word_that_was_meant() -> None:
    with pytest.raises(UsageError) as caught:
        arguments.parse("run", ["--hostnam", "x"])
    assert "--hostname" in caught.value.hint


def test_a_word_before_the_dashes_is_told_from_the_command() -> None:
    with pytest.raises(UsageError, match="'web' stands before --") as caught:
        arguments.parse("run", ["web", "--", "true"])
    assert "--name web" in caught.value.hint


def test_up_takes_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def stop(_name: str, given: dict[str, Any], _environ: object, **_more: object) -> None:
        seen.append(given)
        raise UserError("far enough", "-")

    monkeypatch.setattr(settings, "node_config", stop)
    line = "web --login-server=https://a --authkey - --shields-up=true --no-accept-dns --ephemeral --timeout 3 -q"
    with pytest.raises(UserError, match="far enough"):
        app.main(["up", *line.split()])
    assert seen == [
        {
            "login-server": "https://a",
            "auth-key": "-",
            "shields-up": True,
            "accept-dns": False,
            "ephemeral": True,
            "timeout": "3",
            "quiet": True,
        }
    ]


def test_the_table_is_consistent() -> None:
    for flags in arguments.FLAGS.values():
        options = [option for flag in flags for option in flag.options]
        assert len(options) == len(set(options))
    fields = [flag.field for flag in SETTINGS]
    assert len(fields) == len(set(fields))


@pytest.mark.parametrize(
    ("argv", "leading", "rest"),
    [
        (["ls"], [], ["ls"]),
        (["-q", "-vv", "run", "-q"], ["-q", "-vv"], ["run", "-q"]),
        (["--quiet", "--verbose", "ls"], ["--quiet", "--verbose"], ["ls"]),
        (["-x", "ls"], [], ["-x", "ls"]),
        (["-", "ls"], [], ["-", "ls"]),
        ([], [], []),
    ],
)
def test_quiet_and_verbose_may_stand_before_the_command(argv: list[str], leading: list[str], rest: list[str]) -> None:
    assert arguments.split_leading(argv) == (leading, rest)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--json=true"], ["--json"]),
        (["--json=false"], []),
        (["--json", "--no-json"], []),
        (["--no-json", "--json"], ["--json"]),
        (["--peers=false"], ["--no-peers"]),
        (["--no-peers"], ["--no-peers"]),
        (["--peers=1", "x"], ["--peers", "x"]),
        (["--", "--json=false"], ["--", "--json=false"]),
        (["--other=false"], ["--other=false"]),
    ],
)
def test_spellings_are_made_plain_for_typer(argv: list[str], expected: list[str]) -> None:
    assert arguments.normalise(argv, {"--json", "--peers"}, {"--peers"}) == expected

"""Every way to fail: one `error:` line, one `hint:` line, the right exit status, and nothing on standard output."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tsns.__main__ import main
from tsns.attach import process
from tsns.cli.enter import ONLY_TAILNET
from tsns.config import NodeConfig
from tsns.error import ProtocolError, RetryableError, UserError
from tsns.node import client


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSNS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TSNS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SUDO_UID", "XDG_CONFIG_HOME", "TS_AUTHKEY", "TS_AUTH_KEY", "TS_LOGIN_SERVER", "TS_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def complaint(capfd: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The error and the hint; fails if there is anything else."""
    output, errors = capfd.readouterr()
    assert output == ""
    first, second = errors.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint: ")
    return first[7:], second[6:]


@pytest.mark.parametrize(
    ("line", "status", "part"),
    [
        ("bogus", 2, "no such command"),
        ("--bogus", 2, "no such option"),
        ("status --bogus", 2, "no such option"),
        ("status --exit-node x", 2, "no such option"),
        ("status a b", 2, "unexpected extra argument"),
        ("ping -c x web", 2, "-c"),
        ("ping", 2, "nobody to ping"),
        ("up", 2, "no node's name"),
        ("up web more", 2, "one word too many"),
        ("up web -- true", 2, "takes no command"),
        ("up Web", 2, "'Web'"),
        ("up web --timeout x", 2, "--timeout"),
        ("up web --hostname", 2, "--hostname"),
        ("down", 2, "say which nodes"),
        ("down a --all", 2, "say which nodes"),
        ("rm", 2, "missing argument"),
        ("ip web -4 -6", 2, "-4 and -6"),
        ("-v", 2, "missing command"),
        ("run", 125, "no command to run"),
        ("run --", 125, "no command to run"),
        ("run --bogus -- true", 125, "no such option"),
        ("run --name Web -- true", 125, "'Web'"),
        ("run --name= -- true", 125, "--name is empty"),
        ("run --no-ephemeral -- true", 125, "always ephemeral"),
        ("run --timeout 0 -- true", 125, "--timeout"),
        ("run --auth-key file:/no/such -- true", 125, "/no/such"),
        ("exec", 125, "no node's name"),
        ("exec web", 125, "no command to execute"),
        ("exec web -- true", 125, "not running"),
        ("run -- no-such-command", 127, "no-such-command"),
        ("run -- /no/such/command", 127, "/no/such/command"),
        ("run -- /etc/passwd", 126, "/etc/passwd"),
        ("exec web -- no-such-command", 127, "no-such-command"),
        ("-q run -- no-such-command", 127, "no-such-command"),
        ("status", 1, "no node is running"),
        ("status web", 1, "no node web"),
        ("logs web", 1, "no log"),
        ("down web", 1, "not running"),
        ("rm web", 1, "no node web"),
        ("login web", 1, "not running"),
        ("login web --auth-key file:/no/such", 1, "/no/such"),
        ("login Web", 2, "'Web'"),
        ("login", 2, "missing argument"),
        ("logout web", 1, "not running"),
        ("logout", 2, "missing argument"),
    ],
)
def test_what_a_person_can_get_wrong(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str, status: int, part: str
) -> None:
    as_root(monkeypatch)
    assert main(line.split()) == status
    error, hint = complaint(capfd)
    assert part in error
    assert hint


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("exec web -- true", 125),
        ("shell web", 125),
        ("down web", 1),
        ("status web", 1),
        ("login web", 1),
        ("logout web", 1),
    ],
)
def test_who_has_no_such_node_is_told_of_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str, status: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(client, "DEFAULT_RUN", tmp_path)
    assert main(line.split()) == status
    error, hint = complaint(capfd)
    assert "sudo" not in hint
    (tmp_path / "web.ctl").touch()
    if line.split(maxsplit=1)[0] != "status":  # which its owner may ask for without sudo
        assert main(line.split()) == status
        error, hint = complaint(capfd)
        assert "root has one" in error
        assert "sudo" in hint


FAILURES = [
    (UserError("no such key", "ask for one"), 1),
    (ProtocolError("garbage"), 1),
    (RetryableError("away"), 1),
    (PermissionError(13, "Permission denied", "/x"), 1),
    (ValueError("our own\nbug"), 1),
    (RecursionError(), 1),
]


@pytest.mark.parametrize(("failure", "status"), FAILURES, ids=[type(failure).__name__ for failure, _ in FAILURES])
def test_no_failure_ends_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failure: Exception, status: int
) -> None:
    as_root(monkeypatch)
    monkeypatch.setattr(client, "start", raising(failure))
    assert main(["up", "web"]) == status
    complaint(capfd)
    assert main(["run", "--", "true"]) == 125
    complaint(capfd)
    assert main(["run", "-vv", "--", "true"]) == 125
    assert "Traceback" in capfd.readouterr().err


def test_a_strangers_words_cannot_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    as_root(monkeypatch)
    monkeypatch.setattr(client, "start", raising(UserError("server says \x1b[2J\r\nerror: nothing", "a\nb")))
    assert main(["up", "web"]) == 1
    error, hint = complaint(capfd)
    assert error == "server says [2J error: nothing"
    assert hint == "a b"


@pytest.mark.parametrize("line", ["up web", "run -- true", "exec web -- true", "status"])
def test_control_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str) -> None:
    as_root(monkeypatch)
    for name in ("start", "join", "names"):
        monkeypatch.setattr(client, name, raising(KeyboardInterrupt()))
    assert main(line.split()) == 130
    assert capfd.readouterr() == ("", "")


def test_a_reader_that_leaves_is_no_failure_to_tell(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "names", raising(BrokenPipeError()))
    monkeypatch.setattr("tsns.cli.terminal.silence_output", lambda: None)
    assert main(["ls"]) == 1
    assert capfd.readouterr() == ("", "")


# --- what run hands on


class Entered(BaseException):
    """Instead of becoming the command."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What `run` and `exec` would have done, as root."""
    seen: list[tuple[object, ...]] = []
    as_root(monkeypatch)

    def start(config: NodeConfig, where: client.Places, progress: Callable[[str], None], *, lasting: bool) -> str:
        progress("getting ready")
        seen.append(("start", config, where.run.name, lasting, dict(os.environ)))
        return "entry"

    def join(name: str, where: client.Places, progress: Callable[[str], None]) -> str:
        progress("getting ready")
        seen.append(("join", name, where.run.name))
        return "entry"

    def run_in(entry: str, command: list[str], *, keep_caps: bool) -> NoReturn:
        seen.append(("run_in", entry, command, keep_caps, signal.getsignal(signal.SIGALRM)))
        raise Entered

    monkeypatch.setattr(client, "start", start)
    monkeypatch.setattr(client, "join", join)
    monkeypatch.setattr(process, "run_in", run_in)
    monkeypatch.setattr("tsns.cli.terminal.report", lambda *_, **__: 99)
    return seen


def test_a_nameless_run_is_ephemeral_and_does_not_last(
    calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_AUTHKEY", "tskey-1")
    monkeypatch.setenv("TS_AUTH_KEY", "tskey-2")
    before = signal.getsignal(signal.SIGALRM)
    assert main(["run", "--", "true", "-x"]) == 99
    (_, config, run_dir, lasting, environ), (_, entry, command, keep_caps, alarm) = calls
    assert isinstance(config, NodeConfig)
    assert config.name.startswith("run-")
    assert config.ephemeral
    assert config.auth_key is not None
    assert config.auth_key.reveal() == "tskey-1"
    assert isinstance(environ, dict)
    assert not any("tskey" in value for value in environ.values())
    assert (run_dir, lasting, entry, command, keep_caps) == ("run", False, "entry", ["true", "-x"], False)
    assert alarm is before


def test_a_named_run_lasts_and_keeps_what_it_was_told(
    calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        client, "saved_settings", lambda name, _where: {"hostname": f"{name}-before", "shields_up": True}
    )
    assert main(["run", "--name", "web", "--no-shields-up", "--keep-caps", "true"]) == 99
    (_, config, _, lasting, _), (_, _, _, keep_caps, _) = calls
    assert isinstance(config, NodeConfig)
    assert (config.name, config.hostname, config.shields_up, config.ephemeral) == ("web", "web-before", False, False)
    assert lasting
    assert keep_caps


def test_exec_joins_and_forgets_secrets(calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_AUTHKEY", "tskey-1")
    assert main(["exec", "web", "--", "true"]) == 99
    assert calls[0] == ("join", "web", "run")
    assert calls[1][:4] == ("run_in", "entry", ["true"], False)
    assert "TS_AUTHKEY" not in os.environ


def test_without_words_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["--help", "run --help", "run -h", "exec web -h", "up --help", "-q status --help"])
def test_help_is_an_answer(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert main(line.split()) == 0
    assert capsys.readouterr().out.startswith("Usage: tsns")


def test_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith("tsns ")


def test_only_the_first_run_on_a_terminal_says_what_is_reachable(
    calls: list[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--", "true"]) == 99
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 2)
    said = []
    for line in ("-q run -- true", "run -- true", "run -- true"):
        assert main(line.split()) == 99
        said.append(ONLY_TAILNET in capfd.readouterr().err)
    assert said == [False, True, False]


def test_labels_have_colour_only_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["bogus"]) == 2
    assert capfd.readouterr().err.startswith("\x1b[1;31merror:\x1b[0m ")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["bogus"]) == 2
    assert capfd.readouterr().err.startswith("error: ")

"""What goes wrong is told in one `error:` line and one `hint:` line, with the right exit status, and leaves nothing behind."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns


def expect(done: subprocess.CompletedProcess[str], status: int, error: str) -> None:
    """One error, one hint, nothing else that could be mistaken for either."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("tsns:")]
    kinds = [line.partition(":")[0] for line in lines if line.partition(":")[0] in ("error", "hint")]
    assert kinds == ["error", "hint"], done.stderr
    assert error in next(line for line in lines if line.startswith("error:")), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr


class SilentHandler(http.server.BaseHTTPRequestHandler):
    """Knows no page, and tells nobody."""

    def do_GET(self) -> None:
        """Not here."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def web_server() -> Iterator[str]:
    """Something that speaks HTTP and is no control server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SilentHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_wrong_auth_key(tsns: Tsns) -> None:
    flags = ("--login-server", tsns.lab.url, "--auth-key", "hskey-auth-wrong")
    expect(tsns("run", *flags, "--", "true"), 125, "auth")
    expect(tsns("up", "web", *flags), 1, "auth")
    assert "hskey-auth-wrong" not in tsns("up", "web", *flags).stderr


def test_an_unreachable_server(tsns: Tsns) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = tsns("run", "--login-server", url, "--auth-key", "k", "--timeout", "2", "--", "true")
    expect(done, 125, "2 s")
    assert url.removeprefix("http://") in done.stderr


def test_a_server_that_is_no_control_server(tsns: Tsns) -> None:
    with web_server() as url:
        expect(tsns("run", "--login-server", url, "--auth-key", "k", "--", "true"), 125, "control server")


def test_no_tun_device(tsns: Tsns) -> None:
    run, stop = (
        " ".join(tsns.command(*words)) for words in (("run", *tsns.lab.login, "--", "true"), ("serve", "--stop", "-q"))
    )
    script = f"mount -t tmpfs none /dev/net && {run}; status=$?; {stop}; exit $status"  # another "host", another server
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        env=tsns.environ,
        check=False,
    )
    expect(done, 125, "/dev/net/tun")
    assert "modprobe tun" in done.stderr


def test_a_name_that_is_taken_on_another_tailnet(tsns: Tsns) -> None:
    tsns.up("web")
    for command in (("up", "web"), ("run", "--name", "web")):
        more = ("--", "true") if command[0] == "run" else ()
        done = tsns(*command, "--login-server", "http://127.0.0.1:1", "--auth-key", "k", *more)
        expect(done, 125 if more else 1, f"belongs to {tsns.lab.url}")
    assert tsns("exec", "web", "--", "true").returncode == 0  # it was left alone
    tsns("down", "web")
    done = tsns("up", "web", "--login-server", "http://127.0.0.1:1")
    expect(done, 1, f"belongs to {tsns.lab.url}")


def test_a_missing_command_is_told_before_anything_is_made(tsns: Tsns) -> None:
    expect(tsns("run", *tsns.lab.login, "--", "no-such-command"), 127, "no-such-command")
    expect(tsns("run", *tsns.lab.login, "--", os.devnull), 127, os.devnull)
    expect(tsns("run", *tsns.lab.login, "--", "/etc"), 126, "/etc")
    expect(tsns("run", *tsns.lab.login, "--", "/etc/passwd"), 126, "/etc/passwd")
    assert not list(tsns.directories.run.glob("*.ctl"))


def test_queries_of_what_does_not_run(tsns: Tsns) -> None:
    expect(tsns("exec", "web", "--", "true"), 125, "not running")
    expect(tsns("down", "web"), 1, "web")
    expect(tsns("rm", "web"), 1, "web")
    assert tsns("status", "web").returncode == 1


def test_a_damaged_identity_is_moved_aside_and_told(tsns: Tsns) -> None:
    tsns.up("web")
    tsns("down", "web")
    identity = tsns.directories.state / "web" / "identity.json"
    identity.write_bytes(b'{"version": 1, "machine')
    expect(tsns("up", "web"), 1, "identity")
    [aside] = identity.parent.glob("identity.json.damaged-*")
    assert aside.read_bytes() == b'{"version": 1, "machine'
    assert not identity.exists()

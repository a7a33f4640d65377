"""Ways into a tailnet and out of it, as a person sees them: URL, approval, keys that run out, login, logout."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab

pytestmark = pytest.mark.netns

PATIENCE_S = 10.0
AGAIN_WITHIN_S = 6.5  # a handshake that came too early for the peer is tried again after 5 s
URL_WORDS = "to log in, open "


def until(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Wait until something holds; how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < patience_s, "it never came true"
        time.sleep(0.05)
    return time.monotonic() - began


def url_of(process: subprocess.Popen[str]) -> str:
    """The login URL that a waiting command shows."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(URL_WORDS):
            return line.removeprefix(URL_WORDS).strip()
    raise AssertionError("it ended without a URL")


def visit(url: str) -> None:
    """A person logs in."""
    with urllib.request.urlopen(url, timeout=5) as page:
        assert page.status == 200


def state(tsns: Tsns, name: str = "web") -> dict[str, Any]:
    """The node's status."""
    found: dict[str, Any] = tsns.json_of("status", name)
    return found


def is_in(tsns: Tsns, name: str, word: str) -> Callable[[], bool]:
    return lambda: state(tsns, name)["state"] == word


def keys(lab: SteeredLab) -> dict[str, str]:
    """The node keys that control knows, by name."""
    return lab.do(lambda lab: {node.name: str(node.key) for node in lab.tailnet.nodes.values()})


def reaches(tsns: Tsns, name: str, peer: str) -> bool:
    return tsns("ping", name, peer, "-c", "1", "--timeout", "1").returncode == 0


def expire(lab: SteeredLab, name: str, *, never: bool = False) -> None:
    def change(lab: Any) -> None:
        node = lab.tailnet.find(name)
        lab.tailnet.change(node, expires_at=None if never else lab.control.now())

    lab.do(change)


def one_shot(lab: SteeredLab) -> tuple[str, ...]:
    """The flags with a key that lets in one node."""
    return ("--login-server", lab.process.url, "--auth-key", lab.do(lambda lab: lab.auth_key(reusable=False)))


def up(tsns: Tsns, name: str, *flags: str) -> None:
    done = tsns("up", name, *flags)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tsns(steered_tsns: Tsns) -> Tsns:
    return steered_tsns


@pytest.fixture
def lab(steered: SteeredLab) -> SteeredLab:
    return steered


def test_a_login_url_is_shown_at_once_and_opened(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a URL that is swallowed by a spinner, and against a wait that does not notice the visit."""
    began = time.monotonic()
    with tsns.popen("up", "web", "--login-server", lab.process.url) as process:
        url = url_of(process)
        assert time.monotonic() - began < 4.0
        waiting = state(tsns)
        assert (waiting["state"], waiting["login_url"]) == ("needs-login", url)
        assert process.stderr is not None
        assert process.stderr.readline() == "tsns: waiting: waiting for somebody to log in\n"
        visit(url)
        assert process.wait(PATIENCE_S) == 0
    assert state(tsns)["state"] == "running"
    assert state(tsns)["login_url"] == ""


def test_a_login_that_is_given_up_leaves_nothing(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a namespace, a process or a half-made identity after Ctrl-C."""
    with tsns.popen("up", "web", "--login-server", lab.process.url) as process:
        url_of(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    until(lambda: tsns.json_of("ls")["nodes"] == [])
    assert not (tsns.directories.state / "web" / "identity.json").exists()
    assert lab.nodes() == []


def test_a_node_that_waits_for_approval(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a node that is ready before it is approved, or never notices that it is."""

    def require(lab: Any) -> None:
        lab.control.registrar.approval_required = True

    lab.do(require)
    with tsns.popen("up", "web", *tsns.lab.login) as process:
        until(lambda: tsns.json_of("ls")["nodes"] and state(tsns)["state"] == "needs-approval")
        assert process.poll() is None
        lab.do(lambda lab: lab.control.authorize("web"))
        assert process.wait(PATIENCE_S) == 0
    assert state(tsns)["state"] == "running"


def test_a_key_that_runs_out_is_renewed_in_silence(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a node that dies with its key, that gets a second entry, or that keeps the spent key to its peers."""
    for name in ("web", "db"):
        up(tsns, name, *tsns.lab.login)
    before = keys(lab)
    expire(lab, "web")
    until(lambda: keys(lab)["web"] != before["web"])
    until(is_in(tsns, "web", "running"))
    assert sorted(keys(lab)) == ["db", "web"]
    until(lambda: reaches(tsns, "web", "db"))
    assert state(tsns)["login_url"] == ""


def test_a_key_that_runs_out_and_a_spent_auth_key(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a renewal by a spent key ending the node, a data plane that lives on without a key, and against missing that an
    administrator has extended the key meanwhile."""
    up(tsns, "web", *one_shot(lab))
    up(tsns, "db", *tsns.lab.login)
    before = keys(lab)
    until(lambda: reaches(tsns, "web", "db"))
    expire(lab, "web")
    until(lambda: state(tsns)["login_url"])
    assert state(tsns)["state"] == "needs-login"
    assert not reaches(tsns, "web", "db")

    expire(lab, "web", never=True)
    until(is_in(tsns, "web", "running"))
    assert state(tsns)["login_url"] == ""
    assert keys(lab) == before
    until(lambda: reaches(tsns, "web", "db"))

    expire(lab, "web")
    until(lambda: state(tsns)["login_url"])
    visit(state(tsns)["login_url"])
    until(is_in(tsns, "web", "running"))
    assert keys(lab)["web"] != before["web"]
    assert sorted(keys(lab)) == ["db", "web"]
    until(lambda: reaches(tsns, "web", "db"))


def test_a_deleted_node_is_let_in_again(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against sessions that the peers have ended: without a word from them WireGuard holds on to one for 15 s."""
    for name in ("web", "db"):
        up(tsns, name, *tsns.lab.login)
    until(lambda: reaches(tsns, "web", "db"))
    before = keys(lab)
    lab.do(lambda lab: lab.control.remove("web"))
    lab.wait(lambda lab: lab.control.drop_connections())  # the next stream is refused
    until(lambda: keys(lab).get("web"))
    until(is_in(tsns, "web", "running"))
    assert keys(lab) == before
    assert until(lambda: reaches(tsns, "web", "db")) < AGAIN_WITHIN_S


def test_a_spent_one_shot_key_is_good_for_a_restart(tsns: Tsns, lab: SteeredLab, tmp_path: Path) -> None:
    """Guards against a node whose configuration names the key that let it in, and which never comes back because of that."""
    flags = one_shot(lab)
    (tmp_path / "key").write_text(f"{flags[-1]}\n")
    flags = (*flags[:-1], f"file:{tmp_path}/key")
    up(tsns, "web", *flags)
    before = keys(lab)
    assert tsns("down", "web").returncode == 0
    up(tsns, "web", *flags)
    assert keys(lab) == before


def test_logout_and_login_keep_the_namespace(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a logout that ends the node or leaves it on the tailnet, and a login that makes another node of it."""
    for name in ("web", "db"):
        up(tsns, name, *tsns.lab.login)
    before, address = keys(lab), state(tsns)["self"]["addresses"]
    with tsns.popen("exec", "web", "--", "sleep", "60") as inside:
        until(lambda: any(item["name"] == "sleep" for item in state(tsns)["attached"]))
        assert tsns.json_of("logout", "web") == {"schema": 1, "name": "web", "state": "needs-login"}
        assert lab.do(lambda lab: lab.tailnet.find("web").expired(lab.control.now()))
        assert state(tsns)["state"] == "needs-login"
        assert (tsns.directories.state / "web" / "netmap.cache").read_bytes() == b""
        assert not reaches(tsns, "web", "db")
        assert not reaches(tsns, "db", "web")
        assert tsns("logout", "web").returncode == 0

        wrong = tsns("login", "web", "--auth-key", "hskey-auth-wrong")
        assert wrong.returncode == 1
        assert "invalid pre auth key" in wrong.stderr
        assert state(tsns)["state"] == "needs-login"

        done = tsns("login", "web", "--auth-key", "-", stdin=f"{tsns.lab.auth_key}\n")
        assert done.returncode == 0, done.stderr
        assert inside.poll() is None
        assert state(tsns)["self"]["addresses"] == address
        assert any(item["name"] == "sleep" for item in state(tsns)["attached"])
        assert keys(lab)["web"] != before["web"]
        assert sorted(keys(lab)) == ["db", "web"]
        until(lambda: reaches(tsns, "web", "db"))
        inside.kill()


def test_a_login_that_waits_disturbs_nobody(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a data plane that stops while the URL is pending, and against traces of a login that was given up."""
    for name in ("web", "db"):
        up(tsns, name, *tsns.lab.login)
    before = keys(lab)
    address = state(tsns, "db")["self"]["addresses"][0]
    until(lambda: reaches(tsns, "web", "db"))
    with tsns.popen("exec", "web", "--", "ping", "-q", "-i", "0.02", "-c", "100", address) as ping:
        with tsns.popen("login", "web") as process:
            url = url_of(process)
            found = state(tsns)
            assert (found["state"], found["login_url"]) == ("running", url)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
        output, _ = ping.communicate(timeout=PATIENCE_S)
        assert "100 received" in output
    assert state(tsns)["login_url"] == ""
    assert keys(lab) == before

    with tsns.popen("login", "web", "--json") as process:
        visit(url_of(process))
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert '"state": "running"' in output
    assert keys(lab)["web"] != before["web"]
    until(lambda: reaches(tsns, "web", "db"))


def test_login_of_what_does_not_run(tsns: Tsns) -> None:
    for command in ("login", "logout"):
        done = tsns(command, "web")
        assert done.returncode == 1
        assert "not running" in done.stderr


def test_a_public_http_server_is_asked_by_https_only(tsns: Tsns) -> None:
    """Guards against a key that is fetched in the clear from a server that is not in a private network."""
    subprocess.run(["ip", "address", "add", "9.9.9.77/32", "dev", "lo"], check=True)
    try:
        done = tsns("run", "--login-server", "http://9.9.9.77", "--auth-key", "k", "--", "true")
    finally:
        subprocess.run(["ip", "address", "del", "9.9.9.77/32", "dev", "lo"], check=True)
    assert done.returncode == 125
    assert "plain http" in done.stderr
    assert "https://9.9.9.77" in done.stderr

"""`tsns run -- cmd`: only this command is on the tailnet, and it is the person's own command in every other respect."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.machine import patiently
from tests.netns.nodes import Tsns, running_lab

pytestmark = pytest.mark.netns

PAGE = "the page of the node web"
SERVER = f"""
import http.server, socket
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write({PAGE.encode()!r})
    def log_message(self, *_): pass
server = Server(("::", 80), Page)
print("serves", flush=True)
server.serve_forever()
"""
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
DOCKER_CAPABILITIES = "00000000a80425fb"


def field_of(status: str, field: str) -> str:
    """A field of /proc/PID/status."""
    return next(line.split(":")[1].strip() for line in status.splitlines() if line.startswith(field))


def has_ended(pid: int) -> bool:
    """Whether a process is no more, or only waits to be reaped."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or field_of(status.read_text(), "State").startswith("Z")


def test_a_page_is_fetched_by_name_and_by_both_families(tsns: Tsns) -> None:
    tsns.up("web")
    addresses = tsns.json("ip", "web")["addresses"]
    with tsns.serving("web", SERVER):
        for host in ("web", *(f"[{address}]" if ":" in address else address for address in addresses)):
            done = tsns.run(sys.executable, "-c", FETCH, f"http://{host}/")
            assert (done.returncode, done.stdout) == (0, f"{PAGE}\n"), done.stderr
    assert len(addresses) == 2


def test_ping_both_ways_loses_nothing(tsns: Tsns) -> None:
    tsns.up("old")
    tsns.up("new")
    for source, target in (("new", "old"), ("old", "new")):
        for family in ("-4", "-6"):
            done = tsns("exec", source, "--", "ping", family, "-c", "3", "-i", "0.2", "-W", "2", target)
            assert " 0% packet loss" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 7", 7), ("true", 0), ("kill -TERM $$", -signal.SIGTERM), ("kill -KILL $$", -signal.SIGKILL)],
)
def test_the_exit_status_is_the_commands_own(tsns: Tsns, script: str, status: int) -> None:
    assert tsns.run("sh", "-c", script).returncode == status


def test_standard_input_and_output_are_the_commands_own(tsns: Tsns) -> None:
    login = ("--login-server", tsns.lab.url, "--auth-key", "-")
    done = tsns("run", *login, "--", "cat", stdin=f"{tsns.lab.ephemeral_auth_key}\nfor the command\n")
    assert (done.returncode, done.stdout) == (0, "for the command\n"), done.stderr


def test_the_command_hears_control_c_and_keeps_its_terminal(tsns: Tsns) -> None:
    login = ("--login-server", tsns.lab.url, "--auth-key", tsns.lab.ephemeral_auth_key)
    pid, terminal = pty.fork()
    if pid == 0:
        words = tsns.command("run", *login, "--", "sh", "-c", "tty; sleep 30")
        os.execve(words[0], words, tsns.environ)
    seen = b""
    while b"/dev/" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT


def test_root_keeps_what_docker_would_leave_it(tsns: Tsns) -> None:
    status = tsns.run("cat", "/proc/self/status").stdout
    assert {field_of(status, field) for field in ("CapPrm", "CapEff", "CapBnd")} == {DOCKER_CAPABILITIES}
    assert set(field_of(status, "CapAmb")) == {"0"}
    kept = tsns.run("cat", "/proc/self/status", flags=("--keep-caps",)).stdout
    assert field_of(kept, "CapBnd") == field_of(Path("/proc/self/status").read_text(), "CapBnd")


def test_through_sudo_the_command_is_the_callers(tsns: Tsns) -> None:
    nobody = replace(tsns, environment={"SUDO_UID": "65534", "SUDO_GID": "65534"})
    status = nobody.run("cat", "/proc/self/status").stdout
    assert field_of(status, "Uid").split() == ["65534"] * 4
    assert field_of(status, "Gid").split() == ["65534"] * 4
    assert {int(field_of(status, field), 16) for field in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}


def test_no_auth_key_reaches_the_command_or_any_argument(tsns: Tsns) -> None:
    key = tsns.lab.ephemeral_auth_key
    by_environment = replace(tsns, environment={"TS_AUTHKEY": key, "TS_LOGIN_SERVER": tsns.lab.url})
    seen = "cat /proc/self/environ /proc/[0-9]*/cmdline; env"
    done = by_environment("run", "--", "sh", "-c", seen)
    assert done.returncode == 0, done.stderr
    assert "PATH=" in done.stdout
    assert key not in done.stdout + done.stderr


def test_names_are_resolved_inside_only(tsns: Tsns) -> None:
    host = {path: Path(path).read_bytes() for path in ("/etc/resolv.conf", "/etc/nsswitch.conf") if Path(path).exists()}
    done = tsns.run("sh", "-c", "cat /etc/resolv.conf /etc/nsswitch.conf; touch /etc/resolv.conf")
    assert "nameserver 100.100.100.100" in done.stdout
    assert "hosts: files dns" in done.stdout
    assert done.returncode != 0  # it is read-only, for root too
    assert {path: Path(path).read_bytes() for path in host} == host


def test_sys_shows_the_interfaces_inside(tsns: Tsns) -> None:
    outside = sorted(os.listdir("/sys/class/net"))
    done = tsns.run("sh", "-c", "ls /sys/class/net; cat /sys/class/net/tsns0/mtu; ls /sys/fs/cgroup /tmp | wc -l")
    assert done.stdout.split()[:3] == ["lo", "tsns0", "1280"]
    assert int(done.stdout.split()[3]) > 3  # the rest is as it was
    assert sorted(os.listdir("/sys/class/net")) == outside


def test_nothing_but_the_tailnet_can_be_reached(tsns: Tsns) -> None:
    inside = ["ConnectionRefusedError", "OSError", "OSError", "TimeoutError", "['lo', 'tsns0']"]
    assert tsns.reach() == inside


def test_the_host_is_as_it_was(tsns: Tsns) -> None:
    def host() -> list[str]:
        commands = (["ip", "-o", "link"], ["ip", "route", "show", "table", "all"], ["ip", "rule"])
        return [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]

    before = host()
    tsns.up("web")
    assert host() == before


def test_a_nameless_node_goes_with_the_last_descendant(tsns: Tsns) -> None:
    tsns.up("web")
    done = tsns.run("sh", "-c", "sleep 1.5 >/dev/null 2>&1 & echo started")
    assert done.stdout == "started\n"
    run = tsns.directories.run
    assert list(run.glob("run-*.ctl"))
    left = patiently(lambda: sorted(path.name for path in run.glob("run-*")))
    assert left == []
    peers = patiently(lambda: [peer["name"] for peer in tsns.json("status", "web")["peers"]])
    assert peers == []  # logged out, too


def test_two_tailnets_with_equal_addresses_live_side_by_side(tsns: Tsns) -> None:
    with running_lab() as other:
        tsns.up("here")
        elsewhere = replace(tsns, lab=other)
        elsewhere.up("there")
        try:
            assert tsns.json("ip", "here")["addresses"] != []
            for one in (tsns, elsewhere):
                one.up("second" if one is tsns else "second-there")
            done = elsewhere("exec", "there", "--", "ping", "-c1", "-W2", "second-there")
            assert " 0% packet loss" in done.stdout
            done = tsns("exec", "here", "--", "ping", "-c1", "-W2", "second")
            assert " 0% packet loss" in done.stdout
            assert "second-there" not in [peer["name"] for peer in tsns.json("status", "here")["peers"]]
        finally:
            elsewhere("down", "there", "second-there")


def test_commands_started_at_once_share_one_node(tsns: Tsns) -> None:
    login = ("--login-server", tsns.lab.url, "--auth-key", tsns.lab.auth_key)
    processes = [tsns.popen("run", "--name", "shared", *login, "--", "readlink", "/proc/self/ns/net") for _ in range(5)]
    outputs = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, outputs
    assert len({output for output, _ in outputs}) == 1


def test_a_named_node_stays_and_is_itself_again(tsns: Tsns) -> None:
    login = ("--login-server", tsns.lab.url, "--auth-key", tsns.lab.auth_key)
    assert tsns("run", "--name", "stays", *login, "--", "true").returncode == 0
    addresses = tsns.json("ip", "stays")["addresses"]
    assert tsns("down", "stays").returncode == 0
    assert tsns("up", "stays").returncode == 0  # no key and no server: it remembers
    assert tsns.json("ip", "stays")["addresses"] == addresses


def test_a_crashed_engine_costs_a_pause_and_no_packet(tsns: Tsns) -> None:
    tsns.up("web")
    tsns.up("app")
    pid = tsns.json("status", "app")["pid"]
    with tsns.popen("exec", "app", "--", "ping", "-c", "15", "-i", "0.2", "-W", "5", "web") as ping:
        assert ping.stdout is not None
        answers = (line for line in ping.stdout if "icmp_seq=4 " in line)
        next(
            answers
        )  # the next one is due in 0.2 s: nothing is under way, for which there would be nobody at the relay
        os.kill(pid, signal.SIGKILL)
        output, _ = ping.communicate(timeout=30)
    assert " 0% packet loss" in output, output
    assert tsns.json("status", "app")["pid"] != pid


def test_with_the_keeper_dead_the_command_has_loopback_only(tsns: Tsns) -> None:
    tsns.up("web")
    script = "sleep 2; ip -o link | wc -l; ping -c1 -W1 web || ping -c1 -W1 100.64.0.1; echo end"
    with tsns.popen("run", "--name", "app", *tsns.lab.login, "--", "sh", "-c", script) as command:
        patiently(lambda: [] if "app" in [node["name"] for node in tsns.json("ls")["nodes"]] else ["app"])
        engine = tsns.json("status", "app")["pid"]
        keeper = int(field_of(Path(f"/proc/{engine}/status").read_text(), "PPid"))
        os.kill(keeper, signal.SIGKILL)
        output, _ = command.communicate(timeout=30)
    lines = output.splitlines()
    assert lines[0] == "1"
    assert lines[-1] == "end"
    assert " 0% packet loss" not in output
    assert has_ended(engine)
    tsns.up("app")  # the next keeper cleans up after the dead one


def test_the_engine_imports_nothing_once_its_rights_are_gone(tsns: Tsns) -> None:
    by_name = replace(tsns, lab=replace(tsns.lab, url=tsns.lab.url.replace("127.0.0.1", "localhost")))
    by_name.up("web")
    by_name.up("app")
    assert by_name("exec", "app", "--", "ping", "-c1", "-W2", "web").returncode == 0
    assert by_name("ping", "app", "web", "-c1").returncode == 0
    assert by_name("down", "app", "--logout").returncode == 0
    for name in ("web", "app"):
        log = (tsns.directories.state / name / "log").read_text()
        assert "ready" in log
        assert "imported after the fork" not in log


def test_the_engine_has_no_rights(tsns: Tsns) -> None:
    tsns.up("web")
    status = Path(f"/proc/{tsns.json('status', 'web')['pid']}/status").read_text()
    capabilities = {int(field_of(status, field), 16) for field in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")}
    assert capabilities == {0}
    assert field_of(status, "NoNewPrivs") == "1"
    assert "0" not in field_of(status, "Uid").split()
    assert field_of(status, "Groups") == ""

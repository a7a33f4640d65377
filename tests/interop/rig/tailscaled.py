"""The official client on a host."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final, Self

from tests.interop.rig.internet import Daemon, Host, wait_for
from tests.interop.rig.peers import peer

PORT: Final = 41641
TUN: Final = "tailscale0"
UP_TIMEOUT_S: Final = 30
PING_TIMEOUT_S: Final = 1.0
PING_REST_S: Final = 0.1  # between pings that wait for a direct path


class Tailscaled:
    """A tailscaled with a TUN in the host's namespace; it runs from `start` to `stop`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._socket = host.directory / "tailscaled.sock"
        self._daemon: Daemon | None = None

    def start(self) -> None:
        """Returns when the daemon answers. The machine's resolv.conf is out of its reach, whatever it is told later."""
        resolv = self.host.directory / "resolv.conf"
        resolv.touch()
        hidden = f'mount --bind "{resolv}" "$(readlink -f /etc/resolv.conf)" && exec "$0" "$@"'
        self._daemon = self.host.popen(
            *("unshare", "--mount", "--propagation=private", "sh", "-c", hidden),
            peer("tailscaled"),
            f"--socket={self._socket}",
            f"--statedir={self.host.directory}",
            f"--tun={TUN}",
            f"--port={PORT}",
            "--no-logs-no-support",
            log="tailscaled",
        )
        wait_for(self._answers, "tailscaled answers")

    def stop(self) -> None:
        """Ends the daemon; `start` goes on with the same identity."""
        if self._daemon:
            self._daemon.stop()
            self._daemon = None

    def up(self, url: str, auth_key: str, *flags: str) -> None:
        """Joins a tailnet under the host's name; returns when the client says that it is up."""
        self.command(
            *("up", f"--login-server={url}", f"--authkey={auth_key}", f"--hostname={self.host.name}"),
            *("--accept-dns=false", f"--timeout={UP_TIMEOUT_S}s", *flags),
        )

    def command_line(self, *words: str) -> tuple[str, ...]:
        """The command line of `tailscale WORDS`."""
        return (peer("tailscale"), f"--socket={self._socket}", *words)

    def command(self, *words: str) -> str:
        """What `tailscale WORDS` prints; AssertionError when it fails."""
        return self.host.run(*self.command_line(*words)).stdout

    def attempt(self, *words: str) -> CompletedProcess[str]:
        """`tailscale WORDS`, which may fail."""
        return self.host.run(*self.command_line(*words), check=False)

    def status(self) -> dict[str, Any]:
        """The client's own view of the tailnet, as `tailscale status --json` tells it."""
        status: dict[str, Any] = json.loads(self.command("status", "--json"))
        return status

    def ip(self, version: int = 4) -> str:
        """Its own address."""
        return self.command("ip", f"-{version}").strip()

    def peer(self, host_name: str) -> dict[str, Any] | None:
        """What it knows of a peer; None while it does not know it."""
        peers: dict[str, dict[str, Any]] = self.status().get("Peer") or {}
        return next((found for found in peers.values() if found["HostName"] == host_name), None)

    def wait_for_peer(self, host_name: str) -> dict[str, Any]:
        """A peer as soon as it can be sent to: the routes come a moment after the status knows it."""

        def look() -> dict[str, Any] | None:
            found = self.peer(host_name)
            return found if found and all(map(self.has_route, found["TailscaleIPs"])) else None

        return wait_for(look, f"{self.host.name} knows {host_name}")

    def disco_ping(self, address: str, timeout_s: float) -> str:
        """The endpoint at which a peer answers directly; empty when the relay brought the answer, or nobody did.

        It asks as `tailscale ping` does, but without its second of rest after each.
        """
        local = _Local(self._socket, timeout_s)
        with contextlib.closing(local), contextlib.suppress(TimeoutError):
            local.request("POST", f"/localapi/v0/ping?ip={address}&type=disco")
            answer = local.getresponse()
            if answer.status == http.client.OK:
                return str(json.load(answer).get("Endpoint", ""))
        return ""

    def until_direct(self, address: str, patience_s: float) -> bool:
        """Returns as soon as a peer has answered directly; false when it did not within so many seconds."""
        deadline = time.monotonic() + patience_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self.disco_ping(address, min(left_s, PING_TIMEOUT_S)):
                return True
            time.sleep(PING_REST_S)
        return False

    def is_direct(self, address: str) -> bool:
        """Whether what it sends to a peer goes directly and nowhere else just now; asking changes nothing."""
        peers: dict[str, dict[str, Any]] = self.status().get("Peer") or {}
        return any(address in found["TailscaleIPs"] and bool(found["CurAddr"]) for found in peers.values())

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self._daemon is not None
        return self._daemon.process.pid

    def said(self) -> str:
        """The daemon's log."""
        return self._daemon.said() if self._daemon else ""

    def has_route(self, address: str) -> bool:
        """Whether what is sent to this address goes into the tunnel."""
        return TUN in self.host.run("ip", "route", "get", address, check=False).stdout

    def _answers(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.process.poll() is None, self._daemon.said()[-4000:]
        return self.attempt("status", "--json").returncode == 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Local(http.client.HTTPConnection):
    """A connection to a daemon's LocalAPI."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("local-tailscaled.sock", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

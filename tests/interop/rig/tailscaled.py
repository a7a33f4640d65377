"""The official client on a host."""

from __future__ import annotations

import json
from subprocess import CompletedProcess
from typing import Any, Final, Self

from tests.interop.rig.internet import Daemon, Host, wait_for
from tests.interop.rig.peers import peer

PORT: Final = 41641
TUN: Final = "tailscale0"
UP_TIMEOUT_S: Final = 30


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
            return found if found and all(map(self._has_route, found["TailscaleIPs"])) else None

        return wait_for(look, f"{self.host.name} knows {host_name}")

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self._daemon is not None
        return self._daemon.process.pid

    def said(self) -> str:
        """The daemon's log."""
        return self._daemon.said() if self._daemon else ""

    def _has_route(self, address: str) -> bool:
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

"""A Docker daemon of the tests' own: its network, its data and its sockets are nobody else's, and it ends with the tests.

It lives in a network namespace, so that its bridges and the rules that it makes stay there, and dockerd's `ip_forward` as well. Its images hold
busybox and nothing else. Paths are short: a container's shim has a socket below.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker

from tests.interop.rig.internet import NAME_PREFIX
from tests.interop.rig.namespace import Namespace
from tests.machine import processes_in

BUSYBOX: Final = "/bin/busybox"
IMAGE: Final = "tsns-test/busybox"
BRIDGE: Final = "bridge0"
START_S: Final = 30.0
END_S: Final = 30.0
COMMAND_S: Final = 30.0
APPLETS: Final = (
    "sh",
    "sleep",
    "cat",
    "nslookup",
    "wget",
    "ping",
    "httpd",
    "ip",
    "id",
    "test",
    "echo",
    "nc",
    "touch",
    "ls",
)


def missing() -> str | None:
    """What this machine lacks for these tests."""
    lacking = [name for name in ("dockerd", "containerd", "runc", "docker-compose") if shutil.which(name) is None]
    lacking += [] if os.path.exists(BUSYBOX) else ["busybox-static"]
    return f"needs {', '.join(lacking)}: run scripts/test" if lacking else None


@dataclass
class Dockerd:
    """A daemon that runs."""

    directory: Path
    network: Namespace
    process: subprocess.Popen[bytes] | None = None
    client: Any = None

    @property
    def url(self) -> str:
        """As in DOCKER_HOST."""
        return f"unix://{self.directory}/sock"

    def start(self) -> None:
        """Until it answers."""
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.network.command(
                    "dockerd", "--bridge", BRIDGE, "--storage-driver", "vfs", "--host", self.url,
                    "--data-root", str(self.directory / "data"), "--exec-root", str(self.directory / "exec"),
                    "--pidfile", str(self.directory / "pid"),
                ),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + START_S
        while not (self.directory / "sock").exists() or not self._answers():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.05)

    def _answers(self) -> bool:
        client = docker.DockerClient(base_url=self.url, timeout=int(COMMAND_S), version="1.41")
        try:
            client.ping()
        except (docker.errors.DockerException, OSError):
            client.close()
            return False
        self.client = client
        return True

    def stop(self, number: int = signal.SIGTERM) -> None:
        """By this signal, and until it is gone."""
        if self.client is not None:
            self.client.close()
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(END_S)
            self.process = None
            (self.directory / "sock").unlink(missing_ok=True)  # else its library leaves sockets behind in vain tries
            self._forget_containerd()

    def _forget_containerd(self) -> None:
        """It ends with its parent. The next daemon would take one that has not been reaped yet for one that is at work, and wait for it."""
        file = self.directory / "exec" / "containerd" / "containerd.pid"
        with contextlib.suppress(OSError, ValueError):
            process = Path(f"/proc/{int(file.read_text())}/stat")
            until = time.monotonic() + END_S
            while process.exists() and ") Z " not in process.read_text():
                assert time.monotonic() < until, "containerd does not end"
                time.sleep(0.05)
            file.unlink()

    def log(self) -> str:
        """The end of what it has said."""
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def run(self, name: str, *command: str, **settings: Any) -> Box:
        """A container of this name at work."""
        words = list(command) or ["sleep", "100000"]
        container = self.client.containers.run(
            settings.pop("image", IMAGE), words, name=name, detach=True, init=False, stop_signal="SIGKILL", **settings
        )
        return Box(self, container)

    def remove_all(self) -> None:
        """All containers, and the networks that tests have made."""
        for container in self.client.containers.list(all=True):
            container.remove(force=True)
        self.client.networks.prune()


@dataclass
class Box:
    """A container."""

    daemon: Dockerd
    container: Any

    @property
    def pid(self) -> int:
        """Of its first process."""
        self.container.reload()
        return int(self.container.attrs["State"]["Pid"])

    def run(self, *command: str, check: bool = True, user: str = "") -> str:
        """What a command inside says."""
        words = ["docker", "--host", self.daemon.url, "exec", *(["--user", user] if user else []), self.container.id]
        done = subprocess.run([*words, *command], capture_output=True, text=True, timeout=COMMAND_S, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def state(self) -> dict[str, str]:
        """All of its network that an attachment could change."""
        inside = ["nsenter", "--target", str(self.pid), "--net"]
        looks = {
            "rules": ("ip", "rule"), "rules of IPv6": ("ip", "-6", "rule"), "nft": ("nft", "--stateless", "list", "ruleset"),
            "routes": ("ip", "route", "show", "table", "all"), "routes of IPv6": ("ip", "-6", "route", "show", "table", "all"),
            "ports": ("cat", "/proc/sys/net/ipv4/ip_local_port_range"), "loopback": ("ip", "-brief", "address", "show", "dev", "lo"),
            "links": ("ip", "-brief", "link"),
        }  # fmt: skip
        found = {
            what: subprocess.run(
                [*inside, *words], capture_output=True, text=True, timeout=COMMAND_S, check=True
            ).stdout
            for what, words in looks.items()
        }
        mounts = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        found["mounts"] = "\n".join(sorted(line.split()[4] for line in mounts))
        found["resolv.conf"] = Path(f"/proc/{self.pid}/root/etc/resolv.conf").read_text()
        return found


def image() -> bytes:
    """A file system with busybox in it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("bin", "etc", "run", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(directory)
        tar.add(BUSYBOX, "bin/busybox")
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        users = tarfile.TarInfo("etc/passwd")
        users.size = len(text := b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        tar.addfile(users, io.BytesIO(text))
    return data.getvalue()


def _end_containers(directory: Path) -> None:
    """What goes on without a daemon."""
    for shim, command in processes_in(str(directory)).items():
        if "containerd-shim" in command:
            children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
            for pid in (*map(int, children), shim):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def dockerd() -> Iterator[Dockerd]:
    """One with the image, until the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="tsns-dk-"))
    network = Namespace(f"{NAME_PREFIX}docker")
    network.add()
    daemon = Dockerd(directory, network)
    try:
        network.ip("link", "add", BRIDGE, "type", "bridge")
        network.ip("address", "add", "172.31.7.1/24", "dev", BRIDGE)
        network.ip("link", "set", BRIDGE, "up")
        daemon.start()
        daemon.client.api.import_image_from_data(image(), repository=IMAGE)
        yield daemon
    finally:
        with contextlib.suppress(docker.errors.DockerException, OSError, AttributeError):
            daemon.remove_all()
        daemon.stop()
        _end_containers(directory)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (place := line.split()[1]).startswith(str(directory)):
                subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
        network.delete()
        shutil.rmtree(directory, ignore_errors=True)

"""Podman's interface, as its socket unit would serve it, with containers of the tests' own, in a network where its bridge stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import docker

from tests.docker.daemon import IMAGE, image
from tests.interop.rig.internet import NAME_PREFIX
from tests.interop.rig.namespace import Namespace

START_S: Final = 20.0
COMMAND_S: Final = 60.0
# Where a machine does not let even root raise limits, Podman's own defaults would be refused.
_SETTINGS: Final = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'


def missing() -> str | None:
    """What this machine lacks for these tests."""
    lacking = [name for name in ("podman", "conmon") if shutil.which(name) is None]
    return f"needs {', '.join(lacking)}: run scripts/test" if lacking else None


@dataclass(frozen=True)
class Podman:
    """A service that runs."""

    directory: Path

    @property
    def url(self) -> str:
        """As in DOCKER_HOST."""
        return f"unix://{self.directory}/podman.sock"

    def command(self, *words: str) -> list[str]:
        """Podman's own command line for these words."""
        return [shutil.which("podman") or "podman", "--remote", "--url", self.url, *words]

    def run(self, *words: str) -> str:
        """What it says."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=COMMAND_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def podman() -> Iterator[Podman]:
    """One with the image, until the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="tsns-pd-"))
    made = Podman(directory)
    network = Namespace(f"{NAME_PREFIX}podman")
    network.add()
    (directory / "containers.conf").write_text(_SETTINGS)
    places = [f"--{name}={directory}/{name}" for name in ("root", "runroot", "tmpdir")]
    words = [
        "podman",
        *places,
        "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs",
        "system",
        "service",
        "--time=0",
        made.url,
    ]
    environment = {**os.environ, "CONTAINERS_CONF": str(directory / "containers.conf")}
    with (
        open(directory / "log", "wb") as log,
        subprocess.Popen(network.command(*words), stdout=log, stderr=log, env=environment) as service,
    ):
        try:
            until = time.monotonic() + START_S
            while not (directory / "podman.sock").exists():
                assert service.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
            client = docker.DockerClient(base_url=made.url, timeout=int(COMMAND_S), version="1.40")
            with contextlib.closing(client):
                client.api.import_image_from_data(image(), repository=IMAGE)
            made.run("tag", IMAGE, "docker.io/library/busybox")
            yield made
        finally:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                made.run("rm", "--all", "--force", "--time", "0")
            service.terminate()
            service.wait(START_S)
            for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
                if (place := line.split()[1]).startswith(str(directory)):
                    subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
            network.delete()
            shutil.rmtree(directory, ignore_errors=True)

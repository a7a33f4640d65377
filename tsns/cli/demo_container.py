"""The demo's container: Docker's, with nothing in it but busybox, so that no image has to be had from anywhere (ring 2)."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import tarfile
from typing import Final

from tsns.cli.demo_stage import StageError

BUSYBOX: Final = "/bin/busybox"
PROGRAMS: Final = ("sh", "sleep", "wget")
COMMAND_TIMEOUT_S: Final = 60.0
_NEEDS: Final = "install Docker and busybox: `apt install docker.io busybox-static`, or leave out --docker"


class DemoContainer:
    """One container, started by `start`, gone with `close`."""

    def __init__(self) -> None:
        self.name = f"tsns-demo-{secrets.token_hex(3)}"
        self._image = f"{self.name}-image"

    def start(self) -> str:
        """Have it at work; returns which Docker it is. StageError where that cannot be."""
        if not os.access(BUSYBOX, os.X_OK):
            raise StageError(f"there is no {BUSYBOX} to put into a container", _NEEDS)
        version = self._docker("version", "--format", "Docker {{.Server.Version}}")
        self._docker("import", "-", self._image, given=_files())
        self._docker("run", "--detach", "--name", self.name, self._image, "sleep", "3600")
        return version

    def fetch(self, url: str) -> str:
        """A page, as a program inside gets it. StageError where it does not."""
        return self._docker("exec", self.name, "wget", "-q", "-O", "-", url)

    def close(self) -> None:
        """Remove it, and its image; what is not there is not missed."""
        for words in (("rm", "--force", "--volumes", self.name), ("rmi", "--force", self._image)):
            try:
                self._docker(*words)
            except StageError:
                pass

    def _docker(self, *words: str, given: bytes = b"") -> str:
        try:
            done = subprocess.run(
                ["docker", *words], input=given, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except FileNotFoundError:
            raise StageError("there is no Docker", _NEEDS) from None
        except subprocess.TimeoutExpired:
            raise StageError(
                f"`docker {words[0]}` took more than {COMMAND_TIMEOUT_S:.0f} s", "is Docker well?"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise StageError(f"`docker {words[0]}` failed: {said[-1]}", "start Docker, or leave out --docker")
        return done.stdout.decode(errors="replace").strip()


def _files() -> bytes:
    """A file system with busybox in it, as a tar archive."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.add(BUSYBOX, "bin/busybox")
        for name in PROGRAMS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return data.getvalue()

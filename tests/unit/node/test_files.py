"""The files that a keeper writes for its node."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

import pytest

from tsns.config import NodeConfig, Secret
from tsns.error import UserError
from tsns.node import files
from tsns.node.files import NodeFiles, settings
from tsns.node.places import Places
from tsns.state import Identity

SERVER = "https://control.example"
CONFIG = NodeConfig(
    name="web", login_server=SERVER, auth_key=Secret("hskey-1"), hostname="w", https_proxy=Secret("http://u:p@h")
)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "run").mkdir()
    return Places(tmp_path / "run", tmp_path / "state")


def memory(content: bytes, seals: int = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK) -> int:
    fd = os.memfd_create("netmap", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_settings_hold_no_secret_and_nothing_of_one_call() -> None:
    kept = json.dumps(settings(CONFIG))
    assert "hskey-1" not in kept
    assert "u:p" not in kept
    assert json.loads(kept)["hostname"] == "w"
    other_call = NodeConfig(
        name="web", login_server=SERVER, hostname="w", timeout_s=5, tls_roots="/x", owner_uid=7, no_proxy="*"
    )
    assert settings(other_call) == settings(CONFIG)


def test_only_a_lasting_node_remembers(places: Places) -> None:
    for lasting in (True, False):
        NodeFiles(places.node("web"), lasting=lasting).save_settings(CONFIG)
    assert (places.node("web").lasting / "settings.json").exists()
    assert not (places.node("web").passing / "settings.json").exists()


def test_an_identity_belongs_to_its_server(places: Places) -> None:
    node = NodeFiles(places.node("web"), lasting=True)
    identity = node.load_identity(SERVER)
    assert identity.node_key is None
    node.save_identity(Identity.generate().dump().replace(b'"control_url":null', f'"control_url":"{SERVER}"'.encode()))
    assert node.load_identity(SERVER).control_url == SERVER
    with pytest.raises(UserError, match=f"belongs to {SERVER}"):
        node.load_identity("https://elsewhere.example")


def test_a_netmap_is_kept_and_found_again(places: Places) -> None:
    node = NodeFiles(places.node("web"), lasting=True)
    assert node.open_cache() == -1
    fd = memory(b"the netmap")
    assert node.save_cache(fd) == ""
    os.close(fd)
    kept = node.open_cache()
    assert os.read(kept, 100) == b"the netmap"
    os.close(kept)


def test_a_netmap_is_bounded(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_CACHE_BYTES", 4)
    fd = memory(b"12345")
    assert "too large" in NodeFiles(places.node("web"), lasting=True).save_cache(fd)
    os.close(fd)


def descriptors_of_all_kinds() -> dict[str, int]:
    socket_fd, pipe_fds = socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(), os.pipe()
    os.close(pipe_fds[1])
    return {
        "a socket": socket_fd,
        "a pipe": pipe_fds[0],
        "a device": os.open("/dev/zero", os.O_RDONLY),
        "a directory": os.open("/", os.O_RDONLY),
        "a file": os.open(__file__, os.O_RDONLY),
        "a path": os.open(__file__, os.O_PATH),
        "memory that may still change": memory(b"the netmap", seals=0),
        "memory that may still be written to": memory(b"the netmap", fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK),
    }


def test_nothing_but_sealed_memory_is_read(places: Places) -> None:
    node = NodeFiles(places.node("web"), lasting=True)
    for what, fd in descriptors_of_all_kinds().items():
        assert node.save_cache(fd) != "", what
        os.close(fd)
    assert node.open_cache() == -1


def test_what_is_mounted_inside_is_written_in_place(places: Places) -> None:
    node = NodeFiles(places.node("web"), lasting=True)
    node.write_resolv([], magic_dns=True)
    before = places.node("web").resolv.stat()
    node.write_resolv(["tail.example"], magic_dns=True)
    after = places.node("web").resolv.stat()
    assert "search tail.example" in places.node("web").resolv.read_text()
    assert (before.st_ino, after.st_mode & 0o777) == (after.st_ino, 0o644)


def test_a_lasting_node_keeps_its_port(places: Places) -> None:
    node = NodeFiles(places.node("web"), lasting=True)
    node.home.mkdir(parents=True)
    assert node.last_port() == 0
    node.note_port(41641)
    assert NodeFiles(places.node("web"), lasting=True).last_port() == 41641
    for garbage in (b"", b"x", b"99999", b"-1", b"\xff", b"4" * 100):
        (node.home / "port").write_bytes(garbage)
        assert node.last_port() == 0
    passing = NodeFiles(places.node("web"), lasting=False)
    passing.home.mkdir(parents=True)
    passing.note_port(41641)
    assert passing.last_port() == 0


def test_the_latest_time_that_was_noted_never_goes_back(places: Places) -> None:
    node = NodeFiles(places.node("web"), lasting=True)
    assert node.latest_time() == 0.0, "nobody has noted one"
    node.home.mkdir(parents=True)
    node.note_time(1_800_000_000.5)
    node.note_time(1_500_000_000.0)
    assert NodeFiles(places.node("web"), lasting=True).latest_time() == 1_800_000_000.5
    assert (node.home / "clock").stat().st_mode & 0o777 == 0o600


def test_a_time_that_cannot_be_noted_is_no_failure(places: Places) -> None:
    NodeFiles(places.node("web"), lasting=True).note_time(1.0)  # its directory is not there

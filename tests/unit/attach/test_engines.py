"""Where container engines are looked for."""

from __future__ import annotations

import os

import pytest

from tsns.attach import engines
from tsns.error import UserError


@pytest.fixture
def _all_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: path.endswith(".sock"))


@pytest.mark.usefixtures("_all_sockets")
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [("docker", "unix:///var/run/docker.sock"), ("podman", "unix:///run/podman/podman.sock")]),
        (
            {"DOCKER_HOST": "unix:///d.sock"},
            [("docker", "unix:///d.sock"), ("podman", "unix:///run/podman/podman.sock")],
        ),
        (
            {"DOCKER_HOST": "unix:///podman/p.sock", "XDG_RUNTIME_DIR": "/run/user/7"},
            [
                ("podman", "unix:///podman/p.sock"),
                ("podman", "unix:///run/podman/podman.sock"),
                ("podman", "unix:///run/user/7/podman/podman.sock"),
            ],
        ),
    ],
    ids=["by default", "where DOCKER_HOST says", "an ordinary user's Podman"],
)
def test_where_engines_are(environ: dict[str, str], expected: list[tuple[str, str]]) -> None:
    assert engines.addresses(environ) == expected


@pytest.mark.parametrize("host", ["tcp://192.0.2.1:2375", "ssh://me@elsewhere"])
def test_an_engine_elsewhere_is_refused(host: str) -> None:
    with pytest.raises(UserError, match="elsewhere are not within reach"):
        engines.engines({"DOCKER_HOST": host})


def test_without_an_engine_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    with pytest.raises(UserError, match="no container engine"):
        engines.engines({})

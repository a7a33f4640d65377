"""A Docker daemon for all of these tests, a tailnet and tsns for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.docker.daemon import Dockerd, dockerd
from tests.machine import PrivateDirectories
from tests.netns.nodes import LabProcess, Tsns, running_lab


@pytest.fixture(scope="session")
def daemon() -> Iterator[Dockerd]:
    """The daemon."""
    with dockerd() as found:
        yield found


@pytest.fixture
def docker(daemon: Dockerd) -> Iterator[Dockerd]:
    """The same, without containers of other tests."""
    yield daemon
    daemon.remove_all()


@pytest.fixture
def lab() -> Iterator[LabProcess]:
    """A tailnet of the test's own."""
    with running_lab() as found:
        yield found


@pytest.fixture
def tsns(private_directories: PrivateDirectories, lab: LabProcess, docker: Dockerd) -> Iterator[Tsns]:
    """The command line, which knows this Docker. Nodes and server are ended with the test."""
    found = Tsns(private_directories, lab, environment={"DOCKER_HOST": docker.url})
    yield found
    found("down", "--all")
    found("serve", "--stop")


@pytest.fixture
def other_tsns(tsns: Tsns) -> Iterator[Tsns]:
    """The same on another tailnet."""
    with running_lab() as lab:
        yield replace(tsns, lab=lab)
        tsns("down", "--all")

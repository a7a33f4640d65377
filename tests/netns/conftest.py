"""A lab for each test, and tsns in directories of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machine import PrivateDirectories
from tests.netns.nodes import LabProcess, Tsns, running_lab
from tests.netns.steered_lab import SteeredLab, steered_lab


@pytest.fixture
def lab() -> Iterator[LabProcess]:
    """A tailnet of the test's own: names are free, and addresses begin anew."""
    with running_lab() as lab:
        yield lab


@pytest.fixture
def tsns(private_directories: PrivateDirectories, lab: LabProcess) -> Iterator[Tsns]:
    """The command line. Lasting nodes and the server are ended with the test."""
    tsns = Tsns(private_directories, lab)
    yield tsns
    tsns("down", "--all")
    tsns("serve", "--stop")


@pytest.fixture
def steered() -> Iterator[SteeredLab]:
    """A tailnet of the test's own that does what the test says."""
    with steered_lab() as lab:
        yield lab


@pytest.fixture
def steered_tsns(private_directories: PrivateDirectories, steered: SteeredLab) -> Iterator[Tsns]:
    """The command line on that tailnet."""
    tsns = Tsns(private_directories, steered.process)
    yield tsns
    tsns("down", "--all")
    tsns("serve", "--stop")

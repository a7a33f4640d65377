"""A lab for each test, and tsns in directories of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machine import PrivateDirectories
from tests.netns.nodes import LabProcess, Tsns, running_lab


@pytest.fixture
def lab() -> Iterator[LabProcess]:
    """A tailnet of the test's own: names are free, and addresses begin anew."""
    with running_lab() as lab:
        yield lab


@pytest.fixture
def tsns(private_directories: PrivateDirectories, lab: LabProcess) -> Iterator[Tsns]:
    """The command line. Lasting nodes are brought down at the end."""
    tsns = Tsns(private_directories, lab)
    yield tsns
    tsns("down", "--all")

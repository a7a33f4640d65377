"""Fixtures of the tests with peers that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.rig.peers import headscale_binary
from tests.interop.rig.tailnet import KINDS, Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet

collect_ignore = [] if headscale_binary() else ["test_headscale.py"]


@pytest.fixture(scope="module", params=KINDS)
def tailnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """A tailnet for the tests of one module, once for each kind of control server on this machine."""
    kind = str(request.param)
    with new_tailnet(kind, tmp_path_factory.mktemp(kind)) as found:
        yield found

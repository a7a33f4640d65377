"""Each test of the data plane's seam runs with every engine."""

from __future__ import annotations

import pytest

from tests.unit.wg.engines import ENGINES, Engine


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    """How one end of a session is made."""
    return ENGINES[request.param]

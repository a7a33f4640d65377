"""Faults that have been found and not mended yet."""

from __future__ import annotations

import pytest

from tests.netns.doomed_keeper import doomed_keepers
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab

pytestmark = pytest.mark.netns

A_STEP_AFTER_CONTROL_KNOWS_US = 12  # amid the first save of the identity


def test_a_node_killed_in_its_first_login_is_no_second_node_afterwards(
    steered_tsns: Tsns, steered: SteeredLab
) -> None:
    """Its machine key should be on disk before control hears of it."""
    with doomed_keepers() as live:
        assert live(steered_tsns, A_STEP_AFTER_CONTROL_KNOWS_US) == "killed"
    steered_tsns.up("web")
    assert steered.nodes() == ["web"]

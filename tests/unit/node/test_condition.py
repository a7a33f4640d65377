"""The one word for a node's state, and when its peers are cut off."""

from __future__ import annotations

from typing import Any

import pytest

from tsns.node.condition import RENEWAL_PATIENCE_S, Condition

LATER = RENEWAL_PATIENCE_S
AT_WORK = {"ready": True, "connected": True}


@pytest.mark.parametrize(
    ("facts", "state", "barred"),
    [
        ({}, "starting", False),
        ({"connected": True}, "starting", False),
        ({"login_url": "u"}, "needs-login", False),
        ({"pending_approval": True}, "needs-approval", False),
        (AT_WORK, "running", False),
        ({"ready": True}, "offline", False),
        ({**AT_WORK, "login_url": "u"}, "running", False),
        ({**AT_WORK, "pending_approval": True}, "needs-approval", False),
        ({**AT_WORK, "key_lost_at": 0.1}, "running", False),
        ({**AT_WORK, "key_lost_at": 0.0}, "needs-login", True),
        ({**AT_WORK, "key_lost_at": 0.1, "login_url": "u"}, "needs-login", True),
        ({**AT_WORK, "logged_out": True}, "needs-login", True),
        ({"ready": True, "logged_out": True, "pending_approval": True}, "needs-login", True),
    ],
)
def test_states(facts: dict[str, Any], state: str, barred: bool) -> None:
    """A login that waits stops nothing while the key is good; a lost key has a moment to be renewed in silence."""
    condition = Condition(**facts)
    assert condition.state(LATER) == state
    assert condition.barred(LATER) is barred

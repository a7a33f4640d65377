"""What the engine knows of itself beside the netmap, and the one word that a person is told for it (ring 1, without input or output).

starting --URL shown--> needs-login --opened--> (needs-approval --approved-->) running <--control goes, comes--> offline
A logout, or a key that has run out and cannot be renewed in silence, leads back to needs-login. While a login waits for a person
the node goes on with the key that it has, as long as that key is good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

RENEWAL_PATIENCE_S: Final = 2.0  # a lost key may be renewed in silence meanwhile


@dataclass(slots=True)
class Condition:
    """See the module. Times are monotonic seconds."""

    ready: bool = False  # has been so once
    connected: bool = False  # control's netmap is being followed
    logged_out: bool = False
    pending_approval: bool = False
    key_lost_at: float | None = None  # since when control does not take our key
    login_url: str = ""
    home: int | None = None
    warnings: dict[str, str] = field(default_factory=dict)  # by what they are about

    def barred(self, now: float) -> bool:
        """Whether the node may not speak to its peers: it is nobody on the tailnet, or nobody any more."""
        lost_for_good = self.key_lost_at is not None and (
            bool(self.login_url) or now - self.key_lost_at >= RENEWAL_PATIENCE_S
        )
        return self.logged_out or lost_for_good

    def state(self, now: float) -> str:
        """One of the words of docs/json.md."""
        if self.barred(now) or (self.login_url and not self.ready):
            return "needs-login"
        if self.pending_approval:
            return "needs-approval"
        if not self.ready:
            return "starting"
        return "running" if self.connected else "offline"

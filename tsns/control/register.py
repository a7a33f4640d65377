"""Registration: what is asked of control, and what its answer means (ring 0).

Source: control/controlclient (direct.go, doLogin) of Tailscale's module; Headscale's hscontrol/auth.go for what differs there.

    request --> Accepted        go on to the netmap; `authorized` False: an admin has yet to approve the node, and the netmap will tell
            --> NeedsLogin      show the URL, ask again with it as `followup` and the same node key: control answers when somebody has logged in
            --> NewKeyNeeded    the node key has expired: ask again, once, with a fresh one
            --> Refused         control's own words

An answer is HTTP 200 whatever it says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tsns.error import ProtocolError
from tsns.keys import LockPublic, NodePublic
from tsns.proto.text import one_line
from tsns.proto.types import LOGOUT_EXPIRY, Hostinfo, RegisterAuth, RegisterRequest, RegisterResponse, UserProfile

MAX_URL_CHARS: Final = 2048
PRESIGNED: Final = "--TL"  # what follows it in an auth key is a Tailnet Lock signature, and none of control's business


@dataclass(frozen=True, slots=True)
class Accepted:
    """Control knows the node key as ours."""

    user: str
    authorized: bool


@dataclass(frozen=True, slots=True)
class NeedsLogin:
    """Somebody has to open this URL."""

    url: str


@dataclass(frozen=True, slots=True)
class NewKeyNeeded:
    """The node key has expired."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Control says no."""

    reason: str


Outcome = Accepted | NeedsLogin | NewKeyNeeded | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What stays the same through all requests of one login."""

    version: int  # the capability version
    lock_key: LockPublic
    hostinfo: Hostinfo  # with tags only where a person asked for some: Headscale refuses them beside an auth key
    auth_key: str | None = field(default=None, repr=False)
    ephemeral: bool = False

    def request(
        self, node_key: NodePublic, *, old_node_key: NodePublic | None = None, followup: str | None = None
    ) -> RegisterRequest:
        """Ask for this node key to be accepted; `old_node_key` is the one that it replaces."""
        auth = None
        if self.auth_key and followup is None:
            auth = RegisterAuth(auth_key=self.auth_key.partition(PRESIGNED)[0])
        return RegisterRequest(
            version=self.version,
            node_key=str(node_key),
            old_node_key=str(old_node_key) if old_node_key else None,
            nl_key=str(self.lock_key),
            auth=auth,
            followup=followup,
            hostinfo=self.hostinfo,
            ephemeral=self.ephemeral or None,
        )

    def logout(self, node_key: NodePublic) -> RegisterRequest:
        """Ask for this node key to expire at once; an ephemeral node is then deleted."""
        return RegisterRequest(
            version=self.version,
            node_key=str(node_key),
            nl_key=str(self.lock_key),
            expiry=LOGOUT_EXPIRY,
            hostinfo=self.hostinfo,
            ephemeral=self.ephemeral or None,
        )


def outcome(response: RegisterResponse) -> Outcome:
    """What an answer means; what is checked first counts. ProtocolError for a login URL that nobody should open."""
    if response.error:
        return Refused(one_line(response.error))
    if response.node_key_expired:
        return NewKeyNeeded()
    if response.auth_url:
        return NeedsLogin(checked_url(response.auth_url))
    return Accepted(_name(response.login) or _name(response.user), authorized=bool(response.machine_authorized))


def checked_url(text: str) -> str:
    """A URL that may be shown to a person; ProtocolError where it is none."""
    usual = text.startswith(("https://", "http://")) and text.isascii() and text.isprintable()
    if not usual or len(text) > MAX_URL_CHARS or set(text) & set(" \"'<>\\^`{|}"):
        raise ProtocolError("the login URL is not a URL")
    return text


def refusal_hint(reason: str, *, with_auth_key: bool, with_tags: bool) -> str:
    """What a person can do about a refusal, on one line."""
    if with_tags and "tag" in reason.lower():
        beside = (
            "leave out --advertise-tags, since tags come with the auth key," if with_auth_key else "ask for other tags"
        )
        return f"{beside} or let the tailnet's policy permit them"
    if with_auth_key:
        return "make a new auth key in the tailnet's admin console and pass it with --auth-key"
    return "log in with an auth key (--auth-key), or see what the tailnet's admin console says about this node"


def _name(profile: UserProfile | None) -> str:
    return one_line(profile.login_name or profile.display_name or "") if profile else ""

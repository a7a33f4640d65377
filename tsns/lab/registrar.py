"""Who gets into the lab's tailnet: the decisions behind POST /machine/register (pure).

Source: tailcfg.RegisterRequest and RegisterResponse; hscontrol/auth.go of Headscale for its texts, testcontrol of Tailscale's module for the rest.

    request --auth key good, or node known--> answer
            --followup, or nobody known-----> Pending: its URL waits for `approve`, then the node is known

Times are unix seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tsns.keys import MachinePublic, NodePublic
from tsns.lab.tailnet import AuthKey, LabNode, Tailnet, User
from tsns.proto.types import RegisterRequest, RegisterResponse, UserProfile, parse_time

MAX_PENDING: Final = 1024  # logins that wait for a person
REQUIRED_TAILNET: Final = "required:"


class Mode(enum.StrEnum):
    """Whose ways the server has, where servers differ."""

    HEADSCALE = "headscale"
    SAAS = "saas"


@dataclass(frozen=True, slots=True)
class Application:
    """Somebody who wants to get in, or back in."""

    machine: MachinePublic
    key: NodePublic
    request: RegisterRequest = field(repr=False)
    hostinfo: Mapping[str, Any]

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that it asks for."""
        return tuple((self.request.hostinfo.request_tags if self.request.hostinfo else None) or ())


@dataclass(slots=True, eq=False)
class Pending:
    """A login that waits for a person."""

    url: str
    application: Application
    node: LabNode | None = None  # once approved
    refused: str = ""  # once refused: why


class Refused(Exception):  # noqa: N818 - an answer, not an accident
    """Control's answer is an error text."""


class Registrar:
    """Decides registrations, and changes the tailnet accordingly."""

    def __init__(self, tailnet: Tailnet, mode: Mode, random: Callable[[int], bytes]) -> None:
        self.mode = mode
        self.base_url = ""
        self.pending: dict[str, Pending] = {}  # by URL
        self.approval_required = False  # nodes wait for `machine authorization`, whatever let them in
        self.key_expiry_s: float | None = None  # for how long keys of people's nodes are good
        self._tailnet = tailnet
        self._random = random

    def register(
        self, request: RegisterRequest, hostinfo: Mapping[str, Any], machine: MachinePublic, now: float
    ) -> RegisterResponse | Pending:
        """The answer, or what it has to wait for."""
        try:
            return self._register(request, hostinfo, machine, now)
        except Refused as refusal:
            return RegisterResponse(error=str(refusal))

    def approve(self, url: str, *, user: User | None, now: float) -> LabNode:
        """A person logs in at this URL; KeyError where nobody waits."""
        pending = self.pending.pop(url)
        pending.node = self._admit(
            pending.application,
            self._existing(pending.application),
            user=user or self._tailnet.default_user,
            tags=pending.application.tags,
            ephemeral=self.mode is Mode.SAAS and bool(pending.application.request.ephemeral),
            authorized=not self.approval_required,
            now=now,
        )
        return pending.node

    def refuse(self, url: str, text: str) -> None:
        """The person declines; KeyError where nobody waits."""
        self.pending.pop(url).refused = text

    def answer(self, node: LabNode, now: float) -> RegisterResponse:
        """What a node that is in is told."""
        profile = UserProfile(id=node.user.id, login_name=node.user.login_name, display_name=node.user.display_name)
        expired = node.expired(now)
        return RegisterResponse(
            user=profile,
            login=profile,
            node_key_expired=expired or None,
            machine_authorized=(node.authorized and not expired) or None,
        )

    # --- decisions

    def _register(
        self, request: RegisterRequest, hostinfo: Mapping[str, Any], machine: MachinePublic, now: float
    ) -> RegisterResponse | Pending:
        key = NodePublic.parse_optional(request.node_key)
        if key is None:
            raise Refused("a node key is needed")
        node = self._tailnet.by_key(key)
        if node is not None and node.machine != machine:
            raise Refused("node exists with a different machine key")
        expiry = parse_time(request.expiry)
        if node is not None and expiry is not None and expiry.timestamp() <= now:
            return self._log_out(node, now)
        applicant = Application(machine, key, request, hostinfo)
        auth_key = request.auth.auth_key if request.auth else None
        if auth_key:
            return self._by_auth_key(auth_key, applicant, now)
        waiting = self.pending.get(request.followup) if request.followup else None
        if waiting is not None and waiting.application.key == key:
            return waiting
        if node is None:
            return self._wait(applicant)
        if self.mode is Mode.HEADSCALE and expiry is not None:
            raise Refused("extending key is not allowed")
        if expiry is not None and (node.expires_at is None or expiry.timestamp() < node.expires_at):
            self._tailnet.change(node, expires_at=expiry.timestamp())
        return self.answer(node, now)

    def _by_auth_key(self, text: str, applicant: Application, now: float) -> RegisterResponse:
        known = self._tailnet.auth_keys.get(text)
        node = self._tailnet.by_key(applicant.key)
        if node is not None and not node.expired(now) and known is not None and known.user == self._owner(node):
            self._tailnet.change(node, hostinfo=applicant.hostinfo)  # the same node again: spent keys are good enough
            return self.answer(node, now)
        auth_key = self._valid(text, now)
        tags = auth_key.tags
        existing = self._existing(applicant, auth_key.user)
        if applicant.tags and self.mode is Mode.HEADSCALE and existing is None:
            raise Refused(f"requested tags [{' '.join(applicant.tags)}] are invalid or not permitted")
        if applicant.tags and self.mode is Mode.SAAS:
            if tags and set(applicant.tags) != set(tags):
                raise Refused(f"requested tags [{' '.join(applicant.tags)}] are invalid or not permitted")
            tags = applicant.tags
        auth_key.used = True
        node = self._admit(
            applicant,
            existing,
            user=auth_key.user,
            tags=tags,
            ephemeral=auth_key.ephemeral or (self.mode is Mode.SAAS and bool(applicant.request.ephemeral)),
            authorized=auth_key.preauthorized and not self.approval_required,
            now=now,
        )
        return self.answer(node, now)

    def _valid(self, text: str, now: float) -> AuthKey:
        auth_key = self._tailnet.auth_keys.get(text)
        if auth_key is None:
            raise Refused("invalid pre auth key")
        if auth_key.revoked:
            raise Refused("authkey revoked")
        if auth_key.expires_at is not None and auth_key.expires_at <= now:
            raise Refused("authkey expired")
        if auth_key.used and not auth_key.reusable:
            raise Refused("authkey already used")
        return auth_key

    def _existing(self, applicant: Application, user: User | None = None) -> LabNode | None:
        """The node that gets a new key by this.

        Headscale goes by the device (and owner), Tailscale's test server by the old key alone.
        """
        machine, request = applicant.machine, applicant.request
        if self.mode is Mode.HEADSCALE:
            found = (n for n in self._tailnet.nodes.values() if n.machine == machine and user in {None, self._owner(n)})
            return next(found, None)
        for text in (request.node_key, request.old_node_key):
            node = self._tailnet.by_key(NodePublic.parse_optional(text))
            if node is not None and node.machine == machine:
                return node
        return None

    def _admit(
        self,
        applicant: Application,
        existing: LabNode | None,
        *,
        user: User,
        tags: tuple[str, ...],
        ephemeral: bool,
        authorized: bool,
        now: float,
    ) -> LabNode:
        expires_at = now + self.key_expiry_s if self.key_expiry_s is not None and not tags else None
        attributes: dict[str, Any] = {
            "hostinfo": applicant.hostinfo,
            "tags": tags,
            "owner": user,
            "user": self._tailnet.tagged_user if tags else user,
            "expires_at": expires_at,
            "ephemeral": ephemeral,
        }
        if existing is not None:
            self._tailnet.change(existing, key=applicant.key, **attributes)
            return existing
        hostname = str(applicant.hostinfo.get("Hostname") or "node")
        return self._tailnet.add_node(
            applicant.machine, applicant.key, hostname=hostname, authorized=authorized, now=now, **attributes
        )

    def _log_out(self, node: LabNode, now: float) -> RegisterResponse:
        if node.ephemeral:
            self._tailnet.remove_node(node)
        else:
            self._tailnet.change(node, expires_at=now)
        return RegisterResponse(node_key_expired=True)

    def _wait(self, applicant: Application) -> Pending:
        for waiting in self.pending.values():
            if waiting.application.key == applicant.key and not applicant.request.followup:
                return waiting
        if len(self.pending) >= MAX_PENDING:
            del self.pending[next(iter(self.pending))]
        url = f"{self.base_url}/register/hskey-authreq-{self._random(12).hex()}"
        waiting = self.pending[url] = Pending(url, applicant)
        return waiting

    @staticmethod
    def _owner(node: LabNode) -> User:
        return node.owner or node.user

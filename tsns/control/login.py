"""Logging in: from a node key to one that control has accepted, whatever that takes (ring 1).

Source: control/controlclient (direct.go, doLogin) of Tailscale's module. `register` says what requests and answers look like; the order of
things is here. A login outlives the connection that it began on: key and URL are kept until control has accepted the key.

    due --register--> accepted: the key is the node's own, and saved
          |      `--> URL: somebody opens it, while control holds the next answer back
          |      `--> expired: once more, with a fresh key
          `---------> refused: only a person can help, unless the key that we have needs no login
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from dataclasses import replace
from typing import Final, Protocol

from tsns.config import NodeConfig
from tsns.control.backoff import Backoff, retry_after_s
from tsns.control.connection import Connection
from tsns.control.register import Accepted, Login, NeedsLogin, NewKeyNeeded, Refused, outcome, refusal_hint
from tsns.control.updates import described, load_balancing
from tsns.error import ProtocolError, RetryableError, UserError
from tsns.keys import KEY_BYTES, MachinePublic, NodePrivate, NodePublic
from tsns.proto.text import one_line
from tsns.proto.types import Hostinfo, RegisterRequest, RegisterResponse, decode, encode
from tsns.state import Identity

REGISTER_PATH: Final = "/machine/register"
REGISTER_TIMEOUT_S: Final = 60.0
LOGOUT_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)


class LoginEvents(Protocol):
    """What a login tells its owner."""

    def progress(self, text: str) -> None:
        """What is being waited for."""

    def login_url(self, url: str | None) -> None:
        """Somebody has to open this URL; None when that is over."""

    async def save(self, identity: Identity) -> None:
        """Keep the identity; returns when it is safe."""


class Logins:
    """One node's logins at one server, and the identity that they change."""

    def __init__(self, identity: Identity, config: NodeConfig, hostinfo: Hostinfo, events: LoginEvents) -> None:
        self.identity = identity
        # With a key that was accepted once, the netmap may be had without a login; some servers even take one without a proof for a logout.
        self.due = identity.node_key is None or config.auth_key is not None
        self.refusal: UserError | None = None  # of an auth key, beside a node key that may still be good
        self.known = identity.node_key is not None  # whether this server has ever worked as one
        self._events = events
        self._backoff = Backoff(random.random)
        self._trying: NodePrivate | None = None  # a node key that control has not yet accepted
        self._followup: str | None = None  # the URL that somebody has yet to open
        self._login = Login(
            version=config.capability_version,
            lock_key=identity.lock_key.public,
            hostinfo=hostinfo,
            auth_key=config.auth_key.reveal() if config.auth_key else None,
            ephemeral=config.ephemeral,
        )

    async def run(self, connection: Connection, control_url: str, control_key: MachinePublic | None) -> Accepted | None:
        """Have control accept a node key; `control_key` is to be pinned with it.

        None where control refused the auth key, and the key that we have may still be good. UserError where only a person can help.
        """
        self._events.progress("logging in" if self._followup is None else "waiting for somebody to log in")
        while True:
            stored = self.identity.node_key
            key = self._trying or stored
            if key is None:
                key = self._trying = NodePrivate.generate(secrets.token_bytes(KEY_BYTES))
            old = self.identity.old_node_key if key == stored else stored
            request = self._login.request(key.public, old_node_key=old.public if old else None, followup=self._followup)
            # Somebody has to find time to log in: no time-out then.
            answer = await self._ask(connection, request, None if self._followup else REGISTER_TIMEOUT_S)
            match outcome(answer):
                case Accepted() as accepted:
                    await self._accept(key, control_url, control_key)
                    log.info("logged in%s", f" as {accepted.user}" if accepted.user else "")
                    return accepted
                case NeedsLogin(url):
                    self._trying = key
                    if url == self._followup:
                        await asyncio.sleep(self._backoff.failed())
                    self._followup = url
                    self._events.login_url(url)
                    self._events.progress("waiting for somebody to log in")
                case NewKeyNeeded():
                    self.renew_key()
                    if key != stored:
                        raise ProtocolError("control says that a fresh node key has expired")
                case Refused(reason):
                    if self._followup is not None:
                        self._followup = None
                        raise RetryableError(f"the login was not completed: {reason}")
                    self._refused(reason, stored_key=key == stored)
                    return None

    async def logout(self, connection: Connection) -> None:
        """Give the node key up. RetryableError or UserError where control does not do it."""
        key = self.identity.node_key
        assert key is not None, "nothing to give up"
        answer = await self._ask(connection, self._login.logout(key.public), LOGOUT_TIMEOUT_S)
        if answer.error:
            raise UserError(
                f"control refused the logout: {one_line(answer.error)}", "remove the node in its admin console"
            )
        self.identity = replace(self.identity, node_key=None, old_node_key=None)
        await self._events.save(self.identity)

    async def pin(self, control_key: MachinePublic) -> None:
        """Trust this key of control's from now on."""
        self.identity = replace(self.identity, control_key=control_key)
        await self._events.save(self.identity)

    def renew_key(self) -> None:
        """A login is due, and with a fresh node key."""
        self.due = True
        self._trying = NodePrivate.generate(secrets.token_bytes(KEY_BYTES))
        self._followup = None

    def _refused(self, reason: str, *, stored_key: bool) -> None:
        """UserError, unless the key that we have may still be good without a login."""
        tags = self._login.hostinfo.request_tags
        hint = refusal_hint(reason, with_auth_key=self._login.auth_key is not None, with_tags=bool(tags))
        refusal = UserError(f"control refused the login: {reason}", hint)
        if not stored_key or self.refusal is not None or self._login.auth_key is None:
            raise refusal
        log.warning("%s; going on with the login that this node has", refusal.message)
        self.refusal = refusal
        self.due = False

    async def _accept(self, key: NodePrivate, control_url: str, control_key: MachinePublic | None) -> None:
        identity = replace(self.identity.with_node_key(key), control_url=control_url, control_key=control_key)
        if self._followup is not None:
            self._events.login_url(None)
        self._trying = self._followup = self.refusal = None
        self.due = False
        self.known = True
        if identity != self.identity:
            self.identity = identity
            await self._events.save(identity)

    async def _ask(self, connection: Connection, request: RegisterRequest, timeout_s: float | None) -> RegisterResponse:
        keys = [NodePublic.parse_optional(text) for text in (request.old_node_key, request.node_key)]
        reply = await connection.request(
            "POST", REGISTER_PATH, encode(request), load_balancing(*keys), timeout_s=timeout_s
        )
        if reply.status == 200:
            return decode(reply.body, RegisterResponse)
        problem = f"control answers the login with {described(reply)}"
        if reply.status == 400 and b"unsupported client version" in reply.body and not self.known:
            raise UserError(problem, "claim a newer capability version with --capver, as far as this tsns knows it")
        wish = retry_after_s(reply.retry_after, time.time(), random.random) if reply.status == 429 else None
        raise RetryableError(problem, wish)

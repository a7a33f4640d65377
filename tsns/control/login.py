"""Logging in: from a node key to one that control has accepted, whatever that takes (ring 1).

Source: control/controlclient (direct.go, doLogin) of Tailscale's module. `register` says what requests and answers look like; the order of
things is here. A login outlives the connection that it began on: key and URL are kept until control has accepted the key.

    due --register--> accepted: the key is the node's own, and saved
          |      `--> URL: somebody opens it, while control holds the next answer back
          |      `--> expired: once more, with a fresh key
          `---------> refused: only a person can help, unless the key that we have needs no login,
                      or the node has been at work: then somebody is asked to open a URL

A login for a fresh key goes on beside a netmap stream that the present key still has.
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
from tsns.control.backoff import Backoff, wish_of
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
        self.settled = False  # whether control has sent a netmap in this process's life: a refusal no longer ends it
        self.key_refused = False  # control has no netmap for the key that we have
        self.asked = False  # a person has asked for this login, and hears of its failure
        self.generation = 0  # changes when a login that is under way has become pointless
        self._events = events
        self._backoff = Backoff(random.random)
        self._trying: NodePrivate | None = None  # a node key that control has not yet accepted
        self._followup: str | None = None  # the URL that somebody has yet to open
        self._former_auth_key: str | None = None  # for when a person's login comes to nothing
        self._login = Login(
            version=config.capability_version,
            lock_key=identity.lock_key.public,
            hostinfo=hostinfo,
            auth_key=config.auth_key.reveal() if config.auth_key else None,
            ephemeral=config.ephemeral,
        )

    def set_hostinfo(self, hostinfo: Hostinfo) -> None:
        """What the next login says of the node."""
        self._login = replace(self._login, hostinfo=hostinfo)

    @property
    def may_follow(self) -> bool:
        """Whether the netmap can be followed with the key that we have: without a login, or beside one for another key."""
        return (
            self.identity.node_key is not None and not self.key_refused and (not self.due or self._trying is not None)
        )

    async def run(self, connection: Connection, control_url: str, control_key: MachinePublic | None) -> Accepted | None:
        """Have control accept a node key; `control_key` is to be pinned with it.

        None where the way goes on otherwise: without a login, or with another one, as `due` says. UserError where only a person can help.
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
                    return None
                case Refused(reason):
                    if self._forget_url():
                        if self.asked:
                            raise UserError(
                                f"the login was not completed: {reason}", "ask for another one with `tsns login`"
                            )
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
        self.generation += 1
        self._trying = NodePrivate.generate(secrets.token_bytes(KEY_BYTES))
        self._forget_url()

    def ask(self, auth_key: str | None) -> None:
        """A person wants a login with a fresh node key: by this auth key, else by a URL."""
        if not self.asked:
            self._former_auth_key = self._login.auth_key
        self.renew_key()
        self.asked = True
        self._login = replace(self._login, auth_key=auth_key)

    def withdraw(self) -> None:
        """No login is wanted any more."""
        if self.asked:
            self._login = replace(self._login, auth_key=self._former_auth_key)
        self.due = self.asked = False
        self.generation += 1
        self._trying = self._former_auth_key = None
        self._forget_url()

    def _forget_url(self) -> bool:
        """Nobody has to open the URL any more; whether somebody had to."""
        if self._followup is None:
            return False
        self._followup = None
        self._events.login_url(None)
        return True

    def _refused(self, reason: str, *, stored_key: bool) -> None:
        """UserError, unless there is another way."""
        tags = self._login.hostinfo.request_tags
        with_auth_key = self._login.auth_key is not None
        hint = refusal_hint(reason, with_auth_key=with_auth_key, with_tags=bool(tags))
        refusal = UserError(f"control refused the login: {reason}", hint)
        if self.asked or not with_auth_key:
            raise refusal
        if self.settled:
            log.warning("%s; somebody has to log in", refusal.message)
            self._login = replace(self._login, auth_key=None)
        elif stored_key and self.refusal is None:
            log.warning("%s; going on with the login that this node has", refusal.message)
            self.refusal = refusal
            self.due = False
        else:
            raise refusal

    async def _accept(self, key: NodePrivate, control_url: str, control_key: MachinePublic | None) -> None:
        identity = replace(self.identity.with_node_key(key), control_url=control_url, control_key=control_key)
        self._forget_url()
        self._trying = self.refusal = self._former_auth_key = None
        self.due = self.asked = self.key_refused = False
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
        raise RetryableError(problem, wish_of(reply.status, reply.retry_after, time.time(), random.random))

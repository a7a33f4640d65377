"""LocalAPI's part of `tsns login` and `tsns logout` (ring 1). For root alone: an identity is more than a question's answer.

POST /tsns/v1/login {"auth_key": TEXT or null}    begin; without a key control gives a URL
GET /tsns/v1/login                                what has become of it; who no longer asks has given up
POST /tsns/v1/login/cancel                        nobody waits any more
POST /tsns/v1/logout                              give the identity up
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from tsns.control.client import AskedLogin
from tsns.error import ProtocolError, RetryableError, UserError
from tsns.node.localapi import Answer, Handler, need_root

LOGOUT_TIMEOUT_S: Final = 10.0
MAX_KEY_CHARS: Final = 4096
ABANDONED_S: Final = 30.0  # `tsns login` asks several times a second while it waits; killed, it can no longer cancel


class Client(Protocol):
    """The control client, as far as it is needed here."""

    asked_login: AskedLogin

    def login(self, auth_key: str | None) -> None:
        """Begin."""

    def cancel_login(self) -> None:
        """Stop waiting."""

    async def logout(self) -> None:
        """Give the node key up."""


class LoginApi:
    """Answers the requests. `state` is the node's state and login URL, `logged_out` is called after a logout."""

    def __init__(
        self, client: Client, state: Callable[[], tuple[str, str]], logged_out: Callable[[], Awaitable[None]]
    ) -> None:
        self._client = client
        self._state = state
        self._logged_out = logged_out
        self._abandoned: asyncio.TimerHandle | None = None

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """By method and path."""
        return {
            ("POST", "/tsns/v1/login"): self._on_login,
            ("GET", "/tsns/v1/login"): self._on_question,
            ("POST", "/tsns/v1/login/cancel"): self._on_cancel,
            ("POST", "/tsns/v1/logout"): self._on_logout,
        }

    async def _on_login(self, asked: Answer, uid: int) -> Answer:
        need_root(uid)
        key = asked.get("auth_key")
        if key is not None and not (isinstance(key, str) and 0 < len(key) <= MAX_KEY_CHARS):
            raise ValueError("auth_key is a text, or null")
        if self._client.asked_login.pending:
            raise UserError("somebody else is just logging this node in", "wait until that is over")
        self._client.login(key)
        return self._answer()

    async def _on_question(self, _: Answer, uid: int) -> Answer:
        need_root(uid)
        return self._answer()

    async def _on_cancel(self, _: Answer, uid: int) -> Answer:
        need_root(uid)
        self._client.cancel_login()
        return self._answer()

    async def _on_logout(self, _: Answer, uid: int) -> Answer:
        need_root(uid)
        try:
            async with asyncio.timeout(LOGOUT_TIMEOUT_S):
                await self._client.logout()
        except (TimeoutError, RetryableError, ProtocolError) as error:
            reason = str(error) or f"no answer within {LOGOUT_TIMEOUT_S:.0f} s"
            raise UserError(
                f"the node is still logged in, for control was not told: {reason}",
                "try again when the control server can be reached, or remove the node in its admin console",
            ) from None
        await self._logged_out()
        return self._answer()

    def _answer(self) -> Answer:
        state, url = self._state()
        login = self._client.asked_login
        if self._abandoned is not None:
            self._abandoned.cancel()
            self._abandoned = None
        if login.pending:
            self._abandoned = asyncio.get_running_loop().call_later(ABANDONED_S, self._client.cancel_login)
        return {"pending": login.pending, "error": login.error, "hint": login.hint, "state": state, "login_url": url}

"""Who may log a node in and out over its LocalAPI, and what they hear."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tsns.control.client import AskedLogin
from tsns.error import RetryableError, UserError
from tsns.node import login_api
from tsns.node.localapi import Answer, ForbiddenError
from tsns.node.login_api import LoginApi

EVERYTHING = [
    ("POST", "/tsns/v1/login"),
    ("GET", "/tsns/v1/login"),
    ("POST", "/tsns/v1/login/cancel"),
    ("POST", "/tsns/v1/logout"),
]


class Client:
    """Does as it is told."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked_login = AskedLogin()
        self.failure = failure
        self.done: list[Any] = []

    def login(self, auth_key: str | None) -> None:
        self.asked_login = AskedLogin(pending=True)
        self.done.append(("login", auth_key))

    def cancel_login(self) -> None:
        self.asked_login = AskedLogin(error="it was cancelled")

    async def logout(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.done.append("logout")


def ask(client: Client, path: str, body: Answer | None = None, *, method: str = "POST", uid: int = 0) -> Answer:
    async def told() -> None:
        client.done.append("told")

    api = LoginApi(client, lambda: ("running", "u"), told)

    async def call() -> Answer:
        return await api.handlers()[method, f"/tsns/v1/{path}"](body or {}, uid)

    return asyncio.run(call())


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
def test_nobody_but_root(method: str, path: str) -> None:
    """The owner by sudo may look, but not change who the node is."""
    client = Client()
    with pytest.raises(ForbiddenError):
        ask(client, path.removeprefix("/tsns/v1/"), method=method, uid=1000)
    assert client.done == []


def test_a_login_one_at_a_time() -> None:
    client = Client()
    answer = ask(client, "login", {"auth_key": "k"})
    assert answer == {"pending": True, "error": "", "hint": "", "state": "running", "login_url": "u"}
    with pytest.raises(UserError, match="somebody else"):
        ask(client, "login", {"auth_key": None})
    assert ask(client, "login/cancel")["error"] == "it was cancelled"
    assert not ask(client, "login", method="GET")["pending"]
    assert ask(client, "login", {})["pending"]
    assert client.done == [("login", "k"), ("login", None)]


def test_a_login_of_somebody_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a `tsns login` that was killed and keeps everybody else out."""
    monkeypatch.setattr(login_api, "ABANDONED_S", 0.05)
    client = Client()

    async def told() -> None:
        raise AssertionError("there was no logout")

    async def play() -> None:
        handlers = LoginApi(client, lambda: ("running", "u"), told).handlers()
        await handlers["POST", "/tsns/v1/login"]({"auth_key": None}, 0)
        for _ in range(5):
            await asyncio.sleep(0.02)
            assert (await handlers["GET", "/tsns/v1/login"]({}, 0))["pending"], "somebody is asking"
        await asyncio.sleep(0.1)
        assert not client.asked_login.pending
        await handlers["POST", "/tsns/v1/login"]({"auth_key": "k"}, 0)
        client.asked_login = AskedLogin()
        await handlers["GET", "/tsns/v1/login"]({}, 0)
        await asyncio.sleep(0.1)
        assert client.asked_login == AskedLogin(), "what is over is not cancelled"

    asyncio.run(play())


@pytest.mark.parametrize("key", [5, "", "x" * 5000, ["k"]])
def test_what_is_no_key(key: Any) -> None:
    with pytest.raises(ValueError, match="auth_key"):
        ask(Client(), "login", {"auth_key": key})


def test_logout() -> None:
    client = Client()
    ask(client, "logout")
    assert client.done == ["logout", "told"]


def test_a_logout_that_fails_is_no_logout() -> None:
    client = Client(RetryableError("no connection to x"))
    with pytest.raises(UserError, match=r"still logged in.*no connection to x"):
        ask(client, "logout")
    assert client.done == []

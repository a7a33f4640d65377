"""Who gets into the lab's tailnet, told request by request."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tsns.keys import MachinePublic, NodePublic
from tsns.lab.registrar import MAX_PENDING, Mode, Pending, Registrar
from tsns.lab.tailnet import Tailnet
from tsns.proto.types import LOGOUT_EXPIRY, Hostinfo, RegisterAuth, RegisterRequest, RegisterResponse

NOW = 1_700_000_000.0
ALICE, BOB = (MachinePublic(bytes([number] * 32)) for number in (1, 2))


def key(number: int) -> NodePublic:
    return NodePublic(bytes([number] * 32))


class Desk:
    """A registrar and its tailnet."""

    def __init__(self, mode: Mode = Mode.HEADSCALE) -> None:
        numbers = itertools.count(1)

        def random(size: int) -> bytes:
            return next(numbers).to_bytes(size, "big")

        self.tailnet = Tailnet(random)
        self.registrar = Registrar(self.tailnet, mode, random)
        self.registrar.base_url = "http://lab"

    def ask(
        self,
        number: int,
        auth_key: str | None = None,
        *,
        machine: MachinePublic = ALICE,
        now: float = NOW,
        tags: list[str] | None = None,
        **members: Any,
    ) -> RegisterResponse | Pending:
        request = RegisterRequest(
            version=131,
            node_key=str(key(number)),
            auth=RegisterAuth(auth_key=auth_key) if auth_key else None,
            hostinfo=Hostinfo(hostname="web", request_tags=tags),
            **members,
        )
        return self.registrar.register(request, {"Hostname": "web"}, machine, now)

    def error(self, *arguments: Any, **members: Any) -> str | None:
        answer = self.ask(*arguments, **members)
        assert isinstance(answer, RegisterResponse)
        return answer.error

    def url(self, *arguments: Any, **members: Any) -> str:
        answer = self.ask(*arguments, **members)
        assert isinstance(answer, Pending)
        return answer.url


@pytest.fixture(params=list(Mode))
def desk(request: pytest.FixtureRequest) -> Desk:
    return Desk(request.param)


def test_an_auth_key_lets_a_node_in(desk: Desk) -> None:
    answer = desk.ask(1, desk.tailnet.add_auth_key())
    assert isinstance(answer, RegisterResponse)
    assert (answer.error, answer.auth_url, answer.machine_authorized) == (None, None, True)
    assert answer.login is not None
    assert answer.login.login_name == "person@lab.test"
    assert desk.tailnet.find("web").key == key(1)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"expires_at": NOW - 1}, "authkey expired"), ({}, "authkey revoked"), (None, "invalid pre auth key")],
)
def test_a_bad_auth_key_is_refused(desk: Desk, options: dict[str, Any] | None, text: str) -> None:
    auth_key = "nonsense" if options is None else desk.tailnet.add_auth_key(**options)
    if text == "authkey revoked":
        desk.tailnet.auth_keys[auth_key].revoked = True
    assert desk.error(1, auth_key) == text
    assert not desk.tailnet.nodes


def test_a_one_shot_key_lets_in_one_node_which_may_come_again(desk: Desk) -> None:
    auth_key = desk.tailnet.add_auth_key(reusable=False)
    assert desk.error(1, auth_key) is None
    assert desk.error(1, auth_key) is None
    assert desk.error(2, auth_key, machine=BOB) == "authkey already used"
    assert desk.error(3, auth_key) == "authkey already used"  # the same device with another node key


def test_a_new_node_key_keeps_the_node(desk: Desk) -> None:
    auth_key = desk.tailnet.add_auth_key()
    desk.ask(1, auth_key)
    addresses = desk.tailnet.find("web").addresses
    assert desk.error(2, auth_key, old_node_key=str(key(1))) is None
    assert [(node.key, node.addresses) for node in desk.tailnet.nodes.values()] == [(key(2), addresses)]


def test_headscale_knows_the_device_and_the_test_server_the_old_key() -> None:
    for mode, count in ((Mode.HEADSCALE, 1), (Mode.SAAS, 2)):
        desk = Desk(mode)
        auth_key = desk.tailnet.add_auth_key()
        desk.ask(1, auth_key)
        desk.ask(2, auth_key)
        assert len(desk.tailnet.nodes) == count


def test_an_old_key_of_another_device_carries_nothing_over() -> None:
    desk = Desk(Mode.SAAS)
    auth_key = desk.tailnet.add_auth_key()
    desk.ask(1, auth_key)
    desk.ask(2, auth_key, machine=BOB, old_node_key=str(key(1)))
    assert len(desk.tailnet.nodes) == 2


def test_a_node_key_belongs_to_one_device(desk: Desk) -> None:
    auth_key = desk.tailnet.add_auth_key()
    desk.ask(1, auth_key)
    assert desk.error(1, auth_key, machine=BOB) == "node exists with a different machine key"


def test_a_stranger_gets_a_url_and_is_in_once_somebody_approved(desk: Desk) -> None:
    url = desk.url(1)
    assert url.startswith("http://lab/register/hskey-authreq-")
    assert desk.url(1, followup=url) == url
    node = desk.registrar.approve(url, user=None, now=NOW)
    assert node.key == key(1)
    assert desk.error(1) is None  # known now


def test_somebody_may_approve_before_the_node_comes_to_wait_for_it(desk: Desk) -> None:
    url = desk.url(1)
    desk.registrar.approve(url, user=None, now=NOW)
    answer = desk.ask(1, followup=url)
    assert isinstance(answer, RegisterResponse)
    assert answer.machine_authorized


def test_a_login_that_nobody_knows_any_more_gets_another_url(desk: Desk) -> None:
    url = desk.url(1)
    del desk.registrar.pending[url]
    assert desk.url(1, followup=url) != url


def test_logins_that_wait_are_bounded_and_the_oldest_goes(desk: Desk) -> None:
    urls = []
    for number in range(MAX_PENDING + 1):
        request = RegisterRequest(version=131, node_key=f"nodekey:{number + 1:064x}")
        waiting = desk.registrar.register(request, {}, ALICE, NOW)
        assert isinstance(waiting, Pending)
        urls.append(waiting.url)
    assert list(desk.registrar.pending) == urls[1:]


def test_an_expired_key_asks_for_a_new_one(desk: Desk) -> None:
    desk.registrar.key_expiry_s = 60
    desk.ask(1, desk.tailnet.add_auth_key())
    answer = desk.ask(1, now=NOW + 61)
    assert isinstance(answer, RegisterResponse)
    assert (answer.node_key_expired, answer.machine_authorized, answer.auth_url) == (True, None, None)


@pytest.mark.parametrize("ephemeral", [False, True])
def test_logout(desk: Desk, ephemeral: bool) -> None:
    auth_key = desk.tailnet.add_auth_key(ephemeral=ephemeral)
    desk.ask(1, auth_key)
    answer = desk.ask(1, auth_key, expiry=LOGOUT_EXPIRY)
    assert answer == RegisterResponse(node_key_expired=True)
    assert [node.expired(NOW) for node in desk.tailnet.nodes.values()] == ([] if ephemeral else [True])


def test_the_zero_time_is_no_logout(desk: Desk) -> None:
    auth_key = desk.tailnet.add_auth_key()
    desk.ask(1, auth_key, expiry="0001-01-01T00:00:00Z")
    assert desk.error(1, auth_key, expiry="0001-01-01T00:00:00Z") is None
    assert not desk.tailnet.find("web").expired(NOW)


def test_tags_come_from_the_key_and_have_no_owner_and_no_expiry(desk: Desk) -> None:
    desk.registrar.key_expiry_s = 60
    desk.ask(1, desk.tailnet.add_auth_key(tags=["tag:db"]))
    node = desk.tailnet.find("web")
    assert (node.tags, node.user.login_name, node.expires_at) == (("tag:db",), "tagged-devices", None)


def test_headscale_refuses_wishes_for_tags_beside_an_auth_key() -> None:
    desk = Desk()
    assert desk.error(1, desk.tailnet.add_auth_key(), tags=["tag:db"]) == (
        "requested tags [tag:db] are invalid or not permitted"
    )
    saas = Desk(Mode.SAAS)
    assert saas.error(1, saas.tailnet.add_auth_key(tags=["tag:db"]), tags=["tag:db"]) is None
    assert saas.error(2, saas.tailnet.add_auth_key(tags=["tag:db"]), tags=["tag:web"]) is not None


def test_ephemeral_by_request_is_for_the_test_server_only() -> None:
    for mode, ephemeral in ((Mode.HEADSCALE, False), (Mode.SAAS, True)):
        desk = Desk(mode)
        desk.ask(1, desk.tailnet.add_auth_key(), ephemeral=True)
        assert desk.tailnet.find("web").ephemeral is ephemeral


def test_a_device_may_have_to_wait_for_approval(desk: Desk) -> None:
    answer = desk.ask(1, desk.tailnet.add_auth_key(preauthorized=False))
    assert isinstance(answer, RegisterResponse)
    assert (answer.machine_authorized, answer.auth_url, answer.error) == (None, None, None)
    assert not desk.tailnet.find("web").authorized

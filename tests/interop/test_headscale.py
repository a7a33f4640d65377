"""What only a real Headscale does: its administrator's commands, its logins, its own relay, and what it remembers over a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.control import DOMAIN, OWN_REGION_CODE, USER, Headscale
from tests.interop.rig.internet import Daemon, wait_for
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.tsns import Tsns, tsns_on

pytestmark = pytest.mark.interop

NODE = "web"
BACK_WITHIN_S = 30.0  # a node has found its server again
URL_WORDS = "to log in, open "
TAG = "tag:server"
EVERYTHING = {"action": "accept", "src": ["*"], "dst": ["*:*"]}
NOTHING_ELSE: dict[str, Any] = {"tagOwners": {TAG: [f"{USER}@"]}, "acls": []}
OPEN: dict[str, Any] = {**NOTHING_ELSE, "acls": [EVERYTHING]}


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """A tailnet of Headscale's."""
    with new_tailnet("headscale", tmp_path_factory.mktemp("headscale")) as found:
        yield found


@pytest.fixture
def headscale(tailnet: Tailnet) -> Headscale:
    """The server, which can be asked for its nodes."""
    return server_of(tailnet)


@pytest.fixture(scope="module")
def old(tailnet: Tailnet) -> Iterator[Tailscaled]:
    """An official client, on the tailnet before any node of tsns."""
    with tailnet.tailscaled("old") as client:
        yield client


@pytest.fixture
def tsns(tailnet: Tailnet) -> Iterator[Tsns]:
    """tsns on a host of its own, without any node yet."""
    with tailnet.host("new") as host, tsns_on(host) as program:
        yield program


def server_of(tailnet: Tailnet) -> Headscale:
    assert isinstance(tailnet.control, Headscale)
    return tailnet.control


def login(tailnet: Tailnet, **options: Any) -> tuple[str, ...]:
    return ("--login-server", tailnet.control.url, "--auth-key", server_of(tailnet).auth_key(**options))


def status(tsns: Tsns, name: str = NODE) -> dict[str, Any]:
    """The node's status, running or not."""
    return tsns.answer("status", name, may_fail=True)


def is_in(tsns: Tsns, state: str) -> Callable[[], bool]:
    return lambda: status(tsns)["state"] == state


def pings(tsns: Tsns, address: str) -> int:
    """How many of three packets come back."""
    return traffic.pings(tsns.inside(NODE, "ping", "-c3", "-i0.2", "-W1", address, check=False)).received


def url_of(waiting: Daemon, number: int = 1) -> str:
    """The address at which a command has asked somebody to log in; its `number`th."""

    def look() -> str | None:
        found = [line for line in waiting.said().splitlines() if line.startswith(URL_WORDS)]
        return found[number - 1].removeprefix(URL_WORDS) if len(found) >= number else None

    return wait_for(look, "a login URL is shown", BACK_WITHIN_S)


@contextlib.contextmanager
def waiting_up(tsns: Tsns, tailnet: Tailnet, host_name: str, *flags: str) -> Iterator[Daemon]:
    """`tsns up` without an auth key."""
    words = ("--login-server", tailnet.control.url, "--hostname", host_name, *flags)
    with tsns.start("up", NODE, *words, log="up") as process:
        yield process


def assert_done(command: Daemon) -> None:
    assert command.process.wait(BACK_WITHIN_S) == 0, command.said()


# --- nodes that end ----------------------------------------------------------------------------------------------------


def test_the_node_of_a_command_logs_out(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    """Whether the server then forgets the node is a property of the auth key there."""
    tsns.run("run", *login(tailnet, ephemeral=True), "--hostname", "brief", "--", "true")

    wait_for(lambda: "brief" not in headscale.node_names(), "the server has forgotten the node")


def test_a_lasting_node_stays_the_same(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "lasting")
    before = tsns.ip(NODE)
    tsns.run("down", NODE)
    assert "lasting" in headscale.node_names()

    tsns.run("up", NODE, "--login-server", tailnet.control.url)

    assert tsns.ip(NODE) == before
    assert headscale.node_names().count("lasting") == 1


def test_removing_a_node_logs_it_out(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "removed")

    tsns.run("rm", NODE)

    wait_for(lambda: headscale.is_expired("removed"), "the server has ended the node's key")


# --- logins ------------------------------------------------------------------------------------------------------------


def test_a_login_by_url(tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns) -> None:
    with waiting_up(tsns, tailnet, "by-url") as up:
        url = url_of(up)
        assert url.startswith(f"{headscale.url}/register/")
        assert (status(tsns)["state"], status(tsns)["login_url"]) == ("needs-login", url)
        headscale.register(url)
        assert_done(up)

    assert pings(tsns, old.ip()) == 3


def test_a_rejected_login_may_be_tried_again(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    """Headscale answers a rejection with another URL."""
    with waiting_up(tsns, tailnet, "rejected") as up:
        headscale.reject(url_of(up))
        headscale.register(url_of(up, 2))
        assert_done(up)


def test_a_login_outlives_a_restart_of_the_server(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    """The URL does not: it is in the server's memory alone."""
    with waiting_up(tsns, tailnet, "patient") as up:
        url_of(up)
        headscale.stop()
        headscale.start()
        headscale.register(url_of(up, 2))
        assert_done(up)


def test_logout_and_login(tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "leaving")
    address = tsns.ip(NODE)

    tsns.run("logout", NODE)
    assert headscale.is_expired("leaving")
    assert pings(tsns, old.ip()) == 0

    tsns.run("login", NODE, "--auth-key", headscale.auth_key(reusable=False))
    assert not headscale.is_expired("leaving")
    assert (tsns.ip(NODE), pings(tsns, old.ip())) == (address, 3)

    with tsns.start("login", NODE, log="login") as again:
        url = url_of(again)
        assert pings(tsns, old.ip()) == 3, "a login that waits disturbs nobody"
        headscale.register(url)
        assert_done(again)
    assert (tsns.ip(NODE), pings(tsns, old.ip())) == (address, 3)
    assert headscale.node_names().count("leaving") == 1


# --- keys that run out, nodes that are deleted -------------------------------------------------------------------------


def test_an_expired_key_is_renewed(tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "renewed")
    address, before = tsns.ip(NODE), headscale.node_key("renewed")

    headscale.expire("renewed")
    wait_for(lambda: headscale.node_key("renewed") != before, "the node has a new key")
    wait_for(is_in(tsns, "running"), "the node is back")

    assert (tsns.ip(NODE), pings(tsns, old.ip())) == (address, 3)
    assert not headscale.is_expired("renewed")


def test_an_expired_key_that_only_a_person_can_renew(
    tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns
) -> None:
    tsns.run("up", NODE, *login(tailnet, reusable=False), "--hostname", "spent")
    address, before = tsns.ip(NODE), headscale.node_key("spent")

    headscale.expire("spent")
    wait_for(lambda: status(tsns)["login_url"], "somebody is asked to log in")
    assert status(tsns)["state"] == "needs-login"
    assert pings(tsns, old.ip()) == 0

    headscale.never_expire("spent")
    wait_for(is_in(tsns, "running"), "the key is good again")
    assert (status(tsns)["login_url"], headscale.node_key("spent")) == ("", before)
    assert pings(tsns, old.ip()) == 3

    headscale.expire("spent")
    headscale.register(wait_for(lambda: str(status(tsns)["login_url"]), "somebody is asked to log in"))
    wait_for(is_in(tsns, "running"), "somebody has logged in")
    assert headscale.node_key("spent") != before
    assert (tsns.ip(NODE), pings(tsns, old.ip())) == (address, 3)


def test_a_deleted_node_logs_in_again(tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns) -> None:
    """Headscale does not tell it, not even by the end of its stream: it learns it from the answer to its next request."""
    tsns.run("up", NODE, *login(tailnet), "--hostname", "deleted")
    headscale.delete("deleted")
    headscale.stop()  # so that there is a next request soon: without news it may take minutes
    headscale.start()

    wait_for(lambda: "deleted" in headscale.node_names(), "the node has logged in again", BACK_WITHIN_S)
    wait_for(is_in(tsns, "running"), "the node is back")
    wait_for(
        lambda: pings(tsns, old.ip()) == 3, "the peer has found the server, too, and knows the new node", BACK_WITHIN_S
    )


# --- what an administrator changes -------------------------------------------------------------------------------------


def test_names_follow_their_administrator(tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "named")

    headscale.rename("named", "other")
    headscale.rename(old.host.name, "elder")

    wait_for(lambda: status(tsns)["self"]["dns_name"] == f"other.{DOMAIN}", "the node has its new name")
    wait_for(lambda: "elder" in peers(tsns), "the peer has its new name")
    assert old.ip() in tsns.inside(NODE, "getent", "ahosts", "elder").stdout
    assert tsns.inside(NODE, "getent", "ahosts", old.host.name, check=False).returncode != 0
    headscale.rename(old.host.name, old.host.name)


def peers(tsns: Tsns) -> list[str]:
    """The names of those whom the node knows."""
    return [str(peer["name"]) for peer in status(tsns)["peers"]]


def test_policies_are_followed_at_once(tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "policed")
    old.wait_for_peer("policed")
    address = tsns.ip(NODE)

    def reached() -> int:
        return traffic.pings(old.host.run("ping", "-c2", "-i0.2", "-W1", address, check=False)).received

    assert reached() == 2
    outwards = {"action": "accept", "src": [address], "dst": [f"{old.ip()}:*"]}
    headscale.set_policy({**NOTHING_ELSE, "acls": [outwards]})
    wait_for(lambda: not reached(), "the node lets nobody in")
    assert pings(tsns, old.ip()) == 3, "answers to what the node itself began pass"

    headscale.set_policy(NOTHING_ELSE)
    wait_for(lambda: not peers(tsns), "the node knows nobody")
    assert pings(tsns, old.ip()) == 0

    headscale.set_policy(OPEN)
    wait_for(lambda: old.host.name in peers(tsns), "the node knows everybody again")
    old.wait_for_peer("policed")
    assert (reached(), pings(tsns, old.ip())) == (2, 3)


def test_tags_of_an_auth_key(tailnet: Tailnet, headscale: Headscale, old: Tailscaled, tsns: Tsns) -> None:
    headscale.set_policy(OPEN)
    tsns.run("up", NODE, *login(tailnet, tags=[TAG]), "--hostname", "tagged")

    assert headscale.tags("tagged") == [TAG]
    assert status(tsns)["self"]["tags"] == [TAG]
    assert pings(tsns, old.ip()) == 3


def test_tags_that_a_person_asks_for(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    headscale.set_policy(OPEN)
    with waiting_up(tsns, tailnet, "wants-tags", "--advertise-tags", TAG) as up:
        headscale.register(url_of(up))
        assert_done(up)

    assert headscale.tags("wants-tags") == [TAG]
    assert status(tsns)["self"]["tags"] == [TAG]


def test_tags_beside_an_auth_key(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    headscale.set_policy(OPEN)
    result = tsns.run("up", NODE, *login(tailnet), "--advertise-tags", TAG, check=False)

    assert result.returncode == 1
    assert "are invalid or not permitted" in result.stderr
    assert "leave out --advertise-tags" in result.stderr


# --- a server that goes and comes, and relays by itself ----------------------------------------------------------------


def test_flows_outlive_a_restart_of_the_server(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    with tailnet.tailscaled("old") as old:
        tsns.run("up", NODE, *login(tailnet), "--hostname", "steady")
        old.wait_for_peer("steady")
        pings = ("ping", "-c20", "-i0.2", old.ip())
        tsns.inside(NODE, "ping", "-c1", old.ip())

        tailnet.control.stop()
        without = tsns.inside(NODE, *pings)
        tailnet.control.start()

        assert "20 received" in without.stdout
        with tailnet.tailscaled("later") as later:
            wait_for(lambda: later.host.name in peers(tsns), "the node learns of a new peer", BACK_WITHIN_S)


@pytest.fixture(scope="module")
def lone_tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """A tailnet whose only server is Headscale: control by https, and the relay inside it, which lets in whom it knows."""
    with new_tailnet("headscale alone", tmp_path_factory.mktemp("alone")) as found:
        yield found


def test_the_relay_inside_headscale(lone_tailnet: Tailnet) -> None:
    tailnet = lone_tailnet
    with tailnet.tailscaled("old") as old, tailnet.host("new") as host, tsns_on(host) as tsns:
        first = tsns.run("run", *login(tailnet, ephemeral=True), "--", "ping", "-c3", old.ip())
        assert traffic.pings(first).received == 3

        tsns.run("up", NODE, *login(tailnet), "--hostname", "alone")
        wait_for(lambda: (old.peer("alone") or {}).get("Relay") == OWN_REGION_CODE, "the peer knows of our relay")
        assert pings(tsns, old.ip()) == 3
        assert tsns.path_kind(NODE, old.host.name) == "derp"

        server_of(tailnet).expire("alone")  # its successor is another one to the relay
        wait_for(is_in(tsns, "running"), "the node is back")
        wait_for(lambda: pings(tsns, old.ip()) == 3, "the node reaches its peer")

        tailnet.control.stop()
        tailnet.control.start()
        wait_for(is_in(tsns, "running"), "the node has found the server", BACK_WITHIN_S)
        wait_for(lambda: pings(tsns, old.ip()) == 3, "the node reaches its peer", BACK_WITHIN_S)
        wait_for(lambda: status(tsns)["health"] == [], "the node has nothing to complain about")

"""The client against the lab's control server on loopback: what a person and the rest of the node get to see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tsns.config import NodeConfig, Secret
from tsns.control import cache
from tsns.control import client as client_module
from tsns.control import connection as connection_module
from tsns.control import dial as dial_module
from tsns.control import updates as updates_module
from tsns.control.client import AskedLogin, ControlClient
from tsns.control.netmap import NetMap, NetMapChange
from tsns.error import RetryableError, UserError
from tsns.keys import DiscoPublic, MachinePublic, NodePrivate
from tsns.lab.certificate import Certificate, make
from tsns.lab.control import ControlServer, Recorded
from tsns.lab.faults import EarlyPayload, json
from tsns.lab.registrar import Mode
from tsns.lab.tailnet import LabNode, Tailnet
from tsns.netns.underlay import Stream, Underlay
from tsns.proto.types import (
    ControlDialPlan,
    ControlIPCandidate,
    Hostinfo,
    MapRequest,
    MapResponse,
    NetInfo,
    RegisterRequest,
    TKAInfo,
    decode,
)
from tsns.proxies import Proxies, Proxy
from tsns.state import Identity
from tsns.steps import Steps

PATIENCE_S = 5.0
DISCO = DiscoPublic(b"\x07" * 32)
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
HOME = NetInfo(preferred_derp=1, working_udp=True, derp_latency={"1-v4": 0.01})


@dataclass
class Events:
    """Remembers what the client tells, and lets a test wait for it."""

    texts: list[str] = field(default_factory=list)
    urls: list[str | None] = field(default_factory=list)
    ups: list[bool] = field(default_factory=list)
    pending: list[bool] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)
    changes: list[NetMapChange] = field(default_factory=list)
    saved: list[Identity] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def progress(self, text: str) -> None:
        self.texts.append(text)
        self.news.set()

    def login_url(self, url: str | None) -> None:
        self.urls.append(url)
        self.news.set()

    def netmap(self, netmap: NetMap, change: NetMapChange) -> Steps[None]:
        assert netmap.self_node is not None
        self.changes.append(change)
        self.news.set()
        yield

    def connected(self, up: bool) -> None:
        self.ups.append(up)
        self.news.set()

    def approval_pending(self, pending: bool) -> None:
        self.pending.append(pending)
        self.news.set()

    def key_lost(self, lost: bool) -> None:
        self.lost.append(lost)
        self.news.set()

    async def save(self, identity: Identity) -> None:
        self.saved.append(identity)
        self.news.set()


class CountingUnderlay(Underlay):
    """Counts connections."""

    def __init__(self) -> None:
        super().__init__()
        self.dialled: list[str] = []

    @property
    def opened(self) -> int:
        return len(self.dialled)

    async def open_tcp(self, host: str, port: int, **options: Any) -> Stream:
        self.dialled.append(host)
        return await super().open_tcp(host, port, **options)


@dataclass
class Site:
    """A control server, and clients of it."""

    control: ControlServer
    underlay: CountingUnderlay = field(default_factory=CountingUnderlay)

    def config(self, **settings: Any) -> NodeConfig:
        values: dict[str, Any] = {"name": "n", "login_server": self.control.url, **settings}
        return NodeConfig(**values)

    def with_key(self, **options: Any) -> NodeConfig:
        return self.config(auth_key=Secret(self.control.add_auth_key(**options)))

    def client(
        self,
        config: NodeConfig,
        identity: Identity | None = None,
        tls: ssl.SSLContext = TLS,
        disco: DiscoPublic = DISCO,
    ) -> ControlClient:
        return ControlClient(
            identity or Identity.generate(),
            config,
            underlay=self.underlay,
            tls=tls,
            hostinfo=Hostinfo(hostname=config.name, os="linux"),
            disco=disco,
            events=Events(),
        )

    def node(self, client: ControlClient) -> LabNode:
        assert client.identity.node_key is not None
        return self.control.tailnet.find(client.identity.node_key.public)

    def requests(self, path: str) -> list[Recorded]:
        return [request for request in self.control.requests if request.path == path]

    def updates(self) -> list[MapRequest]:
        asked = (decode(request.body, MapRequest) for request in self.requests("/machine/map"))
        return [request for request in asked if not request.stream]


def events(client: ControlClient) -> Events:
    told = client._events
    assert isinstance(told, Events)
    return told


@contextlib.asynccontextmanager
async def running(client: ControlClient) -> AsyncIterator[Callable[[Callable[[], object]], Coroutine[Any, Any, None]]]:
    """Let the client run; yields a function that waits until something holds, or raises what ended the client."""
    task: asyncio.Task[Any] = asyncio.create_task(client.run())

    async def until(holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                if task.done():
                    await task
                await asyncio.sleep(0.002)

    try:
        yield until
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, UserError):
            await task


def scenario(play: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    async def play_it() -> None:
        control = ControlServer(Tailnet(os.urandom))
        await control.start()
        try:
            await play(Site(control))
        finally:
            await control.stop()

    asyncio.run(play_it())


async def refused(client: ControlClient) -> UserError:
    """What ends a client that cannot go on."""
    with pytest.raises(UserError) as caught:
        async with asyncio.timeout(PATIENCE_S):
            await client.run()
    assert "\n" not in caught.value.message + caught.value.hint
    assert not caught.value.hint.endswith(".")
    return caught.value


# --- login -------------------------------------------------------------------------------------------------------------


def test_an_auth_key_leads_to_a_netmap_over_one_connection() -> None:
    async def play(site: Site) -> None:
        site.control.add_fake_peers(3)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            assert site.underlay.opened == 1, "the connection that brought the key is the one that is upgraded"
            [change] = events(client).changes
            assert change.first
            assert len(change.added) == len(client.netmap.peers) == 3
            [saved] = events(client).saved
            assert saved == client.identity
            assert saved.control_url == site.control.url
            assert saved.control_key == site.control.key.public
            assert events(client).ups == [True]
            assert (events(client).urls, events(client).pending) == ([], [])

    scenario(play)


def test_a_login_in_a_browser() -> None:
    async def play(site: Site) -> None:
        site.control.visits_approve = False
        client = site.client(site.config())
        async with running(client) as until:
            await until(lambda: events(client).urls)
            [url] = events(client).urls
            assert url is not None
            assert events(client).saved == [], "a key that is not accepted is not kept"
            await until(lambda: len(site.requests("/machine/register")) == 2)
            site.control.approve(url)
            await until(lambda: events(client).ups)
            assert events(client).urls == [url, None]
            first, second = (decode(request.body, RegisterRequest) for request in site.requests("/machine/register"))
            assert (first.followup, second.followup) == (None, url)
            assert first.node_key == second.node_key

    scenario(play)


def test_a_login_in_a_browser_outlives_its_connection() -> None:
    async def play(site: Site) -> None:
        site.control.visits_approve = False
        client = site.client(site.config())
        async with running(client) as until:
            await until(lambda: len(site.requests("/machine/register")) == 2)
            url = events(client).urls[-1]
            assert url is not None
            await site.control.drop_connections()
            await until(lambda: len(site.requests("/machine/register")) == 3)
            again = decode(site.requests("/machine/register")[-1].body, RegisterRequest)
            assert again.followup == url
            site.control.approve(url)
            await until(lambda: events(client).ups)

    scenario(play)


def test_a_refused_auth_key() -> None:
    async def play(site: Site) -> None:
        error = await refused(site.client(site.config(auth_key=Secret("hskey-auth-no-such"))))
        assert error.message.startswith("control refused the login: ")
        assert "--auth-key" in error.hint
        error = await refused(site.client(site.with_key(expired=True)))
        assert "expired" in error.message

    scenario(play)


def test_a_known_node_goes_to_the_netmap_at_once() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
        site.control.requests.clear()
        again = site.client(site.config(), client.identity)
        async with running(again) as until:
            await until(lambda: events(again).ups)
            assert site.requests("/machine/register") == []
            assert events(again).saved == []

    scenario(play)


def test_a_useless_auth_key_does_no_harm_to_a_known_node(caplog: pytest.LogCaptureFixture) -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
        config = site.config(auth_key=Secret("hskey-auth-no-such"))
        again = site.client(config, client.identity)
        async with running(again) as until:
            await until(lambda: events(again).ups)
            assert "going on with the login that this node has" in caplog.text
            site.control.remove(site.node(again))
            await until(lambda: events(again).urls)  # a node at work is not ended by a refusal: somebody may log in
            assert events(again).lost == [True]

    scenario(play)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_deleted_node_logs_in_again(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server ends the stream. The other, as Headscale does, lets it go on in silence, and answers nothing but the next update."""

    async def play(site: Site) -> None:
        site.control.mode = mode
        monkeypatch.setattr(updates_module, "REASSURE_S", (0.3, 0.3))
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            client.set_net_info(HOME)
            await client.home_accepted(1)
            before = node_key(client)
            site.control.remove(site.node(client))
            await until(lambda: len(site.control.tailnet.nodes) == 1 and events(client).ups[-1])
            assert site.node(client).id == 2
            assert node_key(client) == before
            assert events(client).lost == [True, False]

    scenario(play)


def test_an_update_without_news_is_sent_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(site: Site) -> None:
        monkeypatch.setattr(updates_module, "REASSURE_S", (0.4, 0.4))
        loop = asyncio.get_running_loop()
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            client.set_net_info(HOME)
            await client.home_accepted(1)
            assert len(site.updates()) == 1
            site.control.faults.fail("/machine/map", 500)
            await until(lambda: len(site.updates()) == 2)
            failed_at = loop.time()
            await until(lambda: len(site.updates()) == 3)
            assert loop.time() - failed_at < 0.3, "one that fails is no reason to wait again"
            await until(lambda: len(site.updates()) == 4)
            assert events(client).ups == [True]

    scenario(play)


def test_a_refused_update_is_no_refused_key() -> None:
    """Guards against a login for nothing, and against taking one answer of one request for the word on our key."""

    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            site.control.faults.fail("/machine/map", 404, "not this one")
            client.set_net_info(HOME)
            await client.home_accepted(1)
            await until(lambda: events(client).ups == [True, False, True])
            assert events(client).lost == []
            assert len(site.requests("/machine/register")) == 1
            assert site.underlay.opened == 1, "the connection stays"

    scenario(play)


def test_an_expired_key_is_replaced() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            old = client.identity.node_key
            assert old is not None
            site.control.expire(old.public)
            await until(lambda: events(client).ups == [True, False, True])
            assert client.identity.node_key != old
            assert client.identity.old_node_key == old
            request = decode(site.requests("/machine/register")[-1].body, RegisterRequest)
            assert request.old_node_key == str(old.public)
            assert events(client).pending == [], "nobody has to approve a node whose key has expired"

    scenario(play)


def test_a_device_that_waits_for_approval() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key(preauthorized=False))
        async with running(client) as until:
            await until(lambda: events(client).ups)
            assert events(client).pending == [True]
            site.control.authorize(site.node(client))
            await until(lambda: events(client).pending == [True, False])

    scenario(play)


def test_logout() -> None:
    async def play(site: Site) -> None:
        config = site.with_key(ephemeral=True)
        client = site.client(config)
        async with running(client) as until:
            await until(lambda: events(client).ups)
            await client.logout()
            assert client.identity.node_key is None
            await until(lambda: not site.control.tailnet.nodes)
            await asyncio.sleep(0.05)
            assert not site.control.tailnet.nodes, "it does not log in again"
        client = site.client(config)
        async with running(client) as until:
            await until(lambda: events(client).ups)
        await client.logout()
        assert not site.control.tailnet.nodes
        await client.logout()

    scenario(play)


def test_an_identity_is_good_at_one_server_only() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
        elsewhere = replace(client.identity, control_url="https://elsewhere.example")
        error = await refused(site.client(site.config(), elsewhere))
        assert "is logged in at https://elsewhere.example" in error.message

    scenario(play)


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A server that says the same whatever comes; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1)
            writer.write(answer)
            while await reader.read(4096):
                pass
        writer.close()
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await done.wait()


# --- servers that are away, or are none --------------------------------------------------------------------------------


def test_a_server_that_is_away_is_waited_for() -> None:
    async def play(site: Site) -> None:
        config = site.with_key()
        port = int(config.login_server.rpartition(":")[2])
        await site.control.stop()
        client = site.client(config)
        async with running(client) as until:
            await until(lambda: len(events(client).texts) > 3)
            assert "no connection to 127.0.0.1" in events(client).texts[-1]
            await site.control.start(port=port)
            await until(lambda: events(client).ups)

    scenario(play)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nnix", "answers /key with HTTP 404 (nix)"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
            "something other than a key",
        ),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"publicKey":"mkey"}', "something other than a key"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no key for the current protocol"),
        (b"HTTP/1.1 301 x\r\nLocation: https://a/\x1b[2J\r\nContent-Length: 0\r\n\r\n", "to https://a/ [2J"),
        (
            b"HTTP/1.1 301 x\r\nLocation: https://a.example/\r\nContent-Length: 0\r\n\r\n",
            "redirection to https://a.example/",
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "not HTTP"),
    ],
)
def test_what_is_no_control_server(answer: bytes, reason: str) -> None:
    async def play(site: Site) -> None:
        async with answering(answer) as port:
            url = f"http://127.0.0.1:{port}"
            error = await refused(site.client(site.config(login_server=url)))
        assert error.message.startswith(f"{url} is not a Tailscale control server: ")
        assert reason in error.message

    scenario(play)


def test_a_known_node_waits_for_the_server_behind_the_proxy() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
        site.control.faults.fail("/key", 404, "no backend", times=2)
        again = site.client(site.config(), client.identity)
        async with running(again) as until:
            await until(lambda: events(again).ups)
            assert any("HTTP 404 (no backend)" in text for text in events(again).texts)

    scenario(play)


def test_https_to_a_plain_server() -> None:
    async def play(site: Site) -> None:
        async with answering(b"HTTP/1.0 400 Bad Request\r\n\r\n") as port:
            error = await refused(site.client(site.config(login_server=f"https://127.0.0.1:{port}")))
        assert "does not speak TLS" in error.message
        assert f"http://127.0.0.1:{port}" in error.hint

    scenario(play)


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "https://", "https://host/path", "https://host:x", "https://u@h", "host"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UserError, match="is not a URL of the form"):
        ControlClient(
            Identity.generate(),
            NodeConfig(name="n", login_server=url),
            underlay=Underlay(),
            tls=TLS,
            hostinfo=Hostinfo(),
            disco=DISCO,
            events=Events(),
        )


@contextlib.asynccontextmanager
async def tls_in_front(site: Site, certificate: Certificate) -> AsyncIterator[str]:
    """A proxy that offers the control server over TLS; its URL."""
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = int(site.control.url.rpartition(":")[2])
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        both = {asyncio.create_task(pipe(reader, outer)), asyncio.create_task(pipe(inner, writer))}
        pipes.update(both)
        await asyncio.wait(both)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate.server_context())
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if pipes:
            await asyncio.wait(pipes)


def test_https() -> None:
    async def play(site: Site) -> None:
        certificate = make(["127.0.0.1"])
        async with tls_in_front(site, certificate) as url:
            config = site.with_key()._replace(login_server=url)
            trusting = ssl.create_default_context(cadata=certificate.certificate.decode())
            client = site.client(config, tls=trusting)
            async with running(client) as until:
                await until(lambda: events(client).ups)
                assert site.underlay.opened == 1
                assert client.identity.control_key is None, "the certificate vouches for the key"
            site.control.replace_key()
            again = site.client(config, client.identity, tls=trusting)
            async with running(again) as until:
                await until(lambda: events(again).ups)

    scenario(play)


def test_a_certificate_that_nobody_vouches_for() -> None:
    async def play(site: Site) -> None:
        async with tls_in_front(site, make(["127.0.0.1"])) as url:
            config = site.with_key()._replace(login_server=url)
            error = await refused(site.client(config))
            assert "has no valid certificate" in error.message
            known = replace(Identity.generate(), node_key=NodePrivate(b"\x08" * 32))
            client = site.client(config, known)
            async with running(client) as until:
                await until(lambda: any("has no valid certificate" in text for text in events(client).texts))

    scenario(play)


def test_plain_http_is_for_private_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere https on port 443 is tried instead, and nothing is ever sent in the clear."""

    async def play(site: Site) -> None:
        monkeypatch.setattr("tsns.control.dial.is_private", lambda address: False)
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            monkeypatch.setitem(dial_module.DEFAULT_PORTS, "https", deaf.getsockname()[1])
            error = await refused(site.client(site.config()))
        assert "plain http" in error.message
        assert "https://127.0.0.1" in error.hint

    scenario(play)


def test_a_public_http_server_is_reached_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(site: Site) -> None:
        certificate = make(["127.0.0.1"])
        async with tls_in_front(site, certificate) as url:
            monkeypatch.setattr("tsns.control.dial.is_private", lambda address: False)
            monkeypatch.setitem(dial_module.DEFAULT_PORTS, "https", int(url.rpartition(":")[2]))
            trusting = ssl.create_default_context(cadata=certificate.certificate.decode())
            client = site.client(site.with_key(), tls=trusting)
            async with running(client) as until:
                await until(lambda: events(client).ups)
                assert client.identity.control_key is None, "the certificate vouches for the key"
                assert client.identity.control_url == site.control.url

    scenario(play)


def test_over_plain_http_the_servers_key_is_pinned() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
        site.control.replace_key()
        error = await refused(site.client(site.config(), client.identity))
        assert "has another key" in error.message

        unpinned = site.client(site.config(), replace(client.identity, control_key=None))
        async with running(unpinned) as until:
            await until(lambda: events(unpinned).ups)
            assert unpinned.identity.control_key == site.control.key.public
            site.control.replace_key()
            await site.control.drop_connections()
            with pytest.raises(UserError, match="has another key"):
                await until(lambda: False)

    scenario(play)


def test_a_wrong_key_is_fetched_again() -> None:
    async def play(site: Site) -> None:
        site.control.faults.announced_key = MachinePublic(b"\x09" * 32)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: any("Noise handshake" in text for text in events(client).texts))
            site.control.faults.announced_key = None
            await until(lambda: events(client).ups)

    scenario(play)


def test_an_error_frame_is_shown() -> None:
    async def play(site: Site) -> None:
        site.control.faults.noise_error = "too old\x1b[2J"
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(
                lambda: any("refuses the Noise handshake: too old [2J" in text for text in events(client).texts)
            )

    scenario(play)


def test_a_busy_server_is_left_alone_as_long_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(site: Site) -> None:
        monkeypatch.setattr("tsns.control.login.wish_of", lambda _, header, *__: float(header or 0) / 1000)
        site.control.faults.fail("/machine/register", 429, "slow down", retry_after="200")
        client = site.client(site.with_key())
        begun = asyncio.get_running_loop().time()
        async with running(client) as until:
            await until(lambda: events(client).ups)
        assert asyncio.get_running_loop().time() - begun > 0.2

    scenario(play)


@pytest.mark.parametrize("path", ["/key", "/ts2021", "/machine/register", "/machine/map"])
def test_failures_on_the_way_are_got_over(path: str) -> None:
    async def play(site: Site) -> None:
        site.control.faults.fail(path, 500, "oh no", times=3)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            assert sum("HTTP 500" in text for text in events(client).texts) == 3

    scenario(play)


@pytest.mark.parametrize("early", list(EarlyPayload))
def test_ways_of_the_byte_stream(early: EarlyPayload) -> None:
    async def play(site: Site) -> None:
        faults = site.control.faults
        faults.early_payload, faults.bytewise, faults.empty_records = early, True, True
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)

    scenario(play)


# --- the stream --------------------------------------------------------------------------------------------------------


def test_a_lost_connection_costs_the_differences() -> None:
    async def play(site: Site) -> None:
        site.control.add_fake_peers(2)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            await site.control.drop_connections()
            site.control.add_fake_peers(1)
            await until(lambda: events(client).ups == [True, False, True])
            change = events(client).changes[-1]
            assert change.first
            assert len(change.added) == 1
            assert change.removed == ()

    scenario(play)


def test_deltas() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            before = len(events(client).changes)
            for number in range(300):
                site.control.send(site.node(client), MapResponse(health=[f"complaint {number}"]))
            await until(lambda: client.netmap.health == ("complaint 299",))
            assert len(events(client).changes) - before == 300

    scenario(play)


def test_a_broken_message_means_another_stream() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            site.control.send(site.node(client), json({"Peers": 7}))
            await until(lambda: events(client).ups == [True, False, True])

    scenario(play)


def test_a_silent_stream_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(site: Site) -> None:
        monkeypatch.setattr(client_module, "WATCHDOG_S", 0.1)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups == [True, False, True])
            assert any("nothing on the netmap stream" in text for text in events(client).texts)

    scenario(play)


def test_silence_is_answered_by_a_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(site: Site) -> None:
        monkeypatch.setattr(connection_module, "SILENCE_S", 0.05)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            await asyncio.sleep(0.3)
            assert events(client).ups == [True], "an answer to a ping is a sign of life"

    scenario(play)


def test_a_locked_tailnet() -> None:
    async def play(site: Site) -> None:
        def lock(node: LabNode, message: MapResponse, first: bool) -> MapResponse:
            message.tka_info = TKAInfo(head="A" * 52)
            return message

        site.control.faults.rewrite = lock
        client = site.client(site.with_key())
        error = await refused(client)
        assert "Tailnet Lock" in error.message
        assert "--accept-unverified-peers" in error.hint
        assert events(client).changes == [], "no peer of control's is let in"
        client = site.client(site.with_key()._replace(accept_unverified_peers=True))
        async with running(client) as until:
            await until(lambda: events(client).ups)

    scenario(play)


def test_pings_are_answered() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            answer = await site.control.ping(site.node(client))
            assert (answer.method, answer.over_noise) == ("HEAD", False)
            answer = await site.control.ping(site.node(client), "c2n")
            assert answer.over_noise
            assert answer.body.startswith(b"HTTP/1.1 200")
            answer = await site.control.ping(
                site.node(client), "c2n", payload=b"GET /debug/x HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            assert answer.body.startswith(b"HTTP/1.1 400")
            assert answer.body.endswith(b"unknown c2n path")

    scenario(play)


# --- updates -----------------------------------------------------------------------------------------------------------


def test_a_home_is_told_and_accepted() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            client.set_net_info(HOME)
            async with asyncio.timeout(0.5):
                await client.home_accepted(1)
            assert site.node(client).home_derp == 1
            [update] = site.updates()
            assert update.omit_peers
            assert update.disco_key == str(DISCO)

            waiting = asyncio.create_task(client.home_accepted(2))
            client.set_net_info(NetInfo(preferred_derp=1, working_udp=True, derp_latency={"1-v4": 0.5}))
            await asyncio.sleep(0.05)
            assert len(site.updates()) == 1, "latencies alone are no news"
            site.control.faults.fail("/machine/map", 500, times=2)
            client.set_net_info(NetInfo(preferred_derp=2))
            client.set_endpoints([("192.0.2.1:41641", 1)])
            await waiting
            assert len(site.updates()) == 4
            assert site.updates()[-1].endpoints == ["192.0.2.1:41641"]
            assert site.updates()[-1].endpoint_types == [1]

            await site.control.drop_connections()
            await until(lambda: len(site.updates()) == 5)

    scenario(play)


@pytest.mark.parametrize(("mode", "takes_streams"), [(Mode.HEADSCALE, True), (Mode.SAAS, False)])
def test_a_home_that_control_remembers_is_accepted_already(mode: Mode, takes_streams: bool) -> None:
    """Guards against waiting for an update that tells control what it has just told us: on Headscale that takes half a second.

    And against not waiting for the one that tells of our new disco key, where the stream's request did not.
    """

    async def play(site: Site) -> None:
        site.control.mode = mode
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            client.set_net_info(HOME)
            await client.home_accepted(1)
        again = site.client(site.config(), client.identity, disco=DiscoPublic(b"\x08" * 32))
        async with running(again) as until:
            await until(lambda: events(again).ups)
            site.control.faults.fail("/machine/map", 503, times=100)
            for region, accepted in ((1, takes_streams), (2, False)):
                with contextlib.nullcontext() if accepted else pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await again.home_accepted(region)

    scenario(play)


def test_without_a_home_there_is_an_update_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(site: Site) -> None:
        monkeypatch.setattr(updates_module, "HOME_PATIENCE_S", 0.01)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(site.updates)

    scenario(play)


def test_nothing_of_the_auth_key_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def play(site: Site) -> None:
        config = site.with_key()
        assert config.auth_key is not None
        secret = config.auth_key.reveal()
        client = site.client(config)
        with caplog.at_level("DEBUG", logger="tsns"):
            async with running(client) as until:
                await until(lambda: events(client).ups)
        told = caplog.text + "".join(events(client).texts) + repr(client.__dict__)
        assert secret not in told
        assert "privkey" not in told

    scenario(play)


def test_a_logout_without_a_server_fails() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
        await site.control.stop()
        with pytest.raises(RetryableError):
            await client.logout()
        assert client.identity.node_key is not None

    scenario(play)


# --- keys that are lost, and logins that a person asks for -------------------------------------------------------------


def node_key(client: ControlClient) -> NodePrivate | None:
    return client.identity.node_key


def test_a_renewal_that_waits_for_a_person_leaves_the_stream_alone() -> None:
    """Guards against a netmap that is not followed meanwhile: then an extension by the admin would go unnoticed."""

    async def play(site: Site) -> None:
        client = site.client(site.with_key(reusable=False))
        async with running(client) as until:
            await until(lambda: events(client).ups)
            old = site.node(client)
            site.control.expire(old)
            await until(lambda: events(client).urls)
            assert events(client).lost == [True]
            assert events(client).ups == [True], "the stream goes on"
            site.control.add_fake_peers(1)
            await until(lambda: len(client.netmap.peers) == 1)

            site.control.tailnet.change(old, expires_at=None)
            await until(lambda: events(client).lost == [True, False])
            assert events(client).urls[-1] is None
            assert events(client).ups == [True]
            assert site.node(client) is old

            site.control.expire(old)
            await until(lambda: len(events(client).urls) == 3)
            url = events(client).urls[-1]
            assert url is not None
            before = node_key(client)
            await until(lambda: len(site.control.registrar.pending) > 0 and url in site.control.registrar.pending)
            site.control.approve(url)
            await until(lambda: events(client).lost == [True, False, True, False])
            assert node_key(client) != before
            assert site.node(client) is old
            assert len(site.control.tailnet.nodes) == 2

    scenario(play)


def test_a_key_that_runs_out_by_the_clock_is_noticed_at_once() -> None:
    """Guards against waiting for control's next word, which may take a minute."""

    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            before = node_key(client)
            site.control.expire(site.node(client), site.control.now() + 0.3)
            await until(lambda: node_key(client) != before)
            assert site.control.tailnet.nodes.keys() == {1}

    scenario(play)


def test_a_login_that_is_asked_for() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            before = node_key(client)
            client.login("hskey-auth-wrong")
            assert client.asked_login.pending
            await until(lambda: not client.asked_login.pending)
            assert "invalid pre auth key" in client.asked_login.error
            assert (node_key(client), events(client).ups) == (before, [True])

            client.login(None)
            await until(lambda: events(client).urls)
            client.cancel_login()
            await until(lambda: events(client).urls[-1] is None)
            assert not client.asked_login.pending
            assert (node_key(client), events(client).ups) == (before, [True])

            client.login(site.control.add_auth_key())
            await until(lambda: events(client).ups == [True, False, True])
            assert client.asked_login == AskedLogin()
            assert node_key(client) != before
            assert len(site.control.tailnet.nodes) == 1

            site.control.expire(site.node(client))
            await until(lambda: len(events(client).ups) == 5)  # by the key of the last login, which is reusable

    scenario(play)


def test_a_login_after_a_logout() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            node = site.node(client)
            await client.logout()
            await until(lambda: events(client).ups == [True, False])
            await client.logout()
            client.login("hskey-auth-wrong")
            await until(lambda: client.asked_login.error)
            await asyncio.sleep(0.05)
            assert node_key(client) is None
            client.login(site.control.add_auth_key())
            await until(lambda: events(client).ups == [True, False, True])
            assert site.node(client) is node

    scenario(play)


def test_a_logout_that_control_does_not_take_changes_nothing() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            site.control.faults.fail("/machine/register", 503, "busy", retry_after="7")
            with pytest.raises(RetryableError) as caught:
                await client.logout()
            assert caught.value.retry_after_s == 7.0
            await site.control.drop_connections()
            await until(lambda: events(client).ups == [True, False, True])

    scenario(play)


# --- without control, and ways to it -----------------------------------------------------------------------------------


def test_a_cached_netmap_stands_in_for_control() -> None:
    """Guards against a start that waits for control, and against peers that flap when it is back."""

    async def play(site: Site) -> None:
        site.control.add_fake_peers(2)
        client = site.client(site.with_key())
        async with running(client) as until:
            await until(lambda: events(client).ups)
            key = node_key(client)
            assert key is not None
            data = cache.dump(client.netmap)
            assert data is not None
        port = int(site.control.url.rpartition(":")[2])
        config = site.config()
        await site.control.stop()
        again = ControlClient(
            client.identity,
            config,
            underlay=site.underlay,
            tls=TLS,
            hostinfo=Hostinfo(hostname="n", os="linux"),
            disco=DISCO,
            events=Events(),
            cached=cache.load(data, key.public),
        )
        async with running(again) as until:
            await until(lambda: events(again).changes)
            [change] = events(again).changes
            assert (len(change.added), change.rules, change.self_changed) == (2, True, True)
            assert events(again).ups == []
            await site.control.start(port=port)
            await until(lambda: events(again).ups)
            change = events(again).changes[-1]
            assert change.first
            assert (change.added, change.removed, change.changed) == ((), (), ())

    scenario(play)


def test_a_dial_plan_is_followed_and_fallen_back_from() -> None:
    async def play(site: Site) -> None:
        client = site.client(site.with_key())
        plan = ControlDialPlan(
            candidates=[
                ControlIPCandidate(ip="127.0.0.2", dial_timeout_sec=1.0),
                ControlIPCandidate(ip="no address"),
                ControlIPCandidate(ip="127.0.0.3", ace_host="ace.test"),
            ]
        )
        async with running(client) as until:
            await until(lambda: events(client).ups)
            site.control.send(site.node(client), MapResponse(keep_alive=True, control_dial_plan=plan))
            await until(lambda: client._dialer._plan)
            assert [one.address for one in client._dialer._plan] == ["127.0.0.2"]
            await site.control.drop_connections()
            await until(lambda: events(client).ups == [True, False, True])
            assert site.underlay.dialled == ["127.0.0.1", "127.0.0.2", "127.0.0.1"], "nobody is at 127.0.0.2"

    scenario(play)


def test_control_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(site: Site) -> None:
        asked: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            port = int(site.control.url.rpartition(":")[2])
            inner, outer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(_pipe(reader, outer), _pipe(inner, writer))

        monkeypatch.setattr("tsns.proxies._is_here", lambda name: False)
        proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with proxy:
            port = proxy.sockets[0].getsockname()[1]
            site.underlay.proxies = Proxies(Proxy.parse(f"http://me:word@127.0.0.1:{port}"))
            client = site.client(site.with_key())
            async with running(client) as until:
                await until(lambda: events(client).ups)
            await asyncio.sleep(0.05)
        assert asked[0].startswith(f"CONNECT {site.control.url.removeprefix('http://')} HTTP/1.1\r\n".encode())
        assert b"Proxy-Authorization: Basic " in asked[0]

    scenario(play)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()

"""The lab's control server on loopback, spoken to byte by byte: what it sends, and how it can be made to fail."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.netns.raw_control import RawControl, run
from tsns.keys import DiscoPublic, MachinePublic
from tsns.lab.dialect import Dialect, Nothing
from tsns.lab.faults import Compression, EarlyPayload, Faults, json
from tsns.lab.lab import Lab
from tsns.lab.registrar import Mode
from tsns.lab.session import Cut
from tsns.proto.types import LOGOUT_EXPIRY, Hostinfo, MapResponse, NetInfo, PeerChange

WELL_FORMED = {
    "usual": Faults(),
    "no early payload": Faults(early_payload=EarlyPayload.ABSENT),
    "split early payload": Faults(early_payload=EarlyPayload.SPLIT),
    "in pieces": Faults(glued=False, early_payload=EarlyPayload.SPLIT),
    "bytewise": Faults(bytewise=True),
    "empty records": Faults(empty_records=True),
    "zstd without size": Faults(compression=Compression.ZSTD_SIZELESS),
    "zstd in frames": Faults(compression=Compression.ZSTD_FRAMES),
    "plain": Faults(compression=Compression.PLAIN),
    "nulls": Faults(dialect=Dialect(nothing=Nothing.NULL)),
}


async def enter(client: RawControl, **options: Any) -> None:
    answer = await client.register(client.lab.auth_key(**options))
    assert answer.error is None


@pytest.mark.parametrize("faults", WELL_FORMED.values(), ids=WELL_FORMED)
def test_login_and_first_message_in_every_form(faults: Faults) -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.faults = faults
        lab.control.add_fake_peers(3)
        async with RawControl(lab) as client:
            await enter(client)
            assert (client.noise.early is None) == (faults.early_payload is EarlyPayload.ABSENT)
            message = await client.message(await client.stream())
            assert message["Node"]["Name"] == "raw.lab.test."
            assert len(message["Peers"]) == 3
            assert message["DERPMap"]["Regions"]["1"]["Nodes"][0]["HostName"] == "derp1.lab.test"

    run(scenario)


def test_the_first_bytes_come_in_one_piece_or_in_many() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab) as client:
            assert len(client.reads) == 1
            assert len(client.reads[0]) > 51 + 100
        lab.control.faults.glued = False
        async with RawControl(lab) as client:
            assert len(client.reads[0]) == 51

    run(scenario)


def test_the_announced_key_is_the_one_in_use_unless_it_is_made_wrong() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab, control=MachinePublic(bytes([9] * 32))) as client:
            await client.until_closed()
            assert not client.reads  # a wrong key looks like this: an end after the 101
        old = lab.control.key.public
        lab.control.replace_key()
        async with RawControl(lab, control=old) as client:
            assert not client.noise.established

    run(scenario)


def test_a_client_that_is_too_old_finds_the_connection_closed() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.faults.minimum_version = 113
        async with RawControl(lab, version=112) as client:
            assert client.closed
        async with RawControl(lab, version=113) as client:
            assert client.noise.established

    run(scenario)


def test_changes_reach_the_stream_as_patches_and_bursts_merge() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.batch_s = 0.02
        first, second = lab.control.add_fake_peers(2)
        async with RawControl(lab) as client:
            await enter(client)
            stream = await client.stream()
            await client.message(stream)
            lab.tailnet.change(first, home_derp=4)
            lab.tailnet.change(first, endpoints=("192.0.2.1:5",))
            lab.control.remove(second)
            message = await client.message(stream)
            assert message["PeersRemoved"] == [second.id]
            assert message["PeersChangedPatch"] == [{"NodeID": first.id, "DERPRegion": 4, "Endpoints": ["192.0.2.1:5"]}]

    run(scenario)


def report(number: int) -> dict[str, Any]:
    return {
        "disco_key": str(DiscoPublic(bytes([number] * 32))),
        "endpoints": [f"192.0.2.{number}:41641"],
        "hostinfo": Hostinfo(hostname="raw", net_info=NetInfo(preferred_derp=number)),
    }


@pytest.mark.parametrize("mode", list(Mode))
def test_whose_ways_the_server_has(mode: Mode) -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab) as client:
            await enter(client)
            first = await client.stream(**report(1))
            await client.message(first)
            node = lab.tailnet.find("raw")
            assert node.home_derp == (1 if mode is Mode.HEADSCALE else 0)  # whether the stream's own data counts
            lite = client.map_request(stream=None, omit_peers=True, **report(2))
            assert (await client.post("/machine/map", lite)).status == 200
            assert (node.home_derp, node.endpoints) == (2, ("192.0.2.2:41641",))
            second = await client.stream(**report(3))
            await client.message(second)
            if mode is Mode.SAAS:
                with pytest.raises(EOFError):
                    await client.message(first)
                assert lab.control.streams("raw") == 1
            else:
                assert lab.control.streams("raw") == 2
                assert not first.ended
            whole = await client.post("/machine/map", client.map_request(stream=None))
            assert (len(whole.body) > 0) == (mode is Mode.SAAS)  # Headscale knows no netmap without a stream

    run(scenario, mode=mode)


@pytest.mark.parametrize(("mode", "statuses"), [(Mode.HEADSCALE, (404, 404)), (Mode.SAAS, (400, 400))])
def test_a_node_key_is_only_good_with_its_machine_key(mode: Mode, statuses: tuple[int, int]) -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab) as owner, RawControl(lab) as thief:
            unknown = await owner.post("/machine/map", owner.map_request())
            await enter(owner)
            thief.node = owner.node
            stolen = await thief.post("/machine/map", thief.map_request())
            assert (unknown.status, stolen.status) == statuses
            assert bytes(unknown.body) == b"node not found"

    run(scenario, mode=mode)


def test_a_login_waits_for_its_person() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab) as client:
            url = (await client.register()).auth_url or ""
            waiting = asyncio.create_task(client.register(followup=url))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            lab.control.approve(url)
            assert (await waiting).machine_authorized
            lab.control.remove("raw")
            refused = (await client.register()).auth_url or ""
            waiting = asyncio.create_task(client.register(followup=refused))
            await asyncio.sleep(0.05)
            lab.control.refuse(refused, "no")
            assert (await waiting).error == "no"
            lab.control.followup_timeout_s = 0.02
            late = (await client.register()).auth_url or ""
            again = await client.register(followup=late)
            assert again.auth_url not in {None, late}

    run(scenario)


def test_approval_of_a_device_reaches_its_stream() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.add_fake_peers(1)
        async with RawControl(lab) as client:
            await enter(client, preauthorized=False)
            stream = await client.stream()
            message = await client.message(stream)
            assert "MachineAuthorized" not in message["Node"]
            assert not message.get("Peers")
            lab.control.authorize("raw")
            message = await client.message(stream)
            assert message["Node"]["MachineAuthorized"] is True
            assert len(message["PeersChanged"]) == 1

    run(scenario)


def test_peers_see_who_comes_and_goes_and_an_ephemeral_node_is_soon_forgotten() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.ephemeral_timeout_s = 0.05
        async with RawControl(lab) as watcher:
            await enter(watcher)
            stream = await watcher.stream()
            await watcher.message(stream)
            async with RawControl(lab) as guest:
                await enter(guest, ephemeral=True)
                [peer] = (await watcher.message(stream))["PeersChanged"]
                await guest.message(await guest.stream())
                message = await watcher.message(stream)
                assert [patch["Online"] for patch in message["PeersChangedPatch"]] == [True]
            message = await watcher.message(stream)
            assert message["PeersChangedPatch"][0]["Online"] is False
            assert (await watcher.message(stream))["PeersRemoved"] == [peer["ID"]]

    run(scenario)


def test_logout_of_an_ephemeral_node_ends_its_stream() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.mode = Mode.SAAS  # Headscale leaves it open, and silent
        async with RawControl(lab) as client:
            await enter(client, ephemeral=True)
            stream = await client.stream()
            await client.message(stream)
            assert (await client.register(expiry=LOGOUT_EXPIRY)).node_key_expired
            with pytest.raises(EOFError):
                await client.message(stream)

    run(scenario)


def test_keep_alives_come_when_nothing_else_does() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.keep_alive_s = 0.02
        async with RawControl(lab) as client:
            await enter(client)
            stream = await client.stream()
            await client.message(stream)
            assert await client.message(stream) == {"KeepAlive": True}
            assert await client.message(stream) == {"KeepAlive": True}

    run(scenario)


def test_any_message_can_be_sent() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab) as client:
            await enter(client)
            stream = await client.stream()
            await client.message(stream)
            lab.control.send("raw", MapResponse(peers_changed_patch=[PeerChange(node_id=99, online=True)]))
            lab.control.send("raw", json({"PeersRemoved": [1 << 60], "Novel": None}))
            assert await client.message(stream) == {"PeersChangedPatch": [{"NodeID": 99, "Online": True}]}
            assert await client.message(stream) == {"PeersRemoved": [1 << 60], "Novel": None}

    run(scenario)


def test_streams_can_be_cut() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab) as client:
            await enter(client)
            stream = await client.stream()
            await client.message(stream)
            lab.control.cut("raw", Cut.STALL)
            await client.until(lambda: len(stream.body) >= 4)
            await asyncio.sleep(0.05)
            assert (len(stream.body), stream.ended) == (4, False)
            other = await client.stream()
            await client.message(other)
            lab.control.cut("raw", Cut.MID_FRAME)
            await client.until_closed()
            assert len(other.body) > 4

    run(scenario)


def test_failures_are_used_up() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.faults.fail("/machine/register", 429, "slow down", retry_after="7")
        lab.control.faults.fail("/machine/map", 500, times=2)
        async with RawControl(lab) as client:
            answer = await client.post("/machine/register", b"{}")
            assert (answer.status, answer.headers["retry-after"], bytes(answer.body)) == (429, "7", b"slow down")
            await enter(client)
            assert [(await client.stream()).status for _ in range(3)] == [500, 500, 200]

    run(scenario)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/machine/register", b"{" * 10, 400),
        ("/machine/register", b'{"NodeKey":"nodekey:zz"}', 400),
        ("/machine/map", b" " * ((1 << 20) + 1), 413),
        ("/machine/set-dns", b"{}", 501),
        ("/machine/nothing", b"{}", 404),
    ],
)
def test_bad_requests(path: str, body: bytes, status: int) -> None:
    async def scenario(lab: Lab) -> None:
        async with RawControl(lab) as client:
            assert (await client.post(path, body)).status == status

    run(scenario)


def test_everything_outlives_a_restart_but_the_connections() -> None:
    async def scenario(lab: Lab) -> None:
        url = lab.url
        async with RawControl(lab) as client:
            await enter(client)
            await lab.control.stop()
            await client.until_closed()
            await lab.control.start()
            assert lab.url == url
            async with RawControl(lab, machine=client.machine) as again:
                again.node = client.node
                assert (await again.message(await again.stream()))["Node"]["ID"] == lab.tailnet.find("raw").id

    run(scenario)


def test_ten_thousand_peers_are_told_of_and_one_change_among_them_is_quick() -> None:
    async def scenario(lab: Lab) -> None:
        peers = lab.control.add_fake_peers(10_000)
        async with RawControl(lab) as client:
            await enter(client)
            stream = await client.stream()
            assert len((await client.message(stream))["Peers"]) == 10_000
            started = time.monotonic()
            lab.tailnet.change(peers[5000], home_derp=2)
            assert (await client.message(stream))["PeersChangedPatch"] == [{"NodeID": peers[5000].id, "DERPRegion": 2}]
            assert time.monotonic() - started < 1

    run(scenario)


def test_a_lab_starts_quickly() -> None:
    async def scenario() -> float:
        started = time.perf_counter()
        async with Lab(regions=3):
            return time.perf_counter() - started

    assert min(asyncio.run(scenario()) for _ in range(3)) < 0.15

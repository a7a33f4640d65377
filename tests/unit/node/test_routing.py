"""From netmap and settings to the routes of a namespace, and to what a person is told of them."""

from __future__ import annotations

import pytest

from tests.unit.node.test_exit_node import EXPIRED, NOW, node
from tsns.config import NodeConfig
from tsns.control.netmap import NetMap
from tsns.error import UserError
from tsns.filter.packet_filter import PacketFilter
from tsns.keys import DiscoPrivate, NodePrivate
from tsns.netns.routes import MAX_ROUTES
from tsns.node.condition import Condition
from tsns.node.peering import Peering
from tsns.node.routing import EXIT_NODE, ROUTES, Routing
from tsns.proto.types import MapResponse, Node
from tsns.steps import finish
from tsns.wg.device import Device
from tsns.wg.router import Router


class Stage:
    """A node that follows a netmap."""

    def __init__(self, *peers: Node, **settings: object) -> None:
        self.netmap = NetMap()
        self.condition = Condition()
        self.latencies: dict[int, float] = {}
        self.changes = 0
        self.config = NodeConfig(name="web", **settings)  # type: ignore[arg-type]
        device = Device(NodePrivate(bytes(32)), bytes, wall_clock=lambda: NOW)
        peering = Peering(device, Router(device, PacketFilter(), DiscoPrivate(b"\2" * 32)), lambda: 0.0)
        self.routing = Routing(
            peering,
            self.condition,
            self.config,
            latency=self.latencies.get,
            changed=self.on_change,
        )
        self.tell(MapResponse(node=node(1, offers=False), peers=list(peers)))

    def on_change(self) -> None:
        self.changes += 1

    def tell(self, response: MapResponse) -> None:
        finish(self.routing.applying(self.netmap, self.netmap.apply(response, NOW), NOW))

    def configure(self, **settings: object) -> None:
        config = self.config._replace(**settings)  # type: ignore[arg-type]
        self.routing.configure(config, self.netmap, NOW)
        self.config = config

    @property
    def chosen(self) -> int:
        found = self.routing.selected(self.netmap)
        return found.id if found is not None else 0


def test_the_exit_nodes_routes_come_and_go_with_it() -> None:
    stage = Stage(node(2), exit_node="n2")
    assert (list(stage.routing.routes), stage.chosen) == (["0.0.0.0/0", "::/0"], 2)
    assert stage.condition.warnings == {}
    stage.tell(MapResponse(peers_changed=[node(2, key_expiry=EXPIRED)]))
    assert (list(stage.routing.routes), stage.chosen) == ([], 0)
    assert "has expired" in stage.condition.warnings[EXIT_NODE]
    stage.tell(MapResponse(peers_changed=[node(2)]))
    assert stage.chosen == 2
    stage.configure(exit_node="")
    assert (list(stage.routing.routes), stage.condition.warnings) == ([], {})
    assert stage.routing.status(stage.netmap) is None


def test_an_exit_node_that_cannot_be_is_refused_and_nothing_is_changed() -> None:
    stage = Stage(node(2), node(3, offers=False), exit_node="n2")
    for wanted in ("n3", "n4"):
        with pytest.raises(UserError):
            stage.configure(exit_node=wanted)
        assert (stage.chosen, stage.condition.warnings) == (2, {})
    assert stage.routing.mistake is None
    assert Stage(exit_node="n2").routing.mistake is not None


def test_the_best_is_chosen_once_more_when_latencies_are_known_and_not_again() -> None:
    stage = Stage(node(2), node(3), exit_node="auto:any")
    assert stage.chosen == 2
    stage.latencies.update({2: 0.1, 3: 0.01})
    stage.routing.measured(stage.netmap, NOW)
    assert stage.chosen == 3
    stage.latencies.update({2: 0.001, 3: 0.5})
    stage.routing.measured(stage.netmap, NOW)
    assert stage.chosen == 3


def test_what_is_no_news_changes_no_route() -> None:
    subnets = [*(node(2).addresses or ()), "10.1.0.0/16"]
    stage = Stage(node(2, allowed_ips=subnets), accept_routes=True)
    assert (list(stage.routing.routes), stage.changes) == (["10.1.0.0/16"], 1)
    stage.tell(MapResponse(online_change={2: False}))
    stage.tell(MapResponse(peers_changed=[node(3)]))
    assert stage.changes == 1


def test_too_many_routes_are_cut_but_never_the_exit_nodes() -> None:
    many = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(MAX_ROUTES)]
    stage = Stage(node(2, allowed_ips=[*(node(2).allowed_ips or ()), *many]), accept_routes=True, exit_node="n2")
    assert len(stage.routing.routes) == MAX_ROUTES
    assert {"0.0.0.0/0", "::/0"} < set(stage.routing.routes)
    assert "more than 4096" in stage.condition.warnings[ROUTES]

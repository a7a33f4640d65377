"""The outcome of all settings: complete, carried over a socket, and silent about its secret."""

from __future__ import annotations

import json

import pytest

from tsns.config import DEFAULT_LOGIN_SERVER, NodeConfig, Secret


def test_a_secret_shows_in_no_repr() -> None:
    config = NodeConfig(name="web", auth_key=Secret("tskey-auth-x"))
    assert "tskey" not in repr(config)
    assert "tskey" not in f"{config.auth_key} {config.auth_key!r}"
    assert config.auth_key is not None
    assert config.auth_key.reveal() == "tskey-auth-x"


def test_a_config_survives_its_way_as_json() -> None:
    config = NodeConfig(
        name="web",
        login_server="https://hs.example",
        auth_key=Secret("k"),
        hostname="other",
        ephemeral=True,
        advertise_tags=("tag:a", "tag:b"),
        accept_dns=False,
        exit_node="out",
        advertise_routes=("10.1.0.0/16",),
        timeout_s=3.5,
        capability_version=113,
        tls_roots="/roots.pem",
        owner_uid=1000,
    )
    assert NodeConfig.from_message(json.loads(json.dumps(config.to_message()))) == config


def test_a_config_without_key_has_none_afterwards_either() -> None:
    assert NodeConfig.from_message(NodeConfig(name="web").to_message()) == NodeConfig(
        name="web", login_server=DEFAULT_LOGIN_SERVER
    )


def test_a_message_of_another_version_is_refused() -> None:
    with pytest.raises(TypeError):
        NodeConfig.from_message({"name": "web", "flux_capacitor": True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 7),
        ("hostname", None),
        ("ephemeral", "no"),
        ("accept_dns", 1),
        ("advertise_tags", [7]),
        ("advertise_tags", 7),
        ("advertise_routes", [None]),
        ("exit_node", None),
        ("timeout_s", "60"),
        ("capability_version", 1.5),
        ("owner_uid", True),
        ("auth_key", 7),
        ("no_proxy", {}),
    ],
)
def test_values_of_other_types_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError):
        NodeConfig.from_message({"name": "web", name: value})


def test_whole_seconds_are_seconds() -> None:
    assert NodeConfig.from_message({"name": "web", "timeout_s": 60}).timeout_s == 60

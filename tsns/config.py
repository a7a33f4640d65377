"""What a person may set for a node, from flags, environment and files (ring 1, standard library only: `run` starts with it).

`NodeConfig` is the outcome: plain values, no look-ups left. It travels to the keeper and the engine as JSON over a socket.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from tsns.error import UsageError

DEFAULT_LOGIN_SERVER: Final = "https://controlplane.tailscale.com"
DEFAULT_TIMEOUT_S: Final = 60.0
DEFAULT_CAPABILITY_VERSION: Final = 131
NATIVE: Final = "native"
DATA_PLANES: Final = (NATIVE, "python")
SECRETS: Final = (
    "auth_key",
    "https_proxy",
    "http_proxy",
)  # the settings that are never printed, logged or kept on disk
LISTS: Final = ("advertise_tags", "advertise_routes")


class Secret:
    """A text that is never printed."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "<Secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    __hash__ = None  # type: ignore[assignment]


class NodeConfig(NamedTuple):
    """One node's settings, complete. (`run` starts with it, and a dataclass would cost that a tenth of its time.)"""

    name: str
    login_server: str = DEFAULT_LOGIN_SERVER
    auth_key: Secret | None = None
    hostname: str = ""  # empty: the node's name
    ephemeral: bool = False
    advertise_tags: tuple[str, ...] = ()
    accept_dns: bool = True
    shields_up: bool = False
    accept_routes: bool = False  # to the subnets behind peers
    exit_node: str = ""  # the peer by which everything else goes, as a person names it; `auto:any`: the best one
    exit_node_allow_lan_access: bool = False
    with_internet: bool = False  # whether the host's network can be reached from inside, too
    advertise_routes: tuple[str, ...] = ()
    advertise_exit_node: bool = False
    accept_unverified_peers: bool = False
    direct: bool = True  # whether direct paths are looked for, which tell peers our addresses
    map_root: bool = False  # whether an ordinary user is root inside
    port: int = 0  # of the UDP sockets on the host; 0: any
    data_plane: str = ""  # what seals and opens packets, one of `DATA_PLANES`; empty: the fastest that is there
    timeout_s: float = DEFAULT_TIMEOUT_S
    capability_version: int = DEFAULT_CAPABILITY_VERSION
    tls_roots: str = ""  # a PEM file, as SSL_CERT_FILE names it; empty: the system's
    https_proxy: Secret | None = None  # URLs of proxies, as `tsns.proxies` reads them
    http_proxy: Secret | None = None
    no_proxy: str = ""
    owner_uid: int = 0  # who may query the node besides root: sudo's caller

    @property
    def carries(self) -> bool:
        """Whether it offers peers to carry their packets on."""
        return bool(self.advertise_routes) or self.advertise_exit_node

    def check(self) -> None:
        """UsageError for settings that contradict one another."""
        if self.exit_node and self.advertise_exit_node:
            raise UsageError(
                "a node that uses an exit node cannot be one", "leave out --exit-node or --advertise-exit-node"
            )

    def to_message(self) -> dict[str, Any]:
        """For the socket to the keeper, the secrets included."""
        revealed = {name: secret.reveal() if (secret := getattr(self, name)) else None for name in SECRETS}
        return {**self._asdict(), **revealed}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> NodeConfig:
        """What `to_message` made; TypeError or ValueError for anything else."""
        values: dict[str, Any] = dict(message)
        for name in LISTS:
            values[name] = tuple(_text(item) for item in values.get(name, ()))
        for name in SECRETS:
            values[name] = Secret(_text(text)) if (text := values.get(name)) else None
        for name, value in values.items():
            wanted = type(cls._field_defaults.get(name, ""))
            fits = type(value) is wanted or (wanted is float and type(value) is int)  # JSON may write 60 for 60.0
            if not fits and name not in SECRETS:
                raise TypeError(name)
        return cls(**values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is wanted")
    return value

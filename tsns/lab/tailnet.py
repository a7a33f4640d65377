"""The lab's tailnet: its nodes, users, auth keys, addresses and names (pure: times and randomness are arguments).

Whoever changes a node does it with `Tailnet.change`, so that `revision` counts it and nobody keeps an outdated picture of the node.
What each node may see of all this is `lab.netmap`'s business, and who gets in is `lab.registrar`'s. Times are unix seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tsns.keys import KEY_BYTES, DiscoPublic, MachinePublic, NodePublic
from tsns.proto.addresses import CGNAT, SERVICE_V4, SERVICE_V6, ULA, Prefix, unpack
from tsns.proto.types import DERPMap, DNSConfig, DNSRecord, FilterRule, NetPortRange, PortRange, Resolver

DEFAULT_DOMAIN: Final = "lab.test"
TAGGED_USER_ID: Final = 2147455555  # whose node a tagged node is, on Headscale
NEVER: Final = "0001-01-01T00:00:00Z"  # Go's zero time
MAX_NAME_CHARS: Final = 63  # of a DNS label
FAKE_HOSTINFO: Final = {"OS": "linux", "App": "fake"}
CHROMEOS_RESERVED: Final = Prefix.parse("100.115.92.0/23")  # nobody's address on a tailnet

_NOT_IN_A_NAME: Final = re.compile(r"[^a-z0-9]+")


def rfc3339(unix: float) -> str:
    """A time as the protocol writes it."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class User:
    """A person, or the stand-in for tagged nodes."""

    id: int
    login_name: str
    display_name: str


@dataclass(slots=True)
class AuthKey:
    """A key that lets nodes in without a person."""

    text: str
    user: User
    reusable: bool
    ephemeral: bool
    tags: tuple[str, ...]
    expires_at: float | None
    preauthorized: bool  # its nodes need no approval
    used: bool = False
    revoked: bool = False

    def __repr__(self) -> str:
        return f"<AuthKey of {self.user.login_name}>"


@dataclass(slots=True, eq=False)
class LabNode:
    """A node of the tailnet, as its control server knows it."""

    id: int
    machine: MachinePublic
    key: NodePublic
    user: User
    name: str  # a DNS label, unique in the tailnet
    addresses: tuple[str, ...]  # without prefix length
    created_at: float
    tags: tuple[str, ...] = ()
    owner: User | None = None  # who let it in, where it is tagged and hence nobody's
    ephemeral: bool = False
    authorized: bool = True
    online: bool | None = False
    last_seen_at: float | None = None
    expires_at: float | None = None
    cap: int = 0
    disco: DiscoPublic | None = None
    endpoints: tuple[str, ...] = ()
    home_derp: int = 0
    hostinfo: Mapping[str, Any] = field(default_factory=dict)  # all that the node told, as JSON
    routes: tuple[str, ...] = ()  # subnets behind it that an admin approved
    cap_map: Mapping[str, Any] = field(default_factory=dict)
    rules: Sequence[FilterRule] | None = None  # None: the tailnet's
    wire: Mapping[str, Any] = field(default_factory=dict)  # further members of its proto.types.Node, by field name

    def expired(self, now: float) -> bool:
        """Whether its key is no longer good."""
        return self.expires_at is not None and self.expires_at <= now


def allow_all() -> list[FilterRule]:
    """Everybody may reach everything."""
    return [FilterRule(src_ips=["*"], dst_ports=[NetPortRange(ip="*", ports=PortRange(first=0, last=65535))])]


class Tailnet:
    """All state of a tailnet. `on_change` is called after each change that some node might see."""

    def __init__(
        self, random: Callable[[int], bytes], *, domain: str = DEFAULT_DOMAIN, address_offset: int = 1
    ) -> None:
        self.domain = domain
        self.on_change: Callable[[], None] = lambda: None
        self.revision = 0
        self.nodes: dict[int, LabNode] = {}
        self.auth_keys: dict[str, AuthKey] = {}
        self.tagged_user = User(TAGGED_USER_ID, "tagged-devices", "Tagged Devices")
        self.users: dict[int, User] = {TAGGED_USER_ID: self.tagged_user}
        self.rules: Sequence[FilterRule] = allow_all()
        self.derp_map = DERPMap(regions={})
        self.magic_dns = True
        self.resolvers: Sequence[Resolver] = ()
        self.extra_records: Sequence[DNSRecord] = ()
        self.dns: Mapping[str, Any] = {}  # further members of the DNSConfig, by field name
        self.ipv6 = True
        self.node_revisions: dict[int, int] = {}  # the revision of each node's last change
        self._random = random
        self._next_id = 1
        self._next_address = address_offset
        self._by_key: dict[NodePublic, LabNode] = {}
        self._names: set[str] = set()
        self.default_user = self.add_user("person")

    # --- users and auth keys

    def add_user(self, name: str) -> User:
        """A person of this tailnet."""
        user = User(len(self.users), f"{name}@{self.domain}", name.capitalize())
        self.users[user.id] = user
        return user

    def add_auth_key(
        self,
        *,
        reusable: bool = True,
        ephemeral: bool = False,
        tags: Iterable[str] = (),
        expires_at: float | None = None,
        preauthorized: bool = True,
        user: User | None = None,
    ) -> str:
        """A new auth key; one that is not reusable lets in one node."""
        text = f"hskey-auth-{self._random(6).hex()}-{self._random(32).hex()}"
        self.auth_keys[text] = AuthKey(
            text, user or self.default_user, reusable, ephemeral, tuple(tags), expires_at, preauthorized
        )
        return text

    # --- nodes

    def add_node(
        self,
        machine: MachinePublic,
        key: NodePublic,
        *,
        hostname: str,
        user: User | None = None,
        now: float,
        **attributes: Any,
    ) -> LabNode:
        """A new node with a name and addresses of its own; `attributes` are further fields of LabNode."""
        number, self._next_id = self._next_id, self._next_id + 1
        name = self._unique_name(hostname)
        node = LabNode(
            number, machine, key, user or self.default_user, name, self._new_addresses(), created_at=now, **attributes
        )
        self.nodes[node.id] = node
        self._names.add(name)
        self._by_key[key] = node
        self._changed(node)
        return node

    def add_fake_peers(self, count: int, *, now: float, home_derp: int = 1) -> list[LabNode]:
        """Nodes that only exist in the netmap, all at once."""
        notify, self.on_change = self.on_change, lambda: None
        try:
            nodes = [
                self.add_node(
                    MachinePublic(self._random(KEY_BYTES)),
                    NodePublic(self._random(KEY_BYTES)),
                    hostname=f"fake{index}",
                    now=now,
                    disco=DiscoPublic(self._random(KEY_BYTES)),
                    home_derp=home_derp,
                    hostinfo=FAKE_HOSTINFO,
                )
                for index in range(count)
            ]
        finally:
            self.on_change = notify
        self.on_change()
        return nodes

    def remove_node(self, node: LabNode) -> None:
        """Forget a node; its addresses are not given away again."""
        if self.nodes.pop(node.id, None) is None:
            return
        self._names.discard(node.name)
        self._by_key.pop(node.key, None)
        self.node_revisions.pop(node.id, None)
        self._changed(None)

    def change(self, node: LabNode, **attributes: Any) -> bool:
        """Set fields of a node; False where they were like that already. A new `name` is made unique."""
        if "name" in attributes:
            self._names.discard(node.name)
            attributes["name"] = self._unique_name(attributes["name"])
            self._names.add(attributes["name"])
        if "key" in attributes and attributes["key"] != node.key:
            self._by_key.pop(node.key, None)
            self._by_key[attributes["key"]] = node
        changed = {name: value for name, value in attributes.items() if getattr(node, name) != value}
        for name, value in changed.items():
            setattr(node, name, value)
        if changed:
            self._changed(node)
        return bool(changed)

    def configure(self, **attributes: Any) -> None:
        """Set what concerns everybody: rules, derp_map, magic_dns, resolvers, extra_records."""
        for name, value in attributes.items():
            if not hasattr(self, name):
                raise AttributeError(name)
            setattr(self, name, value)
        self._changed(None)

    def by_key(self, key: NodePublic | None) -> LabNode | None:
        """The node with this node key."""
        return self._by_key.get(key) if key else None

    def by_machine(self, machine: MachinePublic, user: User | None = None) -> LabNode | None:
        """The node of this device, of this user where one is given."""
        found = (node for node in self.nodes.values() if node.machine == machine and user in {None, node.user})
        return next(found, None)

    def find(self, what: LabNode | NodePublic | str) -> LabNode:
        """A node by node key, by name or by address; KeyError where there is none."""
        if isinstance(what, LabNode):
            return what
        if isinstance(what, NodePublic):
            return self._by_key[what]
        for node in self.nodes.values():
            if what == node.name or what in node.addresses:
                return node
        raise KeyError(what)

    def fqdn(self, node: LabNode) -> str:
        """The node's full name, with the final dot."""
        return f"{node.name}.{self.domain}."

    def dns_config(self) -> DNSConfig:
        """The tailnet's DNS, as each node is told."""
        usual = DNSConfig(
            proxied=self.magic_dns or None,
            domains=[self.domain],
            routes={f"{self.domain}.": None} if self.magic_dns else None,
            fallback_resolvers=list(self.resolvers) or None,
            extra_records=list(self.extra_records) or None,
        )
        return msgspec.structs.replace(usual, **self.dns)

    def _changed(self, node: LabNode | None) -> None:
        self.revision += 1
        if node is not None and node.id in self.nodes:
            self.node_revisions[node.id] = self.revision
        self.on_change()

    def _new_addresses(self) -> tuple[str, ...]:
        while True:
            offset, self._next_address = self._next_address, self._next_address + 1
            v4 = (int.from_bytes(CGNAT.network, "big") + offset).to_bytes(4, "big")
            if not CGNAT.covers(v4):
                raise RuntimeError("this tailnet has no address left")
            v6 = (int.from_bytes(ULA.network, "big") + offset).to_bytes(16, "big")
            if v4 != SERVICE_V4 and v6 != SERVICE_V6 and not CHROMEOS_RESERVED.covers(v4):
                break
        return (unpack(v4), unpack(v6)) if self.ipv6 else (unpack(v4),)

    def _unique_name(self, hostname: str) -> str:
        label = _NOT_IN_A_NAME.sub("-", hostname.lower()).strip("-")[:MAX_NAME_CHARS].strip("-") or "node"
        name, number = label, 0
        while name in self._names:
            number += 1
            suffix = f"-{number}"
            name = label[: MAX_NAME_CHARS - len(suffix)] + suffix
        return name

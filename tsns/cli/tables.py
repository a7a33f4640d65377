"""The answers of a node as text for people and as JSON for programs (ring 2, pure: JSON objects in, lines and objects out).

The objects are those of a node's LocalAPI. Every text in them may be a stranger's, so all go through `one_line`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tsns.proto.text import one_line

SCHEMA: Final = 1
ACTIVE_S: Final = 180.0  # a WireGuard session lives as long without a new handshake
MAX_INSIDE_SHOWN: Final = 3
MAX_ROUTES_SHOWN: Final = 3
RUNNING_STATES: Final = frozenset({"running", "offline"})

Object = Mapping[str, Any]

_SENTENCES: Final = {
    "starting": "is starting",
    "needs-approval": "waits for an administrator to approve it",
    "stopped": "is stopped",
}


def cell(value: object) -> str:
    """A value for a table; a dash where there is none."""
    return one_line(str(value)) if value not in {None, ""} else "-"


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines; the last column is as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def stopped(name: str) -> dict[str, Any]:
    """The status of a node that is known and does not run."""
    return {
        "name": name,
        "state": "stopped",
        "pid": None,
        "login_url": None,
        "tailnet": None,
        "hostname": None,
        "netns": None,
        "attached": [],
        "health": [],
        "self": None,
        "peers": [],
        "rx_bytes": 0,
        "tx_bytes": 0,
    }


def listed(status: Object) -> dict[str, Any]:
    """A node's member of `tsns ls --json`."""
    kinds = [_kind(peer) for peer in status.get("peers") or ()]
    return {
        "name": status["name"],
        "state": status["state"],
        "pid": status.get("pid"),
        "tailnet": status.get("tailnet"),
        "hostname": status.get("hostname"),
        "addresses": list((status.get("self") or {}).get("addresses") or ()),
        "netns": status.get("netns"),
        "attached": list(status.get("attached") or ()),
        "peers": {"total": len(kinds), "direct": kinds.count("direct"), "relay": kinds.count("derp")},
        "rx_bytes": status.get("rx_bytes") or 0,
        "tx_bytes": status.get("tx_bytes") or 0,
    }


def node_list(nodes: Iterable[Object]) -> list[str]:
    """`tsns ls`: a line for each node."""
    rows = [["NAME", "STATE", "TAILNET", "ADDRESSES", "PEERS", "INSIDE", "RECEIVED", "SENT"]]
    rows += [
        [
            cell(node["name"]),
            cell(node["state"]),
            cell(node["tailnet"]),
            cell(" ".join(map(str, node["addresses"]))),
            _peer_counts(node["peers"]) if node["state"] != "stopped" else "-",
            _inside(node["attached"]),
            size(node["rx_bytes"]),
            size(node["tx_bytes"]),
        ]
        for node in nodes
    ]
    return columns(rows)


def _peer_counts(peers: Object) -> str:
    used = [f"{peers[key]} {key}" for key in ("direct", "relay") if peers[key]]
    return f"{peers['total']} ({', '.join(used)})" if used else str(peers["total"])


def _inside(attached: Sequence[Object]) -> str:
    shown = [f"{cell(item.get('name'))}({cell(item.get('id'))})" for item in attached[:MAX_INSIDE_SHOWN]]
    if len(attached) > MAX_INSIDE_SHOWN:
        shown.append(f"+{len(attached) - MAX_INSIDE_SHOWN}")
    return cell(" ".join(shown))


def _kind(peer: Object) -> str:
    return str((peer.get("path") or {}).get("kind") or "none")


def is_active(peer: Object, now: float) -> bool:
    """Whether there is a session with the peer. `now` in seconds since 1970, as a handshake's time is."""
    handshake = peer.get("last_handshake")
    return _kind(peer) != "none" and isinstance(handshake, int | float) and now - handshake < ACTIVE_S


def _peer_state(peer: Object, now: float) -> str:
    path = peer.get("path") or {}
    if is_active(peer, now):
        how = f'relay "{cell(path.get("region"))}"' if _kind(peer) == "derp" else f"direct {cell(path.get('address'))}"
        words = [f"active; {how}"]
        if peer.get("online") is False:
            words.append("offline")
    else:
        words = ["offline" if peer.get("online") is False else "idle"]
    if peer.get("exit_node"):
        words.append("exit node")
    elif peer.get("exit_node_option"):
        words.append("offers exit node")
    if routes := peer.get("accepted_routes"):
        more = f" and {len(routes) - MAX_ROUTES_SHOWN} more" if len(routes) > MAX_ROUTES_SHOWN else ""
        words.append(f"routes {' '.join(map(cell, routes[:MAX_ROUTES_SHOWN]))}{more}")
    if peer.get("tx_bytes") or peer.get("rx_bytes"):
        words.append(f"tx {peer.get('tx_bytes') or 0} rx {peer.get('rx_bytes') or 0}")
    if isinstance(handshake := peer.get("last_handshake"), int | float):
        words.append(f"handshake {_ago(now - handshake)}")
    return ", ".join(words)


def _ago(seconds: float) -> str:
    for size_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def inner_lines(status: Object) -> list[str]:
    """What `status -v` adds: the data plane with the kernel's offloads, and what was dropped."""
    data_plane = status.get("data_plane") or {}
    offloads = data_plane.get("offloads") or {}
    lines = ["", f"data plane: {cell(data_plane.get('engine'))}"]
    for word, wanted in (("with", True), ("without", False)):
        names = [cell(name) for name, is_on in offloads.items() if bool(is_on) is wanted]
        if names:
            lines.append(f"  {word} {', '.join(names)}")
    drops = sorted((status.get("drops") or {}).items(), key=lambda item: -item[1])
    lines += ["", "dropped:" if drops else "nothing was dropped"]
    return lines + columns([[f"  {count}", cell(reason)] for reason, count in drops])


def _row(peer: Object, state: str) -> list[str]:
    addresses = peer.get("addresses") or [""]
    return [cell(addresses[0]), cell(peer.get("name")), cell(peer.get("user")), cell(peer.get("os")), state]


def status_lines(status: Object, now: float, *, peers: bool = True, active: bool = False) -> list[str]:
    """`tsns status`: this node, its peers, and last what is wrong; one sentence for a node that is not running."""
    name, state = cell(status.get("name")), str(status.get("state"))
    lines: list[str] = []
    if state == "needs-login":
        url = status.get("login_url")
        lines.append(f"The node {name} needs a login" + (f": open {cell(url)}" if url else "."))
    elif state not in RUNNING_STATES:
        lines.append(f"The node {name} {_SENTENCES.get(state, f'is in the state {cell(state)}')}.")
    else:
        shown = status.get("peers") or () if peers else ()
        rows = [_row(peer, _peer_state(peer, now)) for peer in shown if not active or is_active(peer, now)]
        if own := status.get("self"):
            rows.insert(0, _row(own, "-"))
        lines = columns(rows) if rows else []
    health = [one_line(str(text)) for text in status.get("health") or ()]
    if state == "offline":
        health.insert(0, "the control server is away; the node goes on with what it knew")
    if health:
        lines += ["", "# Health check:", *(f"#     - {text}" for text in health)]
    return lines


def exit_node_list(peers: Iterable[Object]) -> list[str]:
    """`tsns exit-node list`: a line for each; a star at the one in use."""
    rows = [["", "ADDRESS", "NAME", "STATE"]]
    for peer in peers:
        state = {True: "online", False: "offline"}.get(peer.get("online"), "-")  # type: ignore[arg-type]
        found = addresses(peer, version=None) or [""]
        rows.append(["*" if peer.get("exit_node") else "", cell(found[0]), cell(peer.get("dns_name")), state])
    return columns(rows)


def find_peer(status: Object, wanted: str) -> Object | None:
    """The peer (or the node itself) of this name, DNS name or address."""
    wanted = wanted.rstrip(".").lower()
    everybody: list[Object] = [status.get("self") or {}, *(status.get("peers") or ())]
    for peer in everybody:
        names = {str(peer.get(key) or "").rstrip(".").lower() for key in ("name", "dns_name")}
        names.add(str(peer.get("dns_name") or "").partition(".")[0].lower())
        if wanted and (
            wanted in names or any(_same_address(wanted, address) for address in peer.get("addresses") or ())
        ):
            return peer
    return None


def _same_address(text: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(text) == ipaddress.ip_address(address)
    except ValueError:
        return False


def addresses(peer: Object, *, version: int | None) -> list[str]:
    """A node's addresses, of one IP version or of both."""
    found = [str(address) for address in peer.get("addresses") or ()]
    return [address for address in found if version is None or (":" in address) == (version == 6)]


def ping_line(peer: str, answer: Object) -> str:
    """One line for one ping."""
    if not answer.get("ok"):
        return f"no answer from {cell(peer)}: {cell(answer.get('error') or 'it took too long')}"
    path = answer.get("path") or {}
    via = f"DERP({cell(path.get('region'))})" if path.get("kind") == "derp" else cell(path.get("address"))
    return f"pong from {cell(peer)} via {via} in {milliseconds(float(answer.get('seconds') or 0))}"


def whois_lines(answer: Object) -> list[str]:
    """`tsns whois`: the machine, its user or its tags, and its capabilities towards us."""
    machine = [["  Name:", cell(answer.get("dns_name") or answer.get("name"))], ["  ID:", cell(answer.get("id"))]]
    for title, key in (("  Addresses:", "addresses"), ("  Routes:", "routes"), ("  Tags:", "tags")):
        if found := answer.get(key):
            machine.append([title, cell(", ".join(map(str, found)))])
    lines = ["Machine:", *columns(machine)]
    if user := answer.get("user"):
        lines += ["User:", *columns([["  Name:", cell(user.get("login_name"))], ["  ID:", cell(user.get("id"))]])]
    if capabilities := answer.get("capabilities"):
        lines.append("Capabilities:")
        for name, values in sorted(capabilities.items()):
            lines.append(f"  - {cell(name)}" + (":" if values else ""))
            if values:
                lines += [f"      {line}" for line in json.dumps(values, indent=2).splitlines()]
    return lines


def milliseconds(seconds: float) -> str:
    """A duration for people."""
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"

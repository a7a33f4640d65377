"""A lab's line commands: one JSON object a line in, one a line out (ring 1). For tests that steer a lab in another process.

    {"do": "expire", "node": "web"}  ->  {"ok": true}      or {"ok": false, "error": "..."}

| do | with | answer |
|---|---|---|
| auth_key | options of `Tailnet.add_auth_key`, `expired` | `auth_key` |
| nodes | | `nodes`: id, name, key, addresses, online, expires_at, authorized, home_derp |
| urls | | `urls` of the logins that wait for somebody |
| approve, refuse | `url` | |
| expire | `node`, `in_s` (0: now; null: never) | |
| authorize, remove | `node` | |
| offer | `node`, `routes` that it may carry: subnets, `0.0.0.0/0`, `::/0` | |
| set | `approval_required`, `key_expiry_s`, `visits_approve`, `offline_grace_s`, `keep_alive_s` | |
| fail | `path`, `status`, `times`, `retry_after`, `body` | |
| stop, start, drop | | control goes, comes back on its port, drops its connections |
| stop_derp, start_derp | `region` | |
| requests | | `requests`: how many of each path there were, and `registered`, the register requests' proofs |
| send | `node`, `message` (JSON of a MapResponse) | |
"""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from tsns.error import ProtocolError
from tsns.lab.lab import Lab
from tsns.proto.types import RegisterRequest, decode

MAX_LINE_BYTES: Final = 64 << 10
REGISTRAR: Final = frozenset({"approval_required", "key_expiry_s"})
CONTROL: Final = frozenset({"visits_approve", "offline_grace_s", "keep_alive_s"})

Object = dict[str, Any]


class Commands:
    """Carries them out."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def answer(self, line: bytes) -> bytes:
        """What to say to one line."""
        try:
            asked = json.loads(line)
            result = await self._do(asked)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            return json.dumps({"ok": False, "error": f"{type(error).__name__}: {error}"}).encode()
        return json.dumps({"ok": True, **result}).encode()

    async def _do(self, asked: Mapping[str, Any]) -> Object:
        lab, control = self._lab, self._lab.control
        values = {key: value for key, value in asked.items() if key != "do"}
        match asked["do"]:
            case "auth_key":
                return {"auth_key": lab.auth_key(**values)}
            case "nodes":
                return {"nodes": self._nodes()}
            case "urls":
                return {"urls": list(control.registrar.pending)}
            case "approve":
                control.approve(asked["url"])
            case "refuse":
                control.refuse(asked["url"])
            case "expire":
                in_s = asked.get("in_s", 0.0)
                node = lab.tailnet.find(asked["node"])
                lab.tailnet.change(node, expires_at=None if in_s is None else control.now() + in_s)
            case "authorize":
                control.authorize(asked["node"])
            case "offer":
                lab.tailnet.change(lab.tailnet.find(asked["node"]), routes=tuple(asked["routes"]))
            case "remove":
                control.remove(asked["node"])
            case "set":
                self._set(values)
            case "fail":
                control.faults.fail(
                    asked["path"],
                    asked["status"],
                    asked.get("body", ""),
                    times=asked.get("times", 1),
                    retry_after=asked.get("retry_after"),
                )
            case "stop":
                await control.stop()
            case "start":
                await control.start()
            case "drop":
                await control.drop_connections()
            case "stop_derp":
                await lab.derps[asked["region"]].stop()
            case "start_derp":
                await lab.derps[asked["region"]].start()
            case "requests":
                return self._requests()
            case "send":
                control.send(asked["node"], json.dumps(asked["message"]).encode())
            case other:
                raise ValueError(f"there is no command {other!r}")
        return {}

    def _nodes(self) -> list[Object]:
        return [
            {
                "id": node.id,
                "name": node.name,
                "key": str(node.key),
                "addresses": list(node.addresses),
                "online": bool(node.online),
                "expires_at": node.expires_at,
                "authorized": node.authorized,
                "home_derp": node.home_derp,
            }
            for node in self._lab.tailnet.nodes.values()
        ]

    def _set(self, values: Mapping[str, Any]) -> None:
        control = self._lab.control
        for name, value in values.items():
            if name in REGISTRAR:
                setattr(control.registrar, name, value)
            elif name in CONTROL:
                setattr(control, name, value)
            else:
                raise ValueError(f"there is no setting {name!r}")

    def _requests(self) -> Object:
        recorded = self._lab.control.requests
        proofs = []
        for request in recorded:
            if request.path == "/machine/register":
                try:
                    asked = decode(request.body, RegisterRequest)
                except ProtocolError:
                    continue
                proofs.append({"auth_key": asked.auth is not None, "followup": asked.followup or ""})
        return {"requests": collections.Counter(request.path for request in recorded), "registered": proofs}


async def serve(lab: Lab, reader: asyncio.StreamReader, write: Callable[[bytes], None]) -> None:
    """Answer line by line until the end of the input; ValueError for a line that is too long."""
    commands = Commands(lab)
    while line := await reader.readline():
        if line.strip():
            write(await commands.answer(line) + b"\n")

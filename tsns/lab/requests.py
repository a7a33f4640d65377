"""Reading a client's JSON as Go does: member names of any case, null where a value is absent (pure).

Source: Go's encoding/json. Clients rely on it: one of Tailscale's own writes `HostInfo` where tailcfg says `Hostinfo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar, get_args

import msgspec

from tsns.error import ProtocolError
from tsns.proto.types import Hostinfo, Wire

HOSTINFO: Final = "hostinfo"  # in lower case

T = TypeVar("T", bound=Wire)


def read(body: bytes, kind: type[T]) -> tuple[T, Mapping[str, Any] | None]:
    """The request, and its Hostinfo with all members that it had (None where it had none). ProtocolError for anything else."""
    try:
        message = msgspec.json.decode(body)
        request = msgspec.convert(_folded(message, kind), kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from None
    found = [value for name, value in message.items() if name.lower() == HOSTINFO and isinstance(value, dict)]
    return request, _folded(found[0], Hostinfo) if found else None


def _folded(value: Any, kind: type[Wire]) -> Any:
    """The same JSON with the member names that this struct has, its own members' members likewise."""
    if not isinstance(value, dict):
        return value
    fields = {field.encode_name.lower(): field for field in msgspec.structs.fields(kind)}
    folded = {}
    for name, member in value.items():
        field = fields.get(name.lower())
        if field is None:
            folded[name] = member
            continue
        inner = next(_structs(field.type), None)
        if inner is not None and isinstance(member, list):
            folded[field.encode_name] = [_folded(item, inner) for item in member]
        else:
            folded[field.encode_name] = _folded(member, inner) if inner is not None else member
    return folded


def _structs(annotation: Any) -> Iterator[type[Wire]]:
    if isinstance(annotation, type) and issubclass(annotation, Wire):
        yield annotation
    for argument in get_args(annotation):
        yield from _structs(argument)

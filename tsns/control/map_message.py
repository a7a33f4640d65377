"""One message of the netmap stream, from its JSON to a MapResponse, in short steps (ring 0).

The JSON of 10,000 peers takes a decoder a tenth of a second, in which no packet would move. So the long arrays at its top are cut into their
elements, and these are read a few at a time while the rest, the *shell*, is collected:

    {"Node":{...},"Peers":[{"ID":2,...},{"ID":3,...}],"Domain":"x"}   -->   elements  {"ID":2,...}  {"ID":3,...}
                                                                            shell     {"Node":{...},"Peers":[{}],"Domain":"x"}

Where to cut is a guess: Go writes no spaces, and begins each element with the same member. A guess is checked by its results: each element
must be a whole object, and in the shell the `{}` left behind must be found as the only element of the very array. What is not as guessed is
read at once, as any JSON may be. So what comes out is the same either way, and only how long others wait for it differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from tsns.error import ProtocolError
from tsns.proto.types import FilterRule, MapResponse, Node, UserProfile, Wire, decode, decode_list
from tsns.steps import Steps

ELEMENTS_AT_ONCE: Final = 16
MAX_ELEMENT_BYTES: Final = 1 << 20
MAX_ENDS_TRIED: Final = 256  # in looking for an array's end

# Each array with the field that it becomes, what its elements are, and what stands between two of them.
_ARRAYS: Final[dict[bytes, tuple[str, type[Wire], bytes]]] = {
    b"Peers": ("peers", Node, b'},{"ID":'),
    b"PeersChanged": ("peers_changed", Node, b'},{"ID":'),
    b"PacketFilter": ("packet_filter", FilterRule, b'},{"SrcIPs":'),
    b"UserProfiles": ("user_profiles", UserProfile, b'},{"ID":'),
}
_OF_OBJECTS: Final = b'":[{'  # behind an array's name
_BEGIN_BYTES: Final = max(map(len, _ARRAYS)) + len(b',"":[{')
_END: Final = re.compile(rb"\}(?=\][,}])")
_STAND_IN: Final = b"{}"


class _WrongGuessError(Exception):
    """The message cannot be cut, or not in this way."""


def reading(pieces: Callable[[], Iterator[bytes]]) -> Steps[MapResponse]:
    """Read one message. `pieces` gives its JSON from the beginning, each time it is asked; ProtocolError where it is no MapResponse."""
    text = pieces()
    first = next(text, b"")
    second = next(text, None)
    if second is None:
        return decode(first, MapResponse)
    cutter = _Cutter()
    try:
        cutter.text += first + second
        yield from cutter.cut()
        for piece in text:
            cutter.text += piece
            yield from cutter.cut()
            yield
        return cutter.result()
    except _WrongGuessError:
        return decode(b"".join(pieces()), MapResponse)


class _Cutter:
    """Holds what has not been cut yet (`text`), the shell so far, and the elements of the arrays so far."""

    def __init__(self) -> None:
        self.text = bytearray()
        self._shell = bytearray()
        self._found: dict[bytes, list[Wire]] = {}
        self._array = b""  # the one that the text begins within, at an element's beginning; empty: within none

    def cut(self) -> Steps[None]:
        """Cut as much of the text as is there."""
        while self._elements() if self._array else self._outside():
            yield

    def result(self) -> MapResponse:
        """The whole message, after the last piece of text."""
        if self._array:
            raise _WrongGuessError
        self._to_shell(len(self.text))
        try:
            response = decode(bytes(self._shell), MapResponse)
        except ProtocolError:
            raise _WrongGuessError from None
        for array, elements in self._found.items():
            field, kind, _ = _ARRAYS[array]
            if getattr(response, field) != [kind()]:
                raise _WrongGuessError
            setattr(response, field, elements)
        return response

    def _outside(self) -> bool:
        """Go to the next array; False where there is none as yet."""
        array, end = self._next_array()
        if not array:
            self._to_shell(max(0, len(self.text) - _BEGIN_BYTES))
            return False
        if array in self._found:
            raise _WrongGuessError
        self._to_shell(end)
        self._shell += _STAND_IN
        self._found[array], self._array = [], array
        return True

    def _next_array(self) -> tuple[bytes, int]:
        """The name of the next array that we know, and where its first element begins; an empty name where there is none."""
        text = self.text
        at = text.find(_OF_OBJECTS)
        while at >= 0:
            quote = text.rfind(b'"', max(0, at - _BEGIN_BYTES), at)
            if quote > 0 and text[quote - 1] in b"{,":
                name = bytes(text[quote + 1 : at])
                if name in _ARRAYS:
                    return name, at + len(_OF_OBJECTS) - 1
            at = text.find(_OF_OBJECTS, at + 1)
        return b"", 0

    def _to_shell(self, size: int) -> None:
        self._shell += self.text[:size]
        del self.text[:size]

    def _elements(self) -> bool:
        """Read the next few elements; False where more text is wanted."""
        _, kind, between = _ARRAYS[self._array]
        found = self._found[self._array]
        ends = self._ends(between)
        if not ends:
            return self._last_element(kind, len(self.text), is_whole=False)
        try:
            found += decode_list(bytes(self.text[: ends[-1]]), kind)
        except ProtocolError:
            # The array may have ended, with other text behind it in which the same stands between two elements.
            return self._one_element(kind, ends[0])
        del self.text[: ends[-1] + 1]  # with the comma
        return True

    def _ends(self, between: bytes) -> list[int]:
        ends: list[int] = []
        at = self.text.find(between)
        while at >= 0 and len(ends) < ELEMENTS_AT_ONCE:
            ends.append(at + 1)
            at = self.text.find(between, at + 1)
        return ends

    def _one_element(self, kind: type[Wire], end: int) -> bool:
        try:
            element = decode(bytes(self.text[:end]), kind)
        except ProtocolError:
            return self._last_element(kind, end, is_whole=True)
        self._found[self._array].append(element)
        del self.text[: end + 1]
        return True

    def _last_element(self, kind: type[Wire], limit: int, *, is_whole: bool) -> bool:
        """Look for the array's end before `limit`. An object's beginning is never an object, so the first that can be read is the one."""
        tried = 0
        for match in _END.finditer(bytes(self.text[:limit])):
            tried += 1
            if match.end() > MAX_ELEMENT_BYTES or tried > MAX_ENDS_TRIED:
                raise _WrongGuessError
            try:
                element = decode(bytes(self.text[: match.end()]), kind)
            except ProtocolError:
                continue
            self._found[self._array].append(element)
            del self.text[: match.end()]
            self._array = b""
            return True
        if is_whole or limit > MAX_ELEMENT_BYTES:
            raise _WrongGuessError
        return False

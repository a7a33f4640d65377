"""The keeper as the engine sees it: what it may say and ask for (ring 1)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from tsns.node import messages
from tsns.node.messages import Message

ANSWER_TIMEOUT_S: Final = 15.0

log = logging.getLogger(__name__)


class KeeperChannel:
    """The engine's end of the channel. `on_tun` gets descriptors (TUN, then DNS sockets), `on_stop` whether to log out.

    `on_configure` gets settings that are others from now on. Two more may be set: `on_nameservers` gets the host's name servers as its
    programs know them, and all of their addresses; `on_place` what is said of attachments, with descriptors.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_tun: Callable[[list[int]], None],
        on_stop: Callable[[bool], None],
        on_configure: Callable[[Message], None],
    ) -> None:
        self._sock = sock
        self._on_configure = on_configure
        self._on_tun = on_tun
        self._on_stop = on_stop
        self._asked: dict[str, deque[asyncio.Future[tuple[Message, list[int]]]]] = {}
        self.on_nameservers: Callable[[list[str], list[str]], None] = lambda *_: None
        self.on_place: Callable[[Message, Sequence[int]], None] = lambda *_: None

    def start(self) -> None:
        """Hear the keeper from now on."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def _read(self) -> None:
        try:
            message, fds = messages.receive(self._sock, messages.MAX_ENGINE_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError):
            asyncio.get_running_loop().remove_reader(self._sock)
            self._on_stop(False)  # without a keeper there is no node; the kernel ends us too
            return
        match message:
            case {"give": "tun"}:
                self._on_tun(fds)
            case {"done": str(what)}:
                waiting = self._asked.get(what)
                if waiting:
                    waiting.popleft().set_result((message, fds))
            case {"configure": dict(settings)}:
                self._on_configure(settings)
            case {"give": "nameservers", "servers": list(servers), "addresses": list(addresses)}:
                self.on_nameservers([str(text) for text in servers], [str(text) for text in addresses])
            case {"give": "place" | "ports"} | {"take": "place"}:
                self.on_place(message, fds)
            case {"stop": True, "logout": logout}:
                self._on_stop(bool(logout))
            case _:
                log.warning("the keeper said something unknown")

    def say(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Tell the keeper something; one that cannot hear is about to end us."""
        try:
            messages.send(self._sock, message, fds, messages.MAX_ENGINE_MESSAGE_BYTES)
        except (OSError, ValueError) as error:
            log.warning("the keeper does not hear: %s", error)

    async def ask(self, what: str, message: Message | None = None, fds: Sequence[int] = ()) -> Message:
        """Ask for something that is answered when it is done; `error` in the answer is empty when it went well.

        Copies of the descriptors go with the question.
        """
        answer, given = await self.ask_for_descriptors(what, message, fds)
        _close(given)
        return answer

    async def ask_for_descriptors(
        self, what: str, message: Message | None = None, fds: Sequence[int] = ()
    ) -> tuple[Message, list[int]]:
        """The same for what is answered with descriptors, which are the caller's then."""
        answer: asyncio.Future[tuple[Message, list[int]]] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(what, deque()).append(answer)
        self.say({"ask": what, **(message or {})}, fds)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await asyncio.shield(answer)
        except BaseException as error:
            # A late answer still belongs to this question, and so do its descriptors.
            answer.add_done_callback(lambda late: None if late.cancelled() else _close(late.result()[1]))
            if isinstance(error, TimeoutError):
                return {"error": "the keeper did not answer"}, []
            raise


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)

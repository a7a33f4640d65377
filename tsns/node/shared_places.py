"""The engine's part in attachments: their TUNs, names, and the question whose a packet is (ring 1).

keeper --"give place"--> a TUN for the pump, sockets for names        --"take place"--> neither any more
pump   --Ask-----------> keeper --"listening"--> pump
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from tsns.node.container_names import ContainerNames
from tsns.node.keeper_channel import KeeperChannel
from tsns.node.messages import Message
from tsns.node.name_service import NameService
from tsns.wg.sharing import Ask
from tsns.wg.tuns import Tuns

MAX_ASKED: Final = 32  # questions who listens, on their way to the keeper

log = logging.getLogger(__name__)


class SharedPlaces:
    """Those of one engine."""

    def __init__(self, keeper: KeeperChannel, names: NameService) -> None:
        self._keeper = keeper
        self._names = names
        self._tuns: Tuns | None = None
        self._fds: dict[int, int] = {}
        self._served: dict[int, ContainerNames] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked = 0
        keeper.on_place = self._on_place

    def set_tuns(self, tuns: Tuns) -> None:
        """These are to have the places, too."""
        self._tuns = tuns

    async def close(self) -> None:
        """Serve none of them any more."""
        for place in list(self._fds):
            self._drop(place)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lost(self, place: int) -> None:
        """Its TUN is gone; the keeper notices the end of what was attached by itself."""
        log.warning("an attached namespace has lost its TUN")
        self._drop(place)

    def who_listens(self, question: Ask) -> None:
        """Have the pump told; unanswered questions end by themselves."""
        if self._asked < MAX_ASKED:
            self._asked += 1
            self._spawn(self._find_out(question))

    async def _find_out(self, question: Ask) -> None:
        try:
            wanted: Message = {"protocol": question.protocol, "port": question.port}
            place = (await self._keeper.ask("listening", wanted)).get("place")
        finally:
            self._asked -= 1
        if self._tuns is not None:
            self._tuns.answer(question, place if isinstance(place, int) else None)

    def _on_place(self, message: Message, fds: Sequence[int]) -> None:
        assert self._tuns is not None  # the node's own TUN is given first
        match message:
            case {"give": "place", "place": int(place), "names": bool(names), "published": list(published)}:
                self._drop(place)
                tun, *sockets = fds
                self._fds[place] = tun
                self._tuns.add(place, tun)
                for protocol, port in published:
                    self._tuns.publish(protocol, port, place)
                resolver = socket.socket(fileno=sockets.pop(0)) if names else None
                self._served[place] = ContainerNames(self._names, resolver)
                self._spawn(self._served[place].serve([socket.socket(fileno=fd) for fd in sockets]))
            case {"give": "ports", "ports": list(shares)}:
                for place, start, stop in shares:
                    self._tuns.set_ports(place, range(start, stop))
            case {"take": "place", "place": int(place)}:
                self._drop(place)
            case _:
                log.warning("the keeper said something unknown")

    def _drop(self, place: int) -> None:
        tun = self._fds.pop(place, None)
        if tun is None:
            return
        if self._tuns is not None:
            self._tuns.remove(place)
        os.close(tun)
        self._spawn(self._served.pop(place).close())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

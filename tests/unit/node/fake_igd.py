"""An internet gateway device on loopback: answers searches, serves its description, maps ports in its own way."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Self

from tsns.paths import upnp
from tsns.proto.addresses import Endpoint

IP2, IP1, PPP1 = upnp.SERVICES


@dataclass
class FakeIgd(asyncio.DatagramProtocol):
    """Each switch is one of the ways in which routers differ, or in which a hostile one behaves."""

    services: tuple[str, ...] = (IP1,)
    externals: dict[str, str] = field(default_factory=dict)  # by service; else 203.0.113.7
    location_host: str = "127.0.0.1"
    control_url: str = "/ctl/{number}"
    description_status: int = 200
    description: bytes | None = None
    endless: bool = False
    slow: bool = False
    silent: bool = False
    chunked: bool = False
    refuse: dict[str, list[int]] = field(default_factory=dict)  # by action: error codes, one after the other
    reserves: str = ""  # the port that AddAnyPortMapping gives instead
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # path, action, arguments
    searches: list[bytes] = field(default_factory=list)
    mapped: dict[str, dict[str, str]] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._ssdp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.ssdp_port: int = self._ssdp.get_extra_info("sockname")[1]
        self._serving: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ssdp.close()
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def datagram_received(self, data: bytes, addr: Endpoint) -> None:
        self.searches.append(data)
        if not self.silent:
            location = f"http://{self.location_host}:{self.port}/igd.xml"
            answer = f"HTTP/1.1 200 OK\r\nST: {upnp.SEARCH_GATEWAY}\r\nLOCATION: {location}\r\n\r\n"
            self._ssdp.sendto(answer.encode(), addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            path = head.split(" ")[1]
            status, answer = self._soap(path, head, body) if head.startswith("POST") else self._document()
            await self._answer(writer, status, answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._serving.discard(task)

    async def _answer(self, writer: asyncio.StreamWriter, status: int, answer: bytes) -> None:
        extra = "Location: http://198.51.100.1/\r\n" if status in range(300, 400) else ""
        if self.endless:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b"<a/>" * 4096)
                await writer.drain()
        if self.slow:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.1)
        if self.chunked:
            writer.write(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for start in range(0, len(answer), 100):
                piece = answer[start : start + 100]
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(f"HTTP/1.1 {status} X\r\n{extra}Content-Length: {len(answer)}\r\n\r\n".encode() + answer)
        await writer.drain()

    def _document(self) -> tuple[int, bytes]:
        listed = "".join(
            f"<service><serviceType>{service}</serviceType>"
            f"<controlURL>{self.control_url.format(number=number, port=self.port)}</controlURL></service>"
            for number, service in enumerate(self.services)
        )
        text = f"<root><device><serviceList>{listed}</serviceList></device></root>"
        return self.description_status, self.description if self.description is not None else text.encode()

    def _soap(self, path: str, head: str, body: bytes) -> tuple[int, bytes]:
        named = re.search(r'(?i)soapaction: *"(.*)#(.*)"', head)
        assert named is not None
        service, action = named[1].strip(), named[2].strip()
        arguments = dict(re.findall(r"<(New\w+)>([^<]*)</", body.decode()))
        self.asked.append((path, action, arguments))
        codes = self.refuse.get(action, [])
        if codes:
            fault = f"<s:Fault><detail><UPnPError><errorCode>{codes.pop(0)}</errorCode></UPnPError></detail></s:Fault>"
            return 500, f'<s:Envelope xmlns:s="x"><s:Body>{fault}</s:Body></s:Envelope>'.encode()
        inner = ""
        if action == "GetExternalIPAddress":
            inner = f"<NewExternalIPAddress>{self.externals.get(service, '203.0.113.7')}</NewExternalIPAddress>"
        elif action in {"AddPortMapping", "AddAnyPortMapping"}:
            port = self.reserves or arguments["NewExternalPort"]
            self.mapped[port] = arguments
            inner = f"<NewReservedPort>{port}</NewReservedPort>" if action == "AddAnyPortMapping" else ""
        elif action == "DeletePortMapping":
            self.mapped.pop(arguments["NewExternalPort"], None)
        answer = f'<u:{action}Response xmlns:u="{service}">{inner}</u:{action}Response>'
        return 200, f'<s:Envelope xmlns:s="x" xmlns:u="y"><s:Body>{answer}</s:Body></s:Envelope>'.encode()

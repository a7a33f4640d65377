"""The underlay: the one place where sockets that carry the tunnel are made (ring 1).

They belong to the namespace that this process runs in, the host's; the tailnet lives in another one.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import socket
import ssl
from collections.abc import Collection
from typing import Final

from tsns.error import RetryableError
from tsns.proto.addresses import pack
from tsns.proxies import DIRECT, Proxies

CONNECT_TIMEOUT_S: Final = 10.0
HAPPY_EYEBALLS_DELAY_S: Final = 0.2
STREAM_LIMIT_BYTES: Final = 256 << 10
UDP_BUFFER_BYTES: Final = 7 << 20  # a hundred trains: what comes while this process does something else
TLS_READ_BYTES: Final = 64 << 10  # at once; asyncio gives each connection 256 KiB for it, and fills them with zeros

_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

asyncio.sslproto.SSLProtocol.max_size = TLS_READ_BYTES

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Underlay:
    """Makes connections and sockets in the host's network. Whoever connects looks himself whether one of `proxies` stands in between."""

    proxies: Proxies = DIRECT

    def __init__(self, proxies: Proxies = DIRECT) -> None:
        self.proxies = proxies

    async def open_tcp(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Stream:
        """Connect, over TLS where a context is given (`server_hostname` is then the name asked for, by default `host`).

        RetryableError when it does not work in time; its text names host, port and reason.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(
                    host,
                    port,
                    limit=STREAM_LIMIT_BYTES,
                    ssl=tls,
                    server_hostname=(server_hostname or host) if tls else None,
                    # asyncio's race leaves its socket open when it is cancelled, so an address does without.
                    happy_eyeballs_delay=None if _is_address(host) else HAPPY_EYEBALLS_DELAY_S,
                )
        except TimeoutError:
            raise RetryableError(f"no connection to {host}:{port} within {timeout_s:.0f} s") from None
        except OSError as error:
            raise connection_failure(host, port, error) from error
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return reader, writer

    async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
        """The (family, (address, port)) pairs of a host name; empty when there are none."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError:
            return []
        return [(family, (str(address[0]), port)) for family, _, _, _, address in found]


def udp_socket(family: int, port: int) -> socket.socket:
    """A non-blocking UDP socket bound to this port (0: any) of all addresses; OSError where the family is missing."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for forced, asked in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, UDP_BUFFER_BYTES)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, asked, UDP_BUFFER_BYTES)  # as much of it as net.core.rmem_max lets
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def question_socket(kind: int, family: int) -> socket.socket:
    """A non-blocking socket for one question to a server of the underlay; OSError where there can be none."""
    return socket.socket(family, kind | socket.SOCK_NONBLOCK)


def add_udp_sockets(sockets: list[socket.socket], port: int) -> None:
    """Add one for each family that the host has and the list has not: on the port of the first one, or on `port`, or else on any."""
    for family in (socket.AF_INET, socket.AF_INET6):
        if any(sock.family == family for sock in sockets):
            continue
        wanted = sockets[0].getsockname()[1] if sockets else port
        for each in dict.fromkeys((wanted, 0)):
            with contextlib.suppress(OSError):
                sockets.append(udp_socket(family, each))
                break


def is_from_elsewhere(writer: asyncio.StreamWriter, addresses: Collection[str]) -> bool:
    """Whether a connection was made from an address that is not among the host's any more (none: they are not known)."""
    name = writer.get_extra_info("sockname")
    return bool(addresses and name) and str(name[0]).partition("%")[0] not in addresses


def connection_failure(host: str, port: int, error: OSError) -> RetryableError:
    """Why there is no connection, certificates included."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return RetryableError(f"{host}:{port} has no valid certificate: {error.verify_message}")
    return RetryableError(f"no connection to {host}:{port}: {error.strerror or error}")


def _is_address(host: str) -> bool:
    try:
        pack(host)
    except ValueError:
        return False
    return True

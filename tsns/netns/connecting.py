"""Connections that take more than one `open_tcp`: through an HTTP proxy, and races of several ways (ring 1).

Source: RFC 9110 9.3.6 (CONNECT) and 11.7.2 (Proxy-Authorization).

    TCP (and TLS) to the proxy --CONNECT host:port--> 2xx --> the far end's bytes, with TLS of its own inside if wanted
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from tsns.error import ProtocolError, RetryableError
from tsns.netns.underlay import CONNECT_TIMEOUT_S, Stream, Underlay, connection_failure
from tsns.proto.text import one_line
from tsns.proxies import Proxy

MAX_HEAD_BYTES: Final = 16 << 10
READ_BYTES: Final = 4096

_END_OF_HEAD: Final = b"\r\n\r\n"

Way = tuple[float, Callable[[], Coroutine[Any, Any, Stream]]]  # after how many seconds, and how


async def open_by_proxy(
    underlay: Underlay,
    proxy: Proxy,
    host: str,
    port: int,
    *,
    proxy_tls: ssl.SSLContext,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Stream:
    """Connect to a host, by its name, through a proxy; over TLS where a context is given. `proxy_tls` is for an https:// proxy.

    RetryableError when it does not work in time; its text names the proxy and the reason.
    """
    try:
        async with asyncio.timeout(timeout_s):
            outer = proxy_tls if proxy.scheme == "https" else None
            stream = await underlay.open_tcp(proxy.host, proxy.port, tls=outer, timeout_s=timeout_s)
            try:
                await _connect(stream, proxy, host, port)
                if tls is not None:
                    await stream[1].start_tls(tls, server_hostname=host)
            except BaseException:
                stream[1].transport.abort()
                raise
            return stream
    except TimeoutError:
        raise RetryableError(f"no connection to {host}:{port} by the proxy {proxy} within {timeout_s:.0f} s") from None
    except ProtocolError as error:
        raise RetryableError(f"the proxy {proxy} answers CONNECT with {error}") from None
    except OSError as error:
        raise connection_failure(host, port, error) from error


async def _connect(stream: Stream, proxy: Proxy, host: str, port: int) -> None:
    """Have the proxy connect; ProtocolError with what it said instead."""
    reader, writer = stream
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not authority.isascii() or not authority.isprintable() or " " in authority:
        raise RetryableError(f"{one_line(host)} is no host name")
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", "User-Agent: tsns"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization.reveal()}")
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while _END_OF_HEAD not in head:
        data = await reader.read(READ_BYTES)
        head += data
        if not data or len(head) > MAX_HEAD_BYTES or not head.startswith(b"HTTP/1."[: len(head)]):
            raise ProtocolError("nothing that is HTTP")
    line = head.partition(b"\r\n")[0]
    status = line.split(b" ")[1][:3] if line.count(b" ") else b""
    if not status.startswith(b"2"):
        more = "; its URL may hold a name and a password" if status == b"407" else ""
        raise ProtocolError(f"{one_line(line, 100)}{more}")
    if not head.endswith(_END_OF_HEAD) or head.count(_END_OF_HEAD) > 1:
        raise ProtocolError("more than the connection")  # which would later pass for the far end's words


async def race(ways: Sequence[Way]) -> Stream:
    """The connection that is there first, the others dropped; each way begins after its own delay. RetryableError: the first reason."""

    async def later(delay_s: float, connect: Callable[[], Coroutine[Any, Any, Stream]]) -> Stream:
        await asyncio.sleep(delay_s)
        return await connect()

    tasks = [asyncio.create_task(later(*way)) for way in ways]
    failure: RetryableError | None = None
    winner: asyncio.Task[Stream] | None = None
    try:
        for next_done in asyncio.as_completed(tasks):
            try:
                await next_done
            except RetryableError as error:
                failure = failure or error
            else:
                winner = next(task for task in tasks if task.done() and not task.cancelled() and not task.exception())
                return winner.result()
    finally:
        for task in tasks:
            task.cancel()
        for result, task in zip(await asyncio.gather(*tasks, return_exceptions=True), tasks, strict=True):
            if task is not winner and isinstance(result, tuple):
                result[1].transport.abort()
    raise failure or RetryableError("no connection")

"""HTTP proxies as the environment names them, and which connection takes which (ring 1, standard library only: `run` starts with it).

Source: the rules of Go's golang.org/x/net/http/httpproxy, which Tailscale's client goes by; curl's manual for the variables' spellings.

    HTTPS_PROXY, https_proxy    for https:// destinations, relays among them
    HTTP_PROXY, http_proxy      for http:// destinations
    NO_PROXY, no_proxy          exceptions: names (and what is below them), addresses, prefixes, each with a port if wanted; `*` is all

What is on this machine is never asked for by a proxy. A proxy's URL may hold a name and a password, so all of it is a secret.
"""

from __future__ import annotations

import base64
import ipaddress
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tsns.config import NodeConfig, Secret
from tsns.error import UsageError

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_URL_CHARS: Final = 2048
MAX_EXCEPTIONS_CHARS: Final = 16 << 10
MAX_EXCEPTIONS: Final = 1000

_VARIABLES: Final = {"http_proxy": ("HTTP_PROXY", "http_proxy"), "https_proxy": ("HTTPS_PROXY", "https_proxy")}
_EXCEPTIONS: Final = ("NO_PROXY", "no_proxy")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is asked to CONNECT."""

    scheme: str  # how the proxy itself is spoken to
    host: str
    port: int
    authorization: Secret | None = field(default=None, repr=False)  # the value of Proxy-Authorization

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read a proxy's URL, of which the scheme may be missing; ValueError, which repeats none of it, where it is none."""
        text = url if "://" in url else f"http://{url}"
        try:
            parts = urllib.parse.urlsplit(text)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
        except ValueError:
            raise ValueError("it is no URL") from None
        if parts.scheme not in DEFAULT_PORTS:
            raise ValueError("only http:// and https:// proxies can be used")
        plain = text.isascii() and text.isprintable() and " " not in text
        if not parts.hostname or not plain or len(text) > MAX_URL_CHARS:
            raise ValueError("it is no URL")
        authorization = None
        if parts.username is not None:
            user = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
            authorization = Secret("Basic " + base64.b64encode(user.encode()).decode())
        return cls(parts.scheme, parts.hostname, port, authorization)


class Proxies:
    """Which proxy a connection takes."""

    def __init__(self, http: Proxy | None = None, https: Proxy | None = None, exceptions: str = "") -> None:
        self._by_scheme = {"http": http, "https": https}
        self._exceptions = [_Exception(part) for part in exceptions.replace(",", " ").split()[:MAX_EXCEPTIONS]]

    @classmethod
    def of(cls, config: NodeConfig) -> Proxies:
        """Those of a node's configuration; ValueError where it names something else."""
        http, https = (
            Proxy.parse(secret.reveal()) if secret is not None else None
            for secret in (config.http_proxy, config.https_proxy)
        )
        return cls(http, https, config.no_proxy)

    def choose(self, host: str, port: int, *, scheme: str = "https") -> Proxy | None:
        """The proxy by which to reach a host (a name or an address); None: go there directly."""
        proxy = self._by_scheme.get(scheme)
        name = host.lower().rstrip(".")
        if proxy is None or _is_here(name) or any(exception.covers(name, port) for exception in self._exceptions):
            return None
        return proxy


DIRECT: Final = Proxies()


class _Exception:
    """One entry of NO_PROXY."""

    def __init__(self, text: str) -> None:
        self._all = text == "*"
        self._prefix: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
        name, self._port = _split_port(text.lower())
        try:
            self._prefix = ipaddress.ip_network(name, strict=False)
        except ValueError:
            pass
        name = name.removeprefix("*").rstrip(".")
        self._below = "." + name.lstrip(".")
        self._name = "" if name.startswith(".") else name  # .example.com is for what is below it only

    def covers(self, name: str, port: int) -> bool:
        """Whether this host is meant."""
        if self._all:
            return True
        if self._port not in (0, port):
            return False
        if self._prefix is not None:
            try:
                address = ipaddress.ip_address(name.partition("%")[0])
            except ValueError:
                return False
            return address.version == self._prefix.version and address in self._prefix
        return bool(self._name and name == self._name) or (len(self._below) > 1 and name.endswith(self._below))


def _split_port(text: str) -> tuple[str, int]:
    """An entry's host and port; 0 stands for any."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        return text, 0
    return (host, int(port)) if port.isascii() and port.isdigit() and len(port) <= 5 else (host, 0)


def _is_here(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def settings(environ: Mapping[str, str]) -> dict[str, Secret | str]:
    """The values of NodeConfig that this environment gives; UsageError names the variable that makes no sense."""
    found: dict[str, Secret | str] = {}
    for key, names in _VARIABLES.items():
        name = next((name for name in names if environ.get(name)), None)
        if name is None:
            continue
        try:
            Proxy.parse(environ[name])
        except ValueError as error:
            raise UsageError(
                f"{name} does not name a proxy that can be used: {error}", f"unset {name}, or mend it"
            ) from None
        found[key] = Secret(environ[name])
    exceptions = next((environ[name] for name in _EXCEPTIONS if environ.get(name)), "")
    if exceptions and found:
        found["no_proxy"] = exceptions[:MAX_EXCEPTIONS_CHARS]
    return found

"""Which connection takes which proxy, and that a proxy's password is nobody's business."""

from __future__ import annotations

import json

import pytest

from tsns import proxies, settings
from tsns.config import NodeConfig, Secret
from tsns.error import UsageError
from tsns.proxies import Proxies, Proxy

BOTH = Proxies(Proxy.parse("http://plain:1"), Proxy.parse("http://tls:2"))


@pytest.mark.parametrize(
    ("url", "shown", "authorization"),
    [
        ("http://proxy.test:3128", "http://proxy.test:3128", None),
        ("proxy.test:3128", "http://proxy.test:3128", None),
        ("https://proxy.test", "https://proxy.test:443", None),
        ("http://[fd00::1]:8080/", "http://[fd00::1]:8080", None),
        ("http://me:p%40ss@proxy.test", "http://proxy.test:80", "Basic bWU6cEBzcw=="),
        ("http://me@proxy.test", "http://proxy.test:80", "Basic bWU6"),
    ],
)
def test_urls(url: str, shown: str, authorization: str | None) -> None:
    proxy = Proxy.parse(url)
    assert str(proxy) == shown
    assert (proxy.authorization.reveal() if proxy.authorization else None) == authorization
    assert "bWU6" not in repr(proxy)


@pytest.mark.parametrize("url", ["socks5://p:1", "http://", "http://p:x", "http://p:99999", "http://a b", "http://ä"])
def test_what_is_no_proxy_is_told_without_repeating_it(url: str) -> None:
    secret = url.replace("://", "://user:word@") if "://" in url else url
    with pytest.raises(UsageError, match="HTTPS_PROXY") as caught:
        proxies.settings({"HTTPS_PROXY": secret})
    assert "word" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("exceptions", "host", "port", "direct"),
    [
        ("", "example.com", 443, False),
        ("*", "example.com", 443, True),
        ("example.com", "example.com", 443, True),
        ("example.com", "WWW.Example.com.", 443, True),
        ("example.com", "notexample.com", 443, False),
        (".example.com", "example.com", 443, False),
        (".example.com", "www.example.com", 443, True),
        ("*.example.com", "www.example.com", 443, True),
        ("other, example.com:8443", "example.com", 443, False),
        ("other, example.com:8443", "example.com", 8443, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "fd00::1", 443, False),
        ("192.0.2.1", "192.0.2.1", 443, True),
        ("192.0.2.1:80", "192.0.2.1", 443, False),
        ("fd00::/8", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("", "localhost", 443, True),
        ("", "127.0.0.1", 443, True),
        ("", "::1", 443, True),
        (", ,.,", "example.com", 443, False),
    ],
)
def test_exceptions(exceptions: str, host: str, port: int, direct: bool) -> None:
    assert (Proxies(None, Proxy.parse("http://p"), exceptions).choose(host, port) is None) is direct


def test_each_scheme_has_its_own() -> None:
    assert str(BOTH.choose("a.test", 443)) == "http://tls:2"
    assert str(BOTH.choose("a.test", 80, scheme="http")) == "http://plain:1"
    assert Proxies().choose("a.test", 443) is None


@pytest.mark.parametrize("upper", [True, False])
def test_the_environment_becomes_part_of_the_configuration(upper: bool) -> None:
    environ = {"HTTPS_PROXY": "http://me:word@p:1", "HTTP_PROXY": "http://q:2", "NO_PROXY": "a.test"}
    environ = environ if upper else {name.lower(): value for name, value in environ.items()}
    config = settings.node_config("web", {}, environ, files=[])
    assert "word" not in repr(config)
    assert config.https_proxy == Secret("http://me:word@p:1")
    found = Proxies.of(NodeConfig.from_message(json.loads(json.dumps(config.to_message()))))
    assert str(found.choose("b.test", 443)) == "http://p:1"
    assert str(found.choose("b.test", 80, scheme="http")) == "http://q:2"
    assert found.choose("a.test", 443) is None


def test_without_proxies_nothing_is_kept() -> None:
    assert proxies.settings({"NO_PROXY": "a.test", "HTTPS_PROXY": ""}) == {}

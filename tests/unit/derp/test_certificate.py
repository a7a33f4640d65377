"""Names and pins of relays' certificates."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.unit.derp import certificates
from tests.unit.derp.certificates import TODAY
from tsns.derp.certificate import covers, fault_of_name, fault_of_pin

RELAY = certificates.make("derp.example.com", "*.many.example.com", "192.0.2.1", "2001:db8::1", start=TODAY)


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("derp.example.com", True),
        ("DERP.Example.Com.", True),
        ("example.com", False),
        ("one.many.example.com", True),
        ("many.example.com", False),
        ("a.b.many.example.com", False),
        (".many.example.com", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("2001:DB8:0::1", True),
        ("", False),
    ],
)
def test_names(name: str, covered: bool) -> None:
    assert covers(RELAY, name) is covered
    assert (fault_of_name(certificates.der(RELAY), name) is None) is covered


def test_a_certificate_without_names_is_for_nobody() -> None:
    assert not covers(certificates.make(), "test")


def test_a_pin() -> None:
    data, pin = certificates.der(RELAY), certificates.pin(RELAY)
    assert fault_of_pin(data, pin, "derp.example.com", TODAY) is None
    assert fault_of_pin(data, pin.replace("sha256-raw:", "sha256-raw:".lower()), "192.0.2.1", TODAY) is None


def test_pins_that_do_not_hold() -> None:
    data, pin, name = certificates.der(RELAY), certificates.pin(RELAY), "derp.example.com"
    other = certificates.make(name, start=TODAY, days=9)
    assert "DERP map" in (fault_of_pin(data, certificates.pin(other), name, TODAY) or "")
    assert "DERP map" in (fault_of_pin(data, pin[:-2], name, TODAY) or "")
    assert "not for" in (fault_of_pin(data, pin, "elsewhere.example.com", TODAY) or "")
    assert "out of date" in (fault_of_pin(data, pin, name, TODAY - timedelta(seconds=1)) or "")
    assert fault_of_pin(data, pin, name, TODAY + timedelta(days=10)) is None
    assert "out of date" in (fault_of_pin(data, pin, name, TODAY + timedelta(days=10, seconds=1)) or "")


def test_no_certificate_is_a_fault() -> None:
    assert fault_of_name(b"", "derp.example.com") == "the certificate cannot be read"
    assert fault_of_pin(b"", "sha256-raw:", "derp.example.com", TODAY) is not None

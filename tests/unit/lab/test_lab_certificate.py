"""The lab's certificates, as a relay's client judges them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

from tsns.derp.certificate import fault_of_pin
from tsns.lab import certificate

NOW = datetime.now(UTC)


def test_a_certificate_is_good_for_its_names_and_dates_and_for_nothing_else() -> None:
    made = certificate.make(["derp1.lab.test", "127.0.0.1"])
    der = ssl.PEM_cert_to_DER_cert(made.certificate.decode())
    for name in ("derp1.lab.test", "127.0.0.1"):
        assert fault_of_pin(der, made.cert_name, name, NOW) is None
    assert fault_of_pin(der, made.cert_name, "derp2.lab.test", NOW) is not None
    assert fault_of_pin(der, certificate.make(["derp1.lab.test"]).cert_name, "derp1.lab.test", NOW) is not None
    assert fault_of_pin(der, made.cert_name, "127.0.0.1", NOW + timedelta(days=60)) is not None


def test_an_outdated_certificate_can_be_had() -> None:
    made = certificate.make(["a"], since=NOW - timedelta(days=2), valid=timedelta(days=1))
    der = ssl.PEM_cert_to_DER_cert(made.certificate.decode())
    assert "out of date" in (fault_of_pin(der, made.cert_name, "a", NOW) or "")


def test_the_private_key_is_not_shown() -> None:
    made = certificate.make(["a"])
    assert "PRIVATE" not in repr(made)
    assert made.server_context().cert_store_stats()["x509"] == 0

"""Tailscale's own DERP and STUN server, with a certificate of a test authority."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import re
import ssl
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.rig.internet import Daemon, Host, address_and_port, wait_for
from tests.interop.rig.peers import peer

REGION: Final = 900
DERP_PORT: Final = 443
STUN_PORT: Final = 3478
METRICS_TIMEOUT_S: Final = 5.0
CERTIFICATE_LIFE: Final = dt.timedelta(days=2)


class Authority:
    """A certificate authority for one test run; programs trust it through SSL_CERT_FILE."""

    def __init__(self, directory: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("tsns test authority")
        certificate = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file = directory / "authority.pem"
        self.file.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))

    def issue(self, host_name: str, directory: Path) -> None:
        """Writes HOST_NAME.crt and HOST_NAME.key, as derper looks for them. The name may be an address."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name(host_name), key.public_key()).add_extension(
            x509.SubjectAlternativeName([_subject(host_name)]), critical=False
        )
        (directory / f"{host_name}.crt").write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        key_file = directory / f"{host_name}.key"
        key_file.touch(mode=0o600)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - CERTIFICATE_LIFE / 2,
            not_valid_after=now + CERTIFICATE_LIFE / 2,
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _subject(host_name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host_name))
    except ValueError:
        return x509.DNSName(host_name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class Derper:
    """One relay, which is a DERP region by itself; it runs from `start` to `stop`."""

    def __init__(self, host: Host, authority: Authority, region: int = REGION) -> None:
        self.host = host
        self.region = region
        self.region_code = f"r{region}"
        self.name = f"derp{region}.test"
        self._daemon: Daemon | None = None
        self._trusted = authority.file
        authority.issue(self.name, host.directory)

    def start(self) -> None:
        """Returns when the relay listens."""
        directory, name = self.host.directory, self.name
        self._daemon = self.host.popen(
            peer("derper"),
            f"-a={address_and_port(self.host.address, DERP_PORT)}",
            "-http-port=-1",
            "-certmode=manual",
            f"-certdir={directory}",
            f"-hostname={name}",
            f"-stun-port={STUN_PORT}",
            f"-c={directory}/{name}.json",
            log=name,
        )
        wait_for(self._listens, f"{name} listens")

    def stop(self) -> None:
        """Ends the relay; `start` brings it back with the same key and certificate."""
        if self._daemon:
            self._daemon.stop()
            self._daemon = None

    @property
    def pid(self) -> int:
        """The relay's process."""
        assert self._daemon is not None
        return self._daemon.process.pid

    def count(self, metric: str) -> int:
        """One of the relay's own counters, over all its labels. It tells them to whoever comes from the loopback."""
        context = ssl.create_default_context(cafile=self._trusted)
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(self.host.tcp_socket())
            sock.settimeout(METRICS_TIMEOUT_S)
            sock.bind(("127.0.0.1" if self.host.version == 4 else "::1", 0))
            sock.connect((self.host.address, DERP_PORT))
            stream = stack.enter_context(context.wrap_socket(sock, server_hostname=self.name))
            stream.sendall(f"GET /debug/varz HTTP/1.0\r\nHost: {self.name}\r\n\r\n".encode())
            text = stack.enter_context(stream.makefile()).read()
        found = re.findall(rf"^{metric}(?:{{[^}}]*}})? (\d+)$", text, re.MULTILINE)
        assert found, f"{self.name} does not count {metric}:\n{text[:500]}"
        return sum(map(int, found))

    def _listens(self) -> bool:
        listening = self.host.run("ss", "-Hltn", f"sport = {DERP_PORT}").stdout
        assert self._daemon is not None
        assert self._daemon.process.poll() is None, self._daemon.said()
        return bool(listening.strip())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def derp_map(*relays: Derper) -> dict[str, Any]:
    """The DERP map of these relays, spelled as tailcfg.DERPMap is in JSON."""
    return {
        "Regions": {
            str(relay.region): {
                "RegionID": relay.region,
                "RegionCode": relay.region_code,
                "RegionName": f"Region {relay.region}",
                "Nodes": [
                    {
                        "Name": f"{relay.region}a",
                        "RegionID": relay.region,
                        "HostName": relay.name,
                        "IPv4": relay.host.address if relay.host.version == 4 else "none",
                        "IPv6": relay.host.address if relay.host.version == 6 else "none",
                        "DERPPort": DERP_PORT,
                        "STUNPort": STUN_PORT,
                    }
                ],
            }
            for relay in relays
        }
    }


def write_derp_map(path: Path, *relays: Derper) -> Path:
    """The DERP map as a JSON file."""
    path.write_text(json.dumps(derp_map(*relays)))
    return path

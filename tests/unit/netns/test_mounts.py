"""What a command sees instead of the host's nsswitch.conf."""

from __future__ import annotations

from tsns.netns.mounts import nsswitch

HOST = """passwd: files systemd
hosts:   files mdns4_minimal [NOTFOUND=return] resolve [!UNAVAIL=return] dns
# hosts: in a comment
networks: files
"""


def test_host_names_come_from_files_and_dns_only() -> None:
    assert nsswitch(HOST).splitlines() == [
        "passwd: files systemd",
        "# hosts: in a comment",
        "networks: files",
        "hosts: files dns",
    ]


def test_a_host_without_the_file_gets_one_line() -> None:
    assert nsswitch("") == "hosts: files dns\n"

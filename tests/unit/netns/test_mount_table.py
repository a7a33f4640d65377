"""What is mounted where, by the kernel's table."""

from __future__ import annotations

from tsns.netns.mount_table import Mount, Origin, parse

TABLE = r"""22 28 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
312 22 0:25 /tsns/web\040site.resolv /etc/resolv.conf ro,relatime - tmpfs tmpfs rw,size=1k
313 312 0:25 /tsns/gone.resolv//deleted /etc/resolv.conf ro - tmpfs tmpfs rw
cut off
"""


def test_a_table() -> None:
    assert list(parse(TABLE)) == [
        Mount(22, Origin("0:20", "/"), "/proc"),
        Mount(312, Origin("0:25", "/tsns/web site.resolv"), "/etc/resolv.conf"),
        Mount(313, Origin("0:25", "/tsns/gone.resolv"), "/etc/resolv.conf"),
    ]

"""What a node leaves in the file system, and its removal (ring 1).

A keeper removes its own at the end. What a killed one left is recognised by its lock, which nobody holds, and removed by the next server,
unless a command still runs inside: that namespace waits for a keeper to adopt it. What it did in the namespaces of containers stays as well,
and with it the record that it can be undone by, until they end or are detached: to remove it would open them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from tsns.netns import anchor
from tsns.node import attachment_records
from tsns.node.places import NodePlaces, Places

LOCK_MODE: Final = 0o600


def lock(path: Path) -> int | None:
    """A node's lock as a descriptor, which a kill frees; None while another has it. A file unlinked meanwhile does not count."""
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, LOCK_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        os.close(fd)


def remove(node: NodePlaces) -> None:
    """Remove all that is not to last, the lock at the very end; the caller holds it."""
    for path in (node.control, node.api, node.resolv, node.nsswitch):
        path.unlink(missing_ok=True)
    anchor.forget(node.namespace)
    shutil.rmtree(node.passing, ignore_errors=True)
    node.lock.unlink(missing_ok=True)


def sweep(where: Places) -> bool:
    """Remove what dead keepers left; gives whether something had to stay because a command still runs in it."""
    stayed = False
    for path in where.run.glob("*.lock"):
        held = lock(path)
        if held is None:
            continue
        node = where.node(path.stem)
        try:
            if anchor.is_inhabited(node.namespace):
                stayed = True
            else:
                remove(node)
            if not any(map(attachment_records.lives, attachment_records.load(node.attached))):
                node.attached.unlink(missing_ok=True)
        finally:
            os.close(held)
    return stayed

"""How an engine's process gives up all that is not its work (ring 1)."""

from __future__ import annotations

import logging
import os

from tsns.netns import landlock, linux, seccomp, user_namespace

log = logging.getLogger(__name__)


def confine(uid: int, parent: int) -> None:
    """No capability and no way back to one, few files, few system calls, no core file; dead with `parent`. OSError or UserError.

    Root's engine becomes `uid`. Somebody else's keeps its uid, so it goes into a user namespace of its own: from the one that its keeper
    is in, it could enter the node's, and trace all programs of its user. There it calls itself 0, and so its user, where it asks who is
    at the other end of a socket; anybody else is nobody.
    """
    if os.geteuid() == 0:
        linux.drop_all_rights(uid, parent)
    else:
        user_namespace.make(as_root=True)
        linux.keep_only_capabilities(frozenset())
        linux.drop_capabilities(parent)
    if not landlock.confine():
        log.info("this kernel has no Landlock: the engine may read what its uid may read")
    if not seccomp.confine():
        log.warning("there is no seccomp filter for this kind of machine: the engine may try any system call")

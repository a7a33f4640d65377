"""Why a machine gives an ordinary user no namespaces, as the person is told."""

from __future__ import annotations

import errno

import pytest

from tsns.netns.user_namespace import refusal

DENIED = OSError(errno.EPERM, "unshare: Operation not permitted")


@pytest.mark.parametrize(
    ("settings", "error", "told", "remedy"),
    [
        (
            {"user/max_user_namespaces": "0"},
            OSError(errno.ENOSPC, "unshare: No space left on device"),
            "user.max_user_namespaces is 0",
            "sysctl user.max_user_namespaces=",
        ),
        (
            {"kernel/unprivileged_userns_clone": "0", "user/max_user_namespaces": "1000"},
            DENIED,
            "kernel.unprivileged_userns_clone is 0",
            "sysctl kernel.unprivileged_userns_clone=1",
        ),
        (
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            OSError(errno.EACCES, "unshare: Permission denied"),
            "AppArmor",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"kernel/apparmor_restrict_unprivileged_userns": "0"}, DENIED, "not permitted", "container"),
        ({}, DENIED, "not permitted", "container"),
        ({}, OSError(errno.EUSERS, "unshare"), "too many user namespaces", "sysctl user.max_user_namespaces="),
        ({}, OSError(errno.EINVAL, "unshare"), "no user namespaces", "sudo"),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, OSError(errno.EIO, "something"), "something", "sudo"),
    ],
)
def test_an_ordinary_user(settings: dict[str, str], error: OSError, told: str, remedy: str) -> None:
    refused = refusal(error, is_root=False, setting=lambda name: settings.get(name, ""))
    assert told in refused.message
    assert remedy in refused.hint


def test_root() -> None:
    refused = refusal(DENIED, is_root=True, setting=lambda _: "0")
    assert "not permitted" in refused.message
    assert "CAP_NET_ADMIN" in refused.hint

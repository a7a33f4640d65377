"""What all tests share: what this machine must have for which mark, strict mode, and the check that nothing is left behind.

TSNS_TEST_STRICT=1 (CI sets it) makes a skipped test a failure: a machine that cannot run a test has not passed it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Final

import pytest

from tests.docker import daemon, podman
from tests.interop.rig.peers import missing_peers
from tests.machine import PrivateDirectories, new_private_directories, ours, patiently

STRICT: Final = os.environ.get("TSNS_TEST_STRICT", "") not in ("", "0")


def _reason_against_netns() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"needs /dev/net/tun: {error.strerror}"
    return None


def _reason_against_interop() -> str | None:
    missing = missing_peers()
    return _reason_against_netns() or (f"needs {', '.join(missing)}: run scripts/test" if missing else None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what cannot run on this machine, and says why."""
    reasons = {
        "netns": _reason_against_netns(),
        "interop": _reason_against_interop(),
        "docker": _reason_against_netns() or daemon.missing() or podman.missing(),
    }
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
    # What needs the machine runs last, so that what is wrong in a part is told by that part's own tests first.
    items.sort(key=lambda item: [bool(item.get_closest_marker(mark)) for mark in ("docker", "interop", "netns")])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skipped test into a failed one in strict mode; an expected failure stays what it is."""
    report = yield
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in strict mode that is a failure: {call.excinfo and call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself."""
    report = yield
    if STRICT and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself, and in strict mode that is a failure"
    return report


@pytest.fixture
def private_directories() -> Iterator[PrivateDirectories]:
    """Fresh run and state directories. A process that is still at work in them when the test ends fails the test."""
    with new_private_directories() as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """The last thing to be torn down: after all tests the machine has no more of ours than before."""
    before = ours()
    yield
    left = patiently(lambda: sorted(ours() - before))
    assert not left, "left behind by the tests: " + ", ".join(left)

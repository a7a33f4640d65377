"""Keeps all attachments as they are wished for, through restarts of containers, engines, nodes and itself (ring 2).

    events of engines ----+
    the wishes' directory +--> look --> Reconciliation --> jobs, each in a child --> succeeded, failed
    keepers that end -----+
    every half minute ----+

One thread, which forks; it waits for nobody for long. Whatever ends it, the next one finds all that it needs in the wishes and in what is.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tsns import state
from tsns.attach import children, container, engines, jobs, labels, wishes
from tsns.attach.children import Child
from tsns.attach.engines import Container, Event
from tsns.attach.reconciliation import (
    CONTAINERS,
    Action,
    Attach,
    Forget,
    Keep,
    Reconciliation,
    View,
    Warn,
    concerns,
    moment,
)
from tsns.attach.sources import Source
from tsns.attach.wishes import Wish
from tsns.error import UserError
from tsns.netns.inotify import Inotify
from tsns.node import attaching, client, messages
from tsns.node.attaching import Attachment
from tsns.node.places import Places
from tsns.node.watch import Watch

LOOK_EVERY_S: Final = 30.0
NODE_ANSWER_S: Final = 2.0  # one that is busy for longer is looked at the next time
JOB_S: Final = 120.0  # it may have to start a node, which may take a minute
MAX_JOBS: Final = 16
KEEPER_ENDED_S: Final = 0.1  # its engine is just ending, too
BUSY_S: Final = 0.5
REFRESHING: Final = frozenset({"connect", "disconnect"})  # events after which the container's own addresses are others

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    child: Child
    action: Attach | Forget
    began: float  # of the event that it comes from, in Unix time
    outcome: bytes = b""
    again: bool = False  # something has happened meanwhile


class Follower:
    """Of one user and one run directory. `labels_on`: what containers' labels ask for is wished for, too."""

    def __init__(
        self,
        where: Places,
        environ: Mapping[str, str],
        *,
        labels_on: bool = False,
        after_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._where = where
        self._environ = environ
        self._labels_on = labels_on
        self._after_look = after_look
        self._labels = labels.Labels()
        self._machine = Reconciliation()
        self._watch = Watch()
        self._sources: dict[str, Source] = {}  # by address
        self._keepers: dict[str, int] = {}  # pidfds, by node
        self._jobs: dict[str, _Job] = {}
        self._inotify: Inotify | None = None
        self._fresh: set[str] = set()  # wishes that are new, or others, and have not been seen to
        self._done = False

    def run(self) -> None:
        """Until there is nothing to follow; for ever with labels."""
        self._done = False
        self._watch_wishes()
        self._look()
        while not self._done:
            self._watch.turn()

    def reader(self, fd: int, handler: Callable[[], None]) -> None:
        """Also call this handler when that descriptor can be read."""
        self._watch.reader(fd, handler)

    def plan(self) -> tuple[list[Action], list[Wish], list[str]]:
        """What would be done now; the wishes that labels make, which are not kept; and what is wrong with labels."""
        self._connect()
        made, complaints = self._read_labels(None)
        wanted = sorted(
            {wish.key: wish for wish in (*wishes.load(self._where), *made)}.values(), key=lambda it: it.name
        )
        view = self._view(wanted, members=True)
        fresh = {wish.key for wish in made}
        return self._machine.reconcile(wanted, view, time.monotonic(), fresh=fresh), made, complaints

    def close(self) -> None:
        """End all children, those at work as well: what they have done is found again."""
        for job in self._jobs.values():
            job.child.close()
        for source in self._sources.values():
            source.close()
        for fd in self._keepers.values():
            os.close(fd)
        if self._inotify is not None:
            self._inotify.close()

    # --- what is

    def _watch_wishes(self) -> None:
        directory = wishes.directory(self._where)
        try:
            state.make_private_directory(self._where.state)
            state.make_private_directory(directory)
            self._inotify = Inotify()
            self._inotify.add(str(directory))
        except OSError as error:
            log.warning("%s cannot be watched, and is looked at twice a minute: %s", directory, error)
            return
        self._watch.reader(self._inotify.fd, self._on_wishes)

    def _on_wishes(self) -> None:
        assert self._inotify is not None  # whose event this is
        if any(name.endswith(".json") for name in self._inotify.read()):
            self._watch.at("look", time.monotonic(), self._look)

    def _look(self) -> None:
        """At everything."""
        self._watch.at("look", time.monotonic() + LOOK_EVERY_S, self._look)
        wanted = wishes.load(self._where)
        if self._labels_on or any(wish.kind in CONTAINERS for wish in wanted):
            self._connect()
        if self._labels_on:
            self._keep(*self._read_labels(None))
            wanted = wishes.load(self._where)
        self._machine.keep_only({wish.key for wish in wanted})
        self._fresh &= {wish.key for wish in wanted}
        self._reconcile(wanted, everything=True)
        self._after_look()
        if not wanted and not self._labels_on and not self._jobs:
            self._done = True

    def _connect(self) -> None:
        """To all engines that could be there."""
        for kind, url in engines.addresses(self._environ):
            source = self._sources.setdefault(url, Source(kind, url))
            if source.engine is None and not self._watch.has_moment(url):
                self._try(source)

    def _try(self, source: Source) -> None:
        pause_s = source.connect(time.monotonic(), time.time())
        if pause_s is not None:
            self._watch.at(source.url, time.monotonic() + pause_s, lambda: self._reconnect(source))
        else:
            assert source.stream is not None  # connected
            self._watch.reader(source.stream.fd, lambda: self._on_events(source))

    def _reconnect(self, source: Source) -> None:
        self._try(source)
        if source.engine is not None:
            log.info("%s at %s answers", source.kind, source.url)
            self._look()

    def _lost(self, source: Source) -> None:
        if source.stream is not None:
            self._watch.forget(source.stream.fd)
            pause_s = source.ended(time.monotonic())
            self._watch.at(source.url, time.monotonic() + pause_s, lambda: self._reconnect(source))

    def _on_events(self, source: Source) -> None:
        events = source.events()
        if events is None:
            self._lost(source)
            return
        wanted = wishes.load(self._where)
        for event in events:
            self._on_event(event, source, wanted)

    def _on_event(self, event: Event, source: Source, wanted: Sequence[Wish]) -> None:
        if self._labels_on and event.action in {"start", "rename"}:
            self._keep(*self._read_labels((source, event.id)))
            wanted = wishes.load(self._where)
        concerned = [wish for wish in wanted if concerns(wish, event)]
        for wish in concerned:
            self._machine.hurry(wish.key)
        refresh = {wish.key for wish in concerned} if event.action in REFRESHING else set()
        if concerned:
            self._reconcile(concerned, refresh=refresh, began=event.at, members=event.action == "start")

    def _view(self, wanted: Sequence[Wish], *, members: bool) -> View:
        """What is, for these wishes. An engine that does not answer is one that has ended."""
        found: dict[str, Container] = {}
        answering = set(CONTAINERS)
        of_containers = [wish for wish in wanted if wish.kind in CONTAINERS]
        kinds = {wish.kind for wish in of_containers}
        for kind in kinds:
            sources = [source for source in self._sources.values() if source.kind == kind]
            try:
                for source in sources:
                    found |= _containers(source, [wish for wish in of_containers if wish.kind == kind], members=members)
            except UserError:
                answering.discard(kind)
            if not sources:
                answering.discard(kind)
        attached: dict[str, Attachment] = {}
        silent = set()
        running = client.names(self._where)
        for node in {wish.node for wish in wanted} & set(running):
            try:
                attached |= {
                    each.key: each for each in attaching.attachments(node, self._where, NODE_ANSWER_S)
                }  # a key is one node's
                self._watch_keeper(node)
            except UserError:
                silent.add(node)
        gone = {wish.key for wish in wanted if wish.kind not in CONTAINERS and not _is_there(wish)}
        return View(list(found.values()), answering, attached, silent, gone)

    def _watch_keeper(self, node: str) -> None:
        """A keeper that is killed takes its attachments with it, and nobody else says so."""
        if node in self._keepers:
            return
        try:
            with client.connect(node, self._where) as connection:
                pidfd = os.pidfd_open(messages.peer_pid(connection))
        except (OSError, UserError):
            return
        self._keepers[node] = pidfd
        self._watch.reader(pidfd, lambda: self._on_keeper_end(node))

    def _on_keeper_end(self, node: str) -> None:
        pidfd = self._keepers.pop(node)
        self._watch.forget(pidfd)
        os.close(pidfd)
        self._watch.at("look", time.monotonic() + KEEPER_ENDED_S, self._look)

    def _read_labels(self, one: tuple[Source, str] | None) -> tuple[list[Wish], list[str]]:
        """What labels wish for that is new, or other than it was, and what is wrong: of one container, or of all."""
        try:
            found = _labelled(self._sources.values()) if one is None else [one[0].find(one[1])]
        except UserError as error:
            return [], [error.message]
        made: list[Wish] = []
        complaints: list[str] = []
        running = client.names(self._where)
        for each in found:
            if each is not None:
                wish, news = self._labels.wish(each, [*wishes.load(self._where), *made], running)
                made += [wish] if wish is not None else []
                complaints += news
        return made, complaints

    def _keep(self, made: Sequence[Wish], complaints: Sequence[str]) -> None:
        for complaint in complaints:
            log.warning("%s", complaint)
        for wish in made:
            wishes.save(self._where, wish)
            self._fresh.add(wish.key)

    # --- what is done about it

    def _reconcile(
        self,
        wanted: Sequence[Wish],
        *,
        refresh: Collection[str] = (),
        began: float = 0.0,
        everything: bool = False,
        members: bool = False,
    ) -> None:
        free = [wish for wish in wanted if wish.key not in self._jobs]
        for wish in wanted:
            if wish.key in self._jobs and not everything:
                self._jobs[wish.key].again = True
        if free:
            view = self._view(free, members=everything or members)
            for action in self._machine.reconcile(free, view, time.monotonic(), refresh, self._fresh):
                self._act(action, began or time.time())
        self._set_timer()

    def _set_timer(self) -> None:
        deadline = self._machine.deadline()
        if deadline is None:
            self._watch.cancel("due")
        else:
            self._watch.at("due", max(deadline, time.monotonic() + BUSY_S), self._look)

    def _act(self, action: Action, began: float) -> None:
        if isinstance(action, Warn):
            log.warning("%s", action.text)
        elif isinstance(action, Keep):
            with wishes.held(self._where, action.wish.key, wait=False) as ours:
                if ours and wishes.find(self._where, action.wish.key) is not None:
                    wishes.save(self._where, action.wish)
        elif len(self._jobs) >= MAX_JOBS:
            self._machine.postponed(action.wish.key, time.monotonic())
        else:
            self._begin(action, began)

    def _begin(self, action: Attach | Forget, began: float) -> None:
        key = action.wish.key
        fresh = key in self._fresh
        self._fresh.discard(key)
        log.info("%s: %s", action.wish.name, action.why)

        def work(fd: int) -> None:
            outcome = jobs.do(action, self._where, self._environ, fresh=fresh)
            children.say(fd, jobs.to_line(outcome))

        job = self._jobs[key] = _Job(Child(work), action, max(began, _started(action)))
        self._watch.reader(job.child.fd, lambda: self._on_job(key))
        self._watch.at(f"job {key}", time.monotonic() + JOB_S, lambda: self._end_job(key))

    def _on_job(self, key: str) -> None:
        job = self._jobs[key]
        lines = job.child.lines()
        if lines is None:
            self._end_job(key)
        elif lines:
            job.outcome = lines[-1]

    def _end_job(self, key: str) -> None:
        job = self._jobs.pop(key)
        self._watch.forget(job.child.fd)
        self._watch.cancel(f"job {key}")
        job.child.close()
        now, name = time.monotonic(), job.action.wish.name
        outcome = (
            jobs.from_line(job.outcome)
            if job.outcome
            else {"error": f"nothing came of it within {JOB_S:.0f} s", "hint": "see `tsns logs`"}
        )
        if "busy" in outcome:
            self._machine.postponed(key, now)
        elif "error" in outcome:
            if self._machine.failed(key, outcome["error"], now):
                log.warning("%s: %s (%s)", name, outcome["error"], outcome["hint"])
        else:
            self._machine.succeeded(key)
            done = "attached" if isinstance(job.action, Attach) else "detached"
            log.info("%s is %s, after %.0f ms", name, done, 1000 * (time.time() - job.began))
        if job.again or not self._jobs:
            self._watch.at("look", now, self._look)
        self._set_timer()


def _started(action: Attach | Forget) -> float:
    """When its container began, in Unix time: an engine answers late about one that is just beginning."""
    started = moment(action.container.started_at) if isinstance(action, Attach) and action.container else None
    return started.timestamp() if started is not None else 0.0


def _containers(source: Source, wanted: Iterable[Wish], *, members: bool) -> dict[str, Container]:
    """Those that are wished for, and with `members` those that use the networks of others. UserError where the engine does not answer."""
    found: dict[str, Container] = {}
    for wish in wanted:
        for name in (wish.id, wish.name) if wish.by == "name" else (wish.id,):
            each = source.find(name)
            if each is not None and name in {each.id, each.name}:  # an engine also goes by the beginning of an id
                found[each.id] = each
    if members and source.engine is not None:
        found |= {each.id: each for each in source.engine.containers(lambda _, mode: mode.startswith("container:"))}
    return found


def _labelled(sources: Iterable[Source]) -> list[Container | None]:
    found: list[Container | None] = []
    for source in sources:
        if source.engine is not None:
            found += source.engine.containers(lambda named, _: any(map(labels.is_ours, named)))
    return found


def _is_there(wish: Wish) -> bool:
    """A process, or a path."""
    return container.is_same_process(wish) if wish.kind == "pid" else Path(wish.id).exists()

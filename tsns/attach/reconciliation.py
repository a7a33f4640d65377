"""What has to be done so that all wishes are true (ring 2; no input or output, and the time is an argument).

    wishes, containers, attachments as they are --reconcile--> Attach, Forget, Keep, Warn
    what became of it: succeeded, failed (then once more after a pause), postponed (the same, without a word)

It may be asked at any time and any number of times: what is as it should be needs nothing. What ends by itself is not looked after here: a
keeper lets go of a namespace whose process has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Final, NamedTuple

from tsns.attach.engines import Container, Event
from tsns.attach.wishes import Wish
from tsns.node.attaching import Attachment

FIRST_PAUSE_S: Final = 0.5  # after a failure, and twice as long after each further one
MAX_PAUSE_S: Final = 60.0
LABELS_GRACE_S: Final = (
    30.0  # so long a container may be away while it is made anew, before what its labels asked for goes
)
MAX_WARNED: Final = 1000
CONTAINERS: Final = ("docker", "podman")


class View(NamedTuple):
    """What is, at one moment, as far as it concerns the wishes in question."""

    containers: Sequence[Container] = ()
    engines: Collection[str] = (
        CONTAINERS  # kinds whose engines have answered: only then is what is not among the containers gone
    )
    attached: Mapping[str, Attachment] = {}  # by key
    silent: Collection[str] = ()  # nodes that run, but do not answer
    gone: Collection[str] = ()  # keys of processes that have ended, and of namespaces whose path leads nowhere


@dataclass(frozen=True, slots=True)
class Attach:
    """Attach this, and remember it so."""

    wish: Wish
    container: Container | None  # None: a process or a path
    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Detach this, and want it no more."""

    wish: Wish
    why: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Remember it so: it has another name."""

    wish: Wish


@dataclass(frozen=True, slots=True)
class Warn:
    """Tell the person."""

    text: str


Action = Attach | Forget | Keep | Warn


@dataclass(slots=True)
class _Trouble:
    """One wish that is being seen to, or could not be fulfilled."""

    failures: int = 0
    until: float = inf  # nothing is tried before; infinity: it is being tried
    said: str = ""


@dataclass(slots=True)
class Reconciliation:
    """What is known of the wishes from one look to the next."""

    _troubles: dict[str, _Trouble] = field(default_factory=dict)
    _away: dict[str, float] = field(default_factory=dict)  # since when the container of a label's wish is missed
    _warned: dict[str, str] = field(default_factory=dict)  # of which start of its owner a member has been told

    def reconcile(
        self, wishes: Sequence[Wish], view: View, now: float, refresh: Collection[str] = (), fresh: Collection[str] = ()
    ) -> list[Action]:
        """What to do about these wishes. Those of `refresh` are attached again even where they are, those of `fresh` as well, and at once."""
        actions: list[Action] = []
        for wish in wishes:
            if wish.key in fresh:
                self._troubles.pop(wish.key, None)
            actions += self._judge(wish, view, now, again=wish.key in refresh or wish.key in fresh)
        return actions

    def _judge(self, wish: Wish, view: View, now: float, *, again: bool) -> list[Action]:
        if wish.node in view.silent:
            return self._rest(wish.key)
        container = None
        if wish.kind in CONTAINERS:
            container = container_of(wish, view.containers)
            if container is None:
                return self._missed(wish, view, now)
            self._away.pop(wish.key, None)
            kept: list[Action] = [Keep(named)] if (named := _renamed(wish, container)) != wish else []
            if not container.running:
                self._troubles.pop(wish.key, None)
                return kept
            kept += self._dead_members(container, view)
            wish = _followed(named, container)
        elif wish.key in view.gone:
            return self._forget(wish, f"the process {wish.name} has ended", now) if wish.kind == "pid" else []
        else:
            kept = []
        why = _what_is_wrong(container, view.attached.get(wish.key)) or ("it has changed" if again else "")
        if not why:
            return [*kept, *self._rest(wish.key)]
        return [*kept, Attach(wish, container, why)] if self._take(wish.key, now) else kept

    def _missed(self, wish: Wish, view: View, now: float) -> list[Action]:
        """There is no such container, if it is known at all."""
        if wish.kind not in view.engines or (wish.by == "name" and not wish.labels):
            return self._rest(wish.key)
        if wish.labels:
            if now < self._away.setdefault(wish.key, now) + LABELS_GRACE_S:
                return []
            del self._away[wish.key]
        return self._forget(wish, f"the container {wish.name} was removed", now)

    def _rest(self, key: str) -> list[Action]:
        """Nothing is to be done, until something happens."""
        self._away.pop(key, None)
        trouble = self._troubles.get(key)
        if trouble is not None and trouble.until != inf:
            del self._troubles[key]
        return []

    def _forget(self, wish: Wish, why: str, now: float) -> list[Action]:
        return [Forget(wish, why)] if self._take(wish.key, now) else []

    def _take(self, key: str, now: float) -> bool:
        """Whether this is to be tried now; from then on it is, until its outcome is told."""
        trouble = self._troubles.setdefault(key, _Trouble(until=now))
        if now < trouble.until:
            return False
        trouble.until = inf
        return True

    def _dead_members(self, owner: Container, view: View) -> list[Action]:
        """Containers that began in a network of this one's that is no more."""
        found: list[Action] = []
        for member in view.containers:
            kind, _, other = member.network_mode.partition(":")
            if kind != "container" or other not in {owner.id, owner.name} or not member.running:
                continue
            began, owner_began = (moment(each.started_at) for each in (member, owner))
            if began is None or owner_began is None or began >= owner_began:
                continue
            if self._warned.get(member.id) != owner.started_at:
                if len(self._warned) >= MAX_WARNED:
                    self._warned.clear()
                self._warned[member.id] = owner.started_at
                found.append(
                    Warn(
                        f"{member.name} uses the network that {owner.name} had before its restart, which leads nowhere:"
                        f" restart {member.name}"
                    )
                )
        return found

    def succeeded(self, key: str) -> None:
        """It has been done."""
        self._troubles.pop(key, None)
        self._away.pop(key, None)

    def failed(self, key: str, text: str, now: float) -> bool:
        """It could not be done, and is tried again later. Tells whether that is news."""
        trouble = self._troubles.setdefault(key, _Trouble())
        pause_s = min(FIRST_PAUSE_S * 2 ** min(trouble.failures, 16), MAX_PAUSE_S)
        trouble.failures += 1
        trouble.until = now + pause_s
        news = bool(text) and text != trouble.said
        trouble.said = text or trouble.said
        return news

    def postponed(self, key: str, now: float) -> None:
        """Somebody else is at it: look again later."""
        self.failed(key, "", now)

    def hurry(self, key: str) -> None:
        """Something has become of it: what failed before may work now."""
        trouble = self._troubles.get(key)
        if trouble is not None and trouble.until != inf:
            trouble.until = -inf

    def keep_only(self, keys: Collection[str]) -> None:
        """All others are wanted no more."""
        for known in (self._troubles, self._away):
            for key in [key for key in known if key not in keys]:
                del known[key]

    def deadline(self) -> float | None:
        """When to reconcile again; None where nothing waits."""
        waiting = [trouble.until for trouble in self._troubles.values() if trouble.until != inf]
        waiting += [since + LABELS_GRACE_S for since in self._away.values()]
        return min(waiting, default=None)


def container_of(wish: Wish, containers: Collection[Container]) -> Container | None:
    """Which of them is meant: the one of the name, where that is followed, else the one of the id, whatever it is called now."""
    of_kind = [each for each in containers if each.kind == wish.kind]
    named = [each for each in of_kind if each.name == wish.name] if wish.by == "name" else []
    return next(iter([*named, *(each for each in of_kind if each.id == wish.id)]), None)


def concerns(wish: Wish, event: Event) -> bool:
    """Whether something has become of what is wished for."""
    if wish.kind not in CONTAINERS:
        return False
    return event.id == wish.id or (wish.by == "name" and event.name == wish.name)


def _renamed(wish: Wish, container: Container) -> Wish:
    """A name that is followed stays: another container may come to have it."""
    return wish if wish.by == "name" else wish._replace(name=container.name)


def _followed(wish: Wish, container: Container) -> Wish:
    return wish._replace(id=container.id)


def _what_is_wrong(container: Container | None, attached: Attachment | None) -> str:
    """Why it has to be attached; empty where it is."""
    if attached is None:
        return "it is not attached"
    if container is not None and (attached.pid, attached.id) != (container.pid, container.id):
        return "it has begun anew"
    return ""


def moment(text: str) -> datetime | None:
    """A time as engines write it (RFC 3339); None for what is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None

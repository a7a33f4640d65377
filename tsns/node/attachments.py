"""The keeper's part in other people's namespaces: containers that a person gave this node's tailnet (ring 1).

    client --"attach", descriptors--> TUN, routes, names made there --"give place"--> engine
    client --"detach"-------------->  everything given back         --"take place"--> engine
    the target's process ends ----->  descriptors closed            --"take place"--> engine
    the netmap changes ------------>  addresses, routes and resolv.conf of all of them

Who may attach is a client with our own uid; the engine has no word for it. All that is done is written down before it is done.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tsns.error import UserError
from tsns.netns import attachment, mounts, namespace, port_range, sock_diag
from tsns.node import attachment_records, resolv
from tsns.node.attaching import KEY, KINDS
from tsns.node.attachment_records import Record
from tsns.node.files import write_in_place
from tsns.node.messages import Message
from tsns.node.places import NodePlaces
from tsns.node.stand_in import StandIn
from tsns.node.watch import Watch
from tsns.proto.addresses import Prefix
from tsns.proto.text import one_line
from tsns.wg.sharing import OWN, slices

MAX_ATTACHMENTS: Final = 32
MAX_TEXT: Final = 256  # characters of an id or a name
MAX_PUBLISHED: Final = 64
MAX_OPTIONS: Final = 256
PATH_CHECK_S: Final = 10.0  # a namespace that goes by a path is kept alive by us: is it still there?
PORTS: Final = range(32_768, 61_000)  # the kernel's own choice, which those who share a node divide
OWN_PORTS: Final = range(61_000, 65_536)  # the node's own namespace has others then
RESOLVER: Final = ("127.0.0.11", 53)  # of Docker, in every container of a network of its own
_PUBLISHED: Final = re.compile(r"(tcp|udp)/([0-9]{1,5})")
_OPTIONS: Final = re.compile(r"[A-Za-z0-9:_ -]*")
_PROTOCOLS: Final = {"tcp": 6, "udp": 17}
STAND_IN_AFTER_S: Final = 1.0  # programs wait longer than that for an answer
_CHECK: Final = "attached paths"
_STAND_IN: Final = "stand-in"

log = logging.getLogger(__name__)


class _Attached:
    """One attachment at work. Its descriptors are ours until `close`."""

    def __init__(self, record: Record, place: int, wish: _Wish, fds: Sequence[int]) -> None:
        self.record = record
        self.place = place
        self.wish = wish
        self.network, self.pidfd, self.mount = fds
        self.made: attachment.Made | None = None
        self.stand_in: StandIn | None = None
        self.error = ""
        self.warning = ""

    def close(self) -> None:
        self.engine_is(away=False)
        made = [self.made.tun, self.made.diag, self.made.names, *self.made.dns] if self.made is not None else []
        _close(self.network, self.pidfd, self.mount, *made)

    def engine_is(self, watch: Watch | None = None, *, away: bool) -> None:
        if self.stand_in is not None:
            self.stand_in.close()
        self.stand_in = StandIn(watch, self.made.dns, self.made.names) if away and watch and self.made else None


class _Wish:
    """What a client asks for, checked. ValueError for what makes no sense."""

    def __init__(self, message: Message) -> None:
        self.key, self.kind, self.id, self.name = (str(message[name]) for name in ("key", "kind", "id", "name"))
        if not KEY.fullmatch(self.key) or self.kind not in KINDS:
            raise ValueError("no such target")
        self.id, self.name = one_line(self.id, MAX_TEXT), one_line(self.name, MAX_TEXT)
        self.pid = int(message["pid"])
        self.exclusive = message["exclusive"] is True
        self.docker_names = message["docker_names"] is True and not self.exclusive
        self.search = resolv.checked_search(map(str, message["search"]))
        self.options = str(message["options"])[:MAX_OPTIONS]
        if not _OPTIONS.fullmatch(self.options):
            raise ValueError("no such options")
        published = [_PUBLISHED.fullmatch(str(text)) for text in message["publish"][:MAX_PUBLISHED]]
        self.published = [(_PROTOCOLS[found[1]], int(found[2])) for found in published if found]


class Attachments:
    """Those of one node. `tell_engine` sends a message and descriptors to the engine, `changed` is called when one has come or gone."""

    def __init__(
        self,
        watch: Watch,
        places: NodePlaces,
        tell_engine: Callable[[Message, Sequence[int]], None],
        changed: Callable[[], None],
    ) -> None:
        self._watch = watch
        self._places = places
        self._tell_engine = tell_engine
        self._changed = changed
        self._attached: dict[str, _Attached] = {}
        self._left = {record.key: record for record in attachment_records.load(places.attached)}
        self._own: list[Prefix] = []
        self._led: list[Prefix] = []
        self._exit_node = False
        self._magic_dns = True
        self._namespace = -1
        self._shares: dict[int, range] = {}  # by network, where it is not the kernel's own choice

    def __bool__(self) -> bool:
        return bool(self._attached)

    def made(self, own_namespace: int) -> None:
        """The node's own namespace is there."""
        self._namespace = own_namespace

    # --- clients

    def attach(self, message: Message, fds: Sequence[int]) -> str:
        """Do what a client asks for; gives a warning, or nothing. `fds` are copied: a network namespace, and maybe a pidfd and a mount namespace. UserError or OSError."""
        try:
            wish = _Wish(message)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "this request to attach cannot be understood", "stop the node, then start it with this version of tsns"
            ) from error
        if not 1 <= len(fds) <= 3:
            raise UserError("a request to attach brings descriptors", "use `tsns attach`")
        network, pidfd, mount = [*map(os.dup, fds), -1, -1][:3]
        device, inode = namespace.identity(network)
        present = self._attached.get(wish.key)
        if present is not None and (present.record.device, present.record.inode) == (device, inode):
            if present.wish.docker_names == wish.docker_names or present.wish.exclusive != wish.exclusive:
                _close(network, pidfd, mount)
                self._refresh(present, wish)
                return present.warning
            self._give_back(present)  # it has come to a network with names of its own, or has left the last one
        elif present is not None:
            self._let_go(present)  # it has begun anew
        try:
            self._check(wish, (device, inode))
        except BaseException:
            _close(network, pidfd, mount)
            raise
        return self._attach(wish, (network, pidfd, mount))

    def _attach(self, wish: _Wish, fds: Sequence[int]) -> str:
        network, pidfd, _ = fds
        left = self._left.get(wish.key)
        device, inode = namespace.identity(network)
        again = left is not None and (left.device, left.inode) == (device, inode)
        record = Record(
            key=wish.key,
            kind=wish.kind,
            id=wish.id,
            name=wish.name,
            pid=wish.pid if pidfd >= 0 else 0,
            started=attachment_records.started(wish.pid) if pidfd >= 0 else 0,
            device=device,
            inode=inode,
            before=left.before if left is not None and again else {},
            resolv=str(self._resolv_path(wish.key)),
        )
        each = _Attached(record, self._free_place(), wish, fds)
        try:
            self._left.pop(wish.key, None)
            self._attached[wish.key] = each
            self._write()
            each.made = attachment.make(
                network,
                exclusive=wish.exclusive,
                docker_names=wish.docker_names,
                before=record.before or None,
                own=self._own,
                led=self._led,
                exit_node=self._exit_node,
            )
            each.record = record._replace(before=dict(each.made.before))
            self._write()
            if each.made.names >= 0:
                with socket.socket(fileno=os.dup(each.made.names)) as resolver:
                    resolver.connect(RESOLVER)
            self._cover(each)
        except BaseException:
            self._give_back(each)
            raise
        if pidfd >= 0:
            self._watch.reader(pidfd, lambda: self._on_end(each))
        else:
            self._watch.at(_CHECK, time.monotonic() + PATH_CHECK_S, self._check_paths)
        self._share()
        self._give(each)
        self._changed()
        log.info("attached: %s", wish.name or wish.key)
        return each.warning

    def _check(self, wish: _Wish, target: tuple[int, int]) -> None:
        """UserError where this namespace cannot be attached."""
        if len(self._attached) >= MAX_ATTACHMENTS:
            raise UserError(
                f"this node has {MAX_ATTACHMENTS} attachments, which is all it may have",
                "detach one, or attach to another node",
            )
        forbidden = [namespace.identity(Path("/proc/self/ns/net"))]
        if self._namespace >= 0:
            forbidden.append(namespace.identity(self._namespace))
        if target in forbidden:
            raise UserError("this is the host's own network, or the node's", "run it with `tsns run` instead")
        for each in self._attached.values():
            if target == (each.record.device, each.record.inode):
                raise UserError(
                    f"{wish.name} has the same network as {each.wish.name}, which is attached",
                    f"it is on the tailnet already; `tsns detach {each.wish.name}` takes it away from both",
                )

    def _refresh(self, each: _Attached, wish: _Wish) -> None:
        """The same target again: its own addresses may be others, or its resolv.conf was put back."""
        if wish.exclusive != each.wish.exclusive:
            raise UserError(
                f"{wish.name} is attached in another manner", f"`tsns detach {wish.name}`, then attach it anew"
            )
        each.wish = wish
        each.record = each.record._replace(name=wish.name)
        self._write()
        self._lead(each)
        self._cover(each)

    def detach(self, key: str) -> bool:
        """Give a target back what was there; False where it is not attached. OSError with the reason."""
        each = self._attached.get(key)
        if each is not None:
            self._give_back(each)
            self._share()
            self._changed()
            log.info("detached: %s", each.wish.name or key)
            return True
        left = self._left.pop(key, None)
        if left is None:
            return False
        attachment_records.undo(left)
        self._write()
        return True

    def listed(self) -> list[Message]:
        """What is attached."""
        return [
            {"key": key, "error": each.error or each.warning, "pid": each.record.pid, **_named(each.record)}
            for key, each in self._attached.items()
        ]

    # --- the engine

    def engine_away(self) -> None:
        """Until `tell` there is no engine. Questions wait for the next one, if that is soon."""
        self._watch.at(_STAND_IN, time.monotonic() + STAND_IN_AFTER_S, self._stand_in)

    def _stand_in(self) -> None:
        for each in self._attached.values():
            each.engine_is(self._watch, away=True)

    def tell(self) -> None:
        """An engine that has just begun gets all of them."""
        self._watch.cancel(_STAND_IN)
        if self._attached:
            self._share()
        for each in self._attached.values():
            each.engine_is(away=False)
            self._give(each)

    def listening(self, protocol: int, port: int) -> int | None:
        """In whose namespace somebody listens; None: in none that is attached."""
        for each in self._attached.values():
            if each.made is not None and sock_diag.listens(each.made.diag, protocol, port):
                return each.place
        return None

    def lead(self, own: Sequence[Prefix], led: Sequence[Prefix], *, exit_node: bool) -> None:
        """Addresses and routes are these from now on."""
        self._own, self._led, self._exit_node = list(own), list(led), exit_node
        for each in self._attached.values():
            try:
                self._lead(each)
                each.error = ""
            except OSError as error:
                each.error = f"addresses and routes could not be set in {each.wish.name}: {error}"
                log.warning("%s", each.error)

    def hold(self, *, exit_node: bool) -> None:
        """With an exit node nothing goes out but by the TUN, before there is one."""
        self.lead(self._own, self._led, exit_node=exit_node)

    def set_names(self, *, magic_dns: bool) -> None:
        """Without MagicDNS each target has its own names alone."""
        if magic_dns == self._magic_dns:
            return
        self._magic_dns = magic_dns
        for each in self._attached.values():
            with contextlib.suppress(OSError):  # a full disk: names are found in full
                self._cover(each)

    def end(self) -> None:
        """Give everything back: the node ends."""
        for each in list(self._attached.values()):
            with contextlib.suppress(OSError):
                self._give_back(each)

    # --- one of them

    def _lead(self, each: _Attached) -> None:
        attachment.lead(each.network, self._own, self._led, exit_node=self._exit_node, exclusive=each.wish.exclusive)

    def _cover(self, each: _Attached) -> None:
        self._write_resolv(each)
        each.warning = ""
        if each.mount >= 0 and self._magic_dns:
            try:
                mounts.inject({mounts.RESOLV_PATH: each.record.resolv}, each.mount)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise  # whoever goes by another file would ask others for names of the tailnet
                each.warning = f"{each.wish.name} does not know the tailnet's names: {error}"
        elif each.mount >= 0:
            mounts.eject(mounts.RESOLV_PATH, each.record.resolv, each.mount)

    def _write_resolv(self, each: _Attached) -> None:
        # Short names of the tailnet's are completed by us, after the target's own names: in a search list they would come before them.
        text = resolv.render(each.wish.search, magic_dns=True, options=each.wish.options)
        write_in_place(self._resolv_path(each.record.key), text)

    def _give(self, each: _Attached) -> None:
        assert each.made is not None  # attached
        fds = [each.made.tun, *([each.made.names] if each.made.names >= 0 else []), *each.made.dns]
        message = {
            "give": "place",
            "place": each.place,
            "names": each.made.names >= 0,
            "published": each.wish.published,
        }
        self._tell_engine(message, fds)

    def _share(self) -> None:
        """Divide the ports that flows begin at. A single one keeps those that it had."""
        shares = list(zip(self._attached.values(), slices(PORTS, max(len(self._attached), 1)), strict=False))
        for each, share in shares:
            before = attachment.ports_before(each.record.before)
            self._limit(each.network, share if len(shares) > 1 or before is None else before)
        self._limit(self._namespace, OWN_PORTS if shares else PORTS)
        told = [
            [OWN, OWN_PORTS.start, OWN_PORTS.stop],
            *([each.place, share.start, share.stop] for each, share in shares),
        ]
        self._tell_engine({"give": "ports", "ports": told}, [])

    def _limit(self, network: int, share: range) -> None:
        if network >= 0 and self._shares.get(network, PORTS) != share:
            with contextlib.suppress(OSError):  # then they may clash, which is counted
                port_range.set_range(network, share)
                self._shares[network] = share

    def _give_back(self, each: _Attached) -> None:
        """Undo it. OSError with the reason; it is no attachment of ours then either."""
        self._tell_engine({"take": "place", "place": each.place}, [])
        try:
            if each.made is not None:
                os.close(each.made.tun)
                each.made = each.made._replace(tun=-1)
            attachment.remove(each.network, each.record.before)
            if each.mount >= 0:
                mounts.eject(mounts.RESOLV_PATH, each.record.resolv, each.mount)
        finally:
            self._forget(each)

    def _let_go(self, each: _Attached) -> None:
        """Its namespace is dying: nothing needs to be undone, only forgotten, for our descriptors keep it alive."""
        self._tell_engine({"take": "place", "place": each.place}, [])
        self._forget(each)
        self._share()
        self._changed()

    def _forget(self, each: _Attached) -> None:
        self._attached.pop(each.record.key, None)
        self._shares.pop(each.network, None)
        if each.pidfd >= 0:
            self._watch.forget(each.pidfd)
        each.close()
        with contextlib.suppress(OSError):  # of a namespace that is gone, or as it was, a record does no harm
            os.unlink(each.record.resolv)
            self._write()

    def _on_end(self, each: _Attached) -> None:
        log.info("%s has ended", each.wish.name or each.record.key)
        self._let_go(each)

    def _check_paths(self) -> None:
        paths = [each for each in self._attached.values() if each.pidfd < 0]
        for each in paths:
            try:
                gone = namespace.identity(Path(each.record.id)) != (each.record.device, each.record.inode)
            except OSError:
                gone = True
            if gone:
                self._on_end(each)
        if paths:
            self._watch.at(_CHECK, time.monotonic() + PATH_CHECK_S, self._check_paths)

    def _free_place(self) -> int:
        taken = {each.place for each in self._attached.values()}
        return next(place for place in range(OWN + 1, OWN + 2 + len(taken)) if place not in taken)

    def _resolv_path(self, key: str) -> Path:
        return self._places.attached.with_name(f"{self._places.name}.{key}.resolv")

    def _write(self) -> None:
        """OSError where that cannot be: what is not written down is not done."""
        attachment_records.save(
            self._places.attached, [*(each.record for each in self._attached.values()), *self._left.values()]
        )


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _named(record: Record) -> Message:
    return {"kind": record.kind, "id": record.id, "name": record.name}

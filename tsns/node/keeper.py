"""The keeper of one node: its namespace, its engine, and the end of both (ring 1). One thread, one poll loop, no asyncio.

    client --"run"--> waiting --the engine is ready--> answered with descriptors --"entered"--> inside, watched by its pidfd
    A connection that closes before "entered" has given up. A node that never was ready, or is not to last, ends when nobody waits
    and nobody is inside; a lasting one ends when it is told to.

The keeper has the rights and parses little; the engine parses what strangers send and has none. What the engine asks for is checked
here, and what it may never do (choose a namespace, name a file) it has no words for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from tsns import state
from tsns.config import NodeConfig
from tsns.control.dial import Server
from tsns.error import UserError
from tsns.netns import anchor, forwarding, linux, namespace, netlink, routes, tun, user_namespace
from tsns.netns.underlay import add_udp_sockets
from tsns.node import engine_life, leftovers, messages, uplink
from tsns.node.attachments import Attachments
from tsns.node.clients import Client, Clients, listening_socket
from tsns.node.engine import Given
from tsns.node.engine_process import EngineProcess
from tsns.node.files import NodeFiles, refused_change, settings
from tsns.node.inhabitants import Inhabitants
from tsns.node.inside_names import InsideNames
from tsns.node.live_settings import LiveChanges, changed, difference
from tsns.node.logfile import LogFile, LogPipe
from tsns.node.messages import Message
from tsns.node.places import NodePlaces, Places
from tsns.node.uplink import Uplink
from tsns.node.watch import Watch
from tsns.proto.text import one_line
from tsns.state import Identity

RESTART_FIRST_S: Final = 0.02
RESTART_MAX_S: Final = 5.0
STEADY_AFTER_S: Final = 10.0  # an engine that lived that long may fail afresh
MAX_FIRST_FAILURES: Final = 3  # engines that died before the node ever was ready
NOTE_TIME_EVERY_S: Final = 3600.0
MAX_TEXT: Final = 2000  # characters of what the engine wants a person to read
MAX_NAME: Final = 253  # characters of what it calls itself
LOG_FORMAT: Final = "%(asctime)s %(levelname).1s %(name)s: %(message)s"

_OTHER_VERSION: Final = "stop it with `tsns down`, then start it with this version"

log = logging.getLogger(__name__)


class Keeper:
    """The life of one node. `serve` returns when everything is removed."""

    def __init__(self, places: NodePlaces, config: NodeConfig, *, lasting: bool) -> None:
        self._places = places
        self._config = config
        self._lasting = lasting
        self._files = NodeFiles(places, lasting=lasting)
        self._log = LogPipe(LogFile(self._files.home / "log"))
        self._watch = Watch()
        self._inhabitants = Inhabitants(self._watch, self._needed, self._end_soon)
        self._clients = Clients(self._watch, self._on_request, self._inhabitants.look_soon)
        self._engine = EngineProcess(self._watch, self._on_engine, self._on_engine_end)
        self._uplink = Uplink(self._watch, self._answer_if_ready)
        self._names = InsideNames(self._watch, places, self._files, self._engine)
        self._attachments = Attachments(self._watch, places, self._engine.tell, self._inhabitants.look_soon)
        self._namespace: namespace.Made | None = None
        self._failures = 0
        self._restart_delay_s = RESTART_FIRST_S
        self._ready = False
        self._was_ready = False
        self._latest: Message = {"progress": "starting"}
        self._udp: list[socket.socket] = []  # which outlive the engine, too: peers go on sending to their port
        self._changes = LiveChanges(
            tell_engine=self._engine.tell,
            adopt=lambda wanted: self._adopt(changed(self._config, wanted)),
            reply=self._clients.reply,
            done=self._await_ready,
        )
        self._search: list[str] = []
        self._identity: Identity | None = None
        self._known_as: Message = {}  # the node's name and addresses
        self._ending = False
        self._failed = False
        self._logout = False

    # --- the whole life

    def serve(self, first: socket.socket) -> None:
        """Run the node until it ends. `first` is the connection of the client that asked for it."""
        for fd in (1, 2):
            os.dup2(self._log.writing_fd, fd)  # our own lines go the engine's way, so that the file has one writer
        self._watch.reader(self._log.reading_fd, self._log.drain)
        self._watch.signals((signal.SIGTERM, signal.SIGINT), self._end_soon)
        try:
            self._clients.admit(first, waiting=True)
            self._clients.tell_waiting(self._latest)  # somebody is at work
            tun.check()
            if self._config.with_internet:
                uplink.check()
            self._identity = self._files.load_identity(self._config.login_server)
            self._names.start()
            self._set_search([])
            self._api = listening_socket(socket.SOCK_STREAM, self._places.api, self._config.owner_uid)
            self._clients.listen(self._places.control)
            self._start_engine()  # it talks to control while we make the namespace
            self._adapt_uplink()
            netlink.load()
            self._make_namespace()
            self._files.save_settings(self._config)
            while not self._ending:
                self._watch.turn()
        except UserError as error:
            self._fail(error.message, error.hint)
        except OSError as error:
            refusal = user_namespace.refusal(error)
            self._fail(refusal.message, refusal.hint)
        finally:
            self._end()

    def _make_namespace(self) -> None:
        began = time.monotonic()
        self._namespace = anchor.make(self._places.namespace, map_root=self._config.map_root)
        self._inhabitants.made(self._namespace.namespace)
        self._attachments.made(self._namespace.namespace)
        if self._config.exit_node:
            routes.hold(self._namespace.namespace, exit_node=True)
        if self._config.carries:
            forwarding.apply(self._namespace.namespace, wanted=True)
        self._uplink.set_namespace(self._namespace.namespace)
        self._names.made(self._namespace)
        log.info("namespace %s made in %.0f ms", self._places.namespace, 1000 * (time.monotonic() - began))
        self._give_tun()

    def _end_soon(self) -> None:
        self._ending = True

    def _fail(self, error: str, hint: str) -> None:
        """The node cannot be: say so to all who wait, and end."""
        log.error("%s (%s)", error, hint)
        self._tell_waiting({"error": error, "hint": hint})
        self._ending = self._failed = True

    def _end(self) -> None:
        self._places.control.unlink(missing_ok=True)  # no new clients; those in the backlog find nobody and start anew
        self._engine.stop(logout=self._logout or self._config.ephemeral)
        self._note_time()
        self._uplink.close()
        self._log.drain()
        self._attachments.end()
        if self._namespace is not None:
            os.close(self._namespace.tun)
        if not self._was_ready and self._identity is not None and self._identity.control_url is None:
            self._files.forget(keep_log=self._failed)
        leftovers.remove(self._places)
        self._clients.tell_everybody({"stopped": True})

    # --- clients

    def _on_request(self, client: Client, message: Message, fds: Sequence[int]) -> None:
        match message.get("ask"):
            case "run":
                self._on_run(client, message)
            case "set":
                self._on_set(client, message)
            case "join":
                self._await_ready(client)
            case "entered":
                self._on_entered(client)
            case "attach":
                self._on_attach(client, message, fds)
            case "detach":
                self._on_detach(client, str(message.get("key")))
            case "attachments":
                self._clients.reply(client, {"attachments": self._attachments.listed()})
            case "stop":
                self._logout = self._logout or message.get("logout") is True
                self._ending = True
            case _:
                self._clients.reply(
                    client, {"error": "the node's keeper does not know this request", "hint": _OTHER_VERSION}
                )

    def _on_run(self, client: Client, message: Message) -> None:
        try:
            config = NodeConfig.from_message(message["config"])
        except (KeyError, TypeError, ValueError):
            self._clients.reply(client, {"error": "the node runs with another version of tsns", "hint": _OTHER_VERSION})
            return
        refusal = refused_change(self._config, config)
        if refusal is not None:
            self._clients.reply(client, {"error": refusal.message, "hint": refusal.hint})
            return
        self._change(client, config)

    def _on_set(self, client: Client, message: Message) -> None:
        try:
            wanted = dict(message["settings"])
            if not wanted.keys() <= settings(self._config).keys() - {"name", "login_server"}:
                raise ValueError
            config = changed(self._config, wanted)
        except (KeyError, TypeError, ValueError):
            self._clients.reply(client, {"error": "the node runs with another version of tsns", "hint": _OTHER_VERSION})
            return
        self._change(client, config)

    def _change(self, client: Client, config: NodeConfig) -> None:
        """Other settings: the engine takes them over as it is, or where it cannot another one starts with them."""
        if settings(config) == settings(self._config):
            self._await_ready(client)
            return
        try:
            config.check()
            if config.with_internet:
                uplink.check()
        except UserError as error:
            self._clients.reply(client, {"error": error.message, "hint": error.hint})
            return
        live = difference(self._config, config)
        if self._ready and settings(changed(self._config, live)) == settings(config):
            self._changes.ask(client, live)
        else:
            self._begin_anew(config)
            self._await_ready(client)

    def _adopt(self, config: NodeConfig) -> None:
        """Have namespace and files as other settings want them."""
        log.info("the settings have changed")
        before, self._config = self._config, config
        self._files.save_settings(config)
        if config.accept_dns != before.accept_dns:
            self._change_search(self._search)
        if config.exit_node != before.exit_node and self._namespace is not None:
            routes.hold(self._namespace.namespace, exit_node=bool(config.exit_node))
            self._attachments.hold(exit_node=bool(config.exit_node))
        if config.carries != before.carries and self._namespace is not None:
            forwarding.apply(self._namespace.namespace, wanted=config.carries)
        self._adapt_uplink()

    def _adapt_uplink(self) -> None:
        config, exit_node = self._config, bool(self._config.exit_node)
        wanted = config.with_internet and (config.exit_node_allow_lan_access or not exit_node)
        self._uplink.want(wanted=wanted, only_neighbours=exit_node)

    def _begin_anew(self, config: NodeConfig) -> None:
        """The engine starts anew with other settings. The TUN stays, so flows see a pause and no end."""
        log.info("starting the engine anew")
        if config.port != self._config.port:
            self._close_udp()
        self._adopt(config)
        self._ready = False
        self._latest = {"progress": "applying the new settings"}
        self._engine.stop(logout=False)
        self._start_engine()

    def _await_ready(self, client: Client) -> None:
        client.waiting = True
        if not self._answer_if_ready():
            self._clients.reply(client, self._latest)

    def _answer_if_ready(self) -> bool:
        if not (self._ready and self._uplink.settled):
            return False
        assert self._namespace is not None  # ready
        files = {"resolv": str(self._places.resolv), "nsswitch": str(self._places.nsswitch)}
        answer = {"ready": True, **files, **self._known_as}
        self._clients.tell_waiting(answer, [self._namespace.namespace])
        self._clients.served()
        return True

    def _tell_waiting(self, message: Message) -> None:
        self._latest = message
        self._clients.tell_waiting(message)

    # --- who is inside

    def _on_entered(self, client: Client) -> None:
        pidfd = client.pidfd()
        if pidfd is not None:
            self._inhabitants.entered(pidfd)
        self._clients.drop(client)

    def _needed(self) -> bool:
        return bool(self._clients.anybody_waiting or self._attachments or (self._lasting and self._was_ready))

    def _on_attach(self, client: Client, message: Message, fds: Sequence[int]) -> None:
        try:
            warning = self._attachments.attach(message, fds)
        except UserError as error:
            self._clients.reply(client, {"error": error.message, "hint": error.hint})
        except OSError as error:
            self._clients.reply(client, {"error": f"it cannot be attached: {error}", "hint": self._see_log()})
        else:
            self._clients.reply(client, {"attached": {"warning": warning, **self._known_as}})

    def _on_detach(self, client: Client, key: str) -> None:
        try:
            found = self._attachments.detach(key)
        except OSError as error:
            self._clients.reply(client, {"error": f"it cannot be detached: {error}", "hint": self._see_log()})
        else:
            self._clients.reply(client, {"detached": key, "found": found})

    def _see_log(self) -> str:
        return f"see its log: {self._files.home / 'log'}"

    def _inside_now(self) -> Message:
        internet = {"wanted": self._config.with_internet, "up": self._uplink.is_up, "error": self._uplink.error}
        return {
            "netns": self._named_namespace(),
            "processes": self._inhabitants.listed(),
            "attachments": self._attachments.listed(),
            "internet": internet,
        }

    def _named_namespace(self) -> str:
        """A path of the namespace: its name in the file system, or where there is none, our descriptor of it."""
        if os.geteuid() == 0 or self._namespace is None:
            return str(self._places.namespace)
        return f"/proc/{os.getpid()}/fd/{self._namespace.namespace}"

    # --- the engine

    def _start_engine(self) -> None:
        identity = self._identity
        assert identity is not None  # loaded before the first engine

        add_udp_sockets(self._udp, self._config.port or self._files.last_port())
        if self._udp:
            self._files.note_port(self._udp[0].getsockname()[1])
        latest = self._files.latest_time()
        self._note_time()

        def body(channel: socket.socket, parent: int) -> NoReturn:
            given = Given(channel, self._api, self._udp, self._config, identity, latest)
            engine_life.live(given, self._files.open_cache(), parent)

        self._engine.start(body)
        self._give_tun()

    def _note_time(self) -> None:
        self._files.note_time(time.time())
        self._watch.at("note time", time.monotonic() + NOTE_TIME_EVERY_S, self._note_time)

    def _close_udp(self) -> None:
        for sock in self._udp:
            sock.close()
        self._udp.clear()

    def _give_tun(self) -> None:
        if self._namespace is not None:
            self._engine.tell({"give": "tun"}, [self._namespace.tun, *self._namespace.dns])
            self._names.tell()
            self._attachments.tell()

    def _on_engine(self, message: Message, fds: Sequence[int]) -> None:
        """The engine's words. Nothing here believes them further than it has checked."""
        match message:
            case {"say": "progress", "text": str(text)}:
                self._tell_waiting({"progress": one_line(text, MAX_TEXT)})
            case {"say": "login", "url": str(url)}:
                self._tell_waiting({"login": one_line(url, MAX_TEXT)})
            case {"say": "ready", "dns_name": str(dns_name), "addresses": list(addresses)} if (
                self._namespace is not None
            ):
                known = [one_line(str(address), MAX_NAME) for address in addresses[: routes.MAX_ADDRESSES]]
                self._known_as = {"dns_name": one_line(dns_name, MAX_NAME), "addresses": known}
                self._on_ready(message.get("mistake"))
            case {"say": "configured", "error": str(error), "hint": str(hint)}:
                self._changes.configured(one_line(error, MAX_TEXT), one_line(hint, MAX_TEXT))
            case {"say": "settled"}:
                self._changes.settled()
            case {"say": "failed", "error": str(error), "hint": str(hint)}:
                self._fail(one_line(error, MAX_TEXT), one_line(hint, MAX_TEXT))
            case {"ask": "network", "addresses": list(addresses), "routes": list(led)}:
                error = self._set_network([str(item) for item in addresses], [str(item) for item in led])
                self._engine.tell({"done": "network", "error": error})
            case {"ask": "dns", "search": list(search)}:
                self._change_search([str(domain) for domain in search])
            case {"ask": "sockets"}:
                self._names.sockets(message)
            case {"ask": "listening", "protocol": int(protocol), "port": int(port)}:
                place = self._attachments.listening(protocol, port)
                self._engine.tell({"done": "listening", "error": "", "place": place})
            case {"ask": "listeners", "addresses": list(addresses)}:
                self._names.listeners([str(address) for address in addresses])
            case {"ask": "cache"} if len(fds) == 1:
                self._engine.tell({"done": "cache", "error": self._files.save_cache(fds[0])})
            case {"ask": "inside"}:
                self._engine.tell({"done": "inside", "error": "", **self._inside_now()})
            case {"ask": "save", "identity": str(text)}:
                self._engine.tell({"done": "save", "error": self._save_identity(text)})
            case _:
                log.warning("the engine said something unknown")

    def _on_ready(self, mistake: object) -> None:
        match mistake:
            case [str(error), str(hint)] if not self._was_ready:
                self._fail(one_line(error, MAX_TEXT), one_line(hint, MAX_TEXT))
                return
        self._ready = self._was_ready = True
        self._config = self._config._replace(auth_key=None)  # it has done its work
        log.info("ready")
        self._answer_if_ready()

    def _on_engine_end(self, status: int, lived_s: float) -> None:
        """A crash. The TUN stays ours: packets wait in it for the next engine, and the command notices a pause, not an error."""
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        log.error("the engine ended unbidden (%s) after %.1f s", how, lived_s)
        self._note_time()
        self._ready = False
        self._changes.engine_ended(how)
        self._attachments.engine_away()
        self._failures = 1 if lived_s > STEADY_AFTER_S else self._failures + 1
        if not self._was_ready and self._failures >= MAX_FIRST_FAILURES:
            self._fail("the node's engine failed at its start", self._see_log())
            return
        self._restart_delay_s = (
            RESTART_FIRST_S if self._failures <= 1 else min(2 * self._restart_delay_s, RESTART_MAX_S)
        )
        self._watch.at("restart", time.monotonic() + self._restart_delay_s, self._start_engine)

    def _save_identity(self, text: str) -> str:
        assert self._identity is not None  # loaded before the first engine
        try:
            new = Identity.load(text.encode())
            self._identity = self._identity.succeeded_by(new, str(Server.parse(self._config.login_server)))
            self._files.save_identity(self._identity.dump())  # the next engine gets it, whatever the disk does
        except (OSError, ValueError, UserError) as error:
            log.warning("the identity is not saved: %s", error)
            return str(error)  # the engine says it, in status and log
        return ""

    def _change_search(self, search: list[str]) -> None:
        try:
            self._set_search(search)
        except OSError as error:  # a full disk, say: no reason for a node that runs to end
            log.warning("resolv.conf stays as it is: %s", error)

    def _set_search(self, search: list[str]) -> None:
        self._search = search
        self._files.write_resolv(search, magic_dns=self._config.accept_dns)
        self._attachments.set_names(magic_dns=self._config.accept_dns)

    def _set_network(self, addresses: list[str], led: list[str]) -> str:
        if self._namespace is None:
            return "there is no namespace yet"
        exit_node = bool(self._config.exit_node)
        try:
            own, led_in = routes.check(addresses, led, accepts_routes=self._config.accept_routes, exit_node=exit_node)
            self._uplink.forbid(led_in)
            routes.apply(self._namespace.namespace, own, led_in, exit_node=exit_node)
        except (ValueError, OSError) as error:
            reason = one_line(str(error), MAX_TEXT)
            log.warning("addresses or routes refused: %s", reason)
            return reason
        self._attachments.lead(own, led_in, exit_node=exit_node)
        log.info("addresses set: %s; routes: %d", " ".join(addresses), len(led))
        return ""


def run(connection: socket.socket, server_pid: int = 0) -> NoReturn:
    """A keeper's whole life, in a process of its own; the request is read from the connection.

    A client may want to know who forked us instead: that is how it finds the server, which reads nothing.
    """
    status = 1
    try:
        linux.close_all_but(connection.fileno())
        logging.raiseExceptions = False  # see the log pipe
        logging.basicConfig(format=LOG_FORMAT, level=logging.INFO)  # as a server has done already
        _keep(connection, server_pid)
        status = 0
    except (EOFError, ConnectionError):
        status = 0  # the client left before it asked
    except UserError as error:
        messages.send(connection, {"error": error.message, "hint": error.hint})
    except Exception:  # the last frame of a process: say it where somebody may look
        log.exception("the keeper failed")
    finally:
        os._exit(status)


def _keep(connection: socket.socket, server_pid: int) -> None:
    message, _ = messages.receive(connection)
    if message.get("ask") == "server":
        messages.send(connection, {"server": server_pid})
        return
    config = NodeConfig.from_message(message["config"])
    places = Places(run=Path(message["run"]), state=Path(message["state"])).node(config.name)
    lasting = message["lasting"] is True
    if leftovers.lock(places.lock) is None:
        messages.send(connection, {"busy": True})
        return
    with contextlib.suppress(OSError):  # a disk that takes nothing: the node runs on, and says so
        state.make_private_directory(places.home(lasting=lasting))
    Keeper(places, config, lasting=lasting).serve(connection)

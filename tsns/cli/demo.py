"""`tsns demo`: a whole tailnet on this machine, shown at work and taken away again (ring 2)."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from tsns.cli import output, tables, terminal
from tsns.cli.demo_container import DemoContainer
from tsns.cli.demo_stage import Stage, StageError, new_token
from tsns.cli.options import Json, Quiet, Verbose, waiting
from tsns.netns.tun import TUN_NAME

PORT: Final = 8080
PINGS: Final = 3
STREAM_S: Final = 3.0
SERVER: Final = "web"
CLIENT: Final = "me"
_INSIDE: Final = Path(__file__).parent
PYTHON: Final = (sys.executable, "-I")


@dataclass(slots=True)
class Step:
    """One step that has been done, or has failed: `detail` says what came of it."""

    name: str
    seconds: float
    detail: str
    ok: bool = True


@dataclass(slots=True)
class Demo:
    """The course of the demo: each method is a step or two, told in plain words."""

    stage: Stage
    tell: Callable[[str], None]
    quiet: bool = False
    verbose: int = 0
    container: DemoContainer | None = None
    steps: list[Step] = field(default_factory=list)
    throughput_mbit_s: float | None = None
    _settings: list[str] = field(default_factory=list)
    _key: str = ""
    _token: str = field(default_factory=new_token)
    _server_address: str = ""

    def play(self) -> None:
        """All steps. StageError at the first that does not work."""
        self._servers()
        self._node(SERVER)
        self._node(CLIENT)
        self._page()
        self._ping()
        self._probe()
        self._one_command()
        if self.container is not None:
            self._attach(self.container)
        self._from_outside()

    def _step(self, name: str, what: str, do: Callable[[], str]) -> None:
        began = time.monotonic()
        try:
            with waiting(what, self.quiet, self.verbose):
                detail = do()
        except StageError as error:
            self.done(name, what, time.monotonic() - began, error.message, ok=False)
            raise
        self.done(name, what, time.monotonic() - began, detail)

    def done(self, name: str, what: str, seconds: float, detail: str, *, ok: bool = True) -> None:
        """Note a step, and tell of it."""
        self.steps.append(Step(name, round(seconds, 3), detail, ok))
        self.tell(f"  {len(self.steps):2}. {what}: {'' if ok else 'FAILED: '}{detail}  ({seconds:.2f} s)")

    def _servers(self) -> None:
        def do() -> str:
            said = self.stage.start_lab()
            self._key = str(said["auth_key"])
            # All that a configuration file of this machine might want otherwise is said.
            self._settings = [
                "--login-server",
                str(said["url"]),
                "--auth-key",
                "-",
                "--accept-dns",
                "--no-shields-up",
                "--advertise-tags=",
            ]
            return str(said["url"])

        self._step("servers", "control, DERP and STUN servers on this machine", do)

    def _node(self, name: str) -> None:
        def do() -> str:
            self.stage.tsns("up", name, "--hostname", name, *self._settings, given=f"{self._key}\n")
            status = self.stage.remember_node(name)
            addresses = tables.addresses(status.get("self") or {}, version=None)
            if not addresses:
                raise StageError(f"the node {name} has no address", "see the logs above")
            if name == SERVER:
                self._server_address = addresses[0]
            return " ".join(addresses)

        self._step(name, f"`tsns up {name}`, a node with a network namespace of its own", do)

    def _page(self) -> None:
        def do() -> str:
            program = [*PYTHON, str(_INSIDE / "demo_page.py"), str(PORT), self._token]
            self.stage.serve_inside(SERVER, program)
            return f"port {PORT} of {SERVER}, and of nothing else"

        self._step("web-server", f"`tsns exec {SERVER} -- ...`, a web server inside {SERVER}", do)

    def _ping(self) -> None:
        def do() -> str:
            answers = [
                json.loads(line)
                for line in self.stage.tsns("ping", CLIENT, SERVER, "-c", str(PINGS), "--json").splitlines()
            ]
            lost = [answer for answer in answers if not answer.get("ok")]
            if lost:
                why = lost[0].get("error") or "nothing came back"
                raise StageError(f"{len(lost)} of {len(answers)} pings were lost: {why}", "see the logs above")
            return ", ".join(tables.ping_line(SERVER, answer).partition(" in ")[2] for answer in answers)

        self._step("ping", f"`tsns ping {CLIENT} {SERVER}`, through WireGuard", do)

    def _probe(self) -> None:
        """Three steps of one program."""
        words = ("run", "--name", CLIENT, "--", *self._probe_command(STREAM_S))
        with waiting(f"a program inside {CLIENT} that talks to {SERVER}", self.quiet, self.verbose):
            text = self.stage.tsns(*words)
        told = {
            "look-up": f"the name `{SERVER}`, looked up inside {CLIENT}",
            "page": f"http://{SERVER}:{PORT}/, fetched inside {CLIENT}",
            "throughput": "one TCP stream through the tunnel",
        }
        for name, what in told.items():
            try:
                found = _probed(text, name)
                detail = self._judged(name, found)
            except StageError as error:
                self.done(name, what, 0.0, error.message, ok=False)
                raise
            self.done(name, what, found["seconds"], detail)

    def _judged(self, name: str, found: dict[str, Any]) -> str:
        if name == "look-up":
            return " ".join(found["addresses"])
        if name == "throughput":
            self.throughput_mbit_s = found["mbit_s"]
            return f"{self.throughput_mbit_s} Mbit/s"
        if found["page"] != self._token:
            raise StageError(f"another page came than the one that {SERVER} serves", "see the logs above")
        return "the right page"

    def _one_command(self) -> None:
        def do() -> str:
            words = ("run", "--hostname", "once", *self._settings, "--", *self._probe_command(0))
            return self._judged("page", _probed(self.stage.tsns(*words, given=f"{self._key}\n"), "page"))

        self._step("run", f"`tsns run -- ...`, a new node for one command that fetches http://{SERVER}:{PORT}/", do)
        self.stage.wait_for_end("run-*")  # it leaves by itself; nothing below should meet it on its way out

    def _attach(self, container: DemoContainer) -> None:
        self._step("container", "`docker run ...`, a container with a network of Docker's", container.start)

        def attach() -> str:
            words = ("attach", container.name, "--hostname", "box", *self._settings, "--json")
            return " ".join(json.loads(self.stage.tsns(*words, given=f"{self._key}\n"))["addresses"])

        def fetch() -> str:
            return self._judged("page", {"page": container.fetch(f"http://{SERVER}:{PORT}/")})

        def detach() -> str:
            self.stage.tsns("detach", container.name)
            try:
                container.fetch(f"http://{self._server_address}:{PORT}/")
            except StageError:
                return f"{SERVER} is out of its reach again"
            raise StageError(f"the container still reaches {SERVER}", "please report this")

        self._step("attach", f"`tsns attach {container.name}`, as it runs", attach)
        self._step("container-page", f"http://{SERVER}:{PORT}/, fetched inside the container", fetch)
        self._step("detach", f"`tsns detach {container.name}`", detach)

    def _from_outside(self) -> None:
        """Nothing is sent for this: on somebody's machine the address may be another tailnet's."""

        def do() -> str:
            names = [name for _, name in socket.if_nameindex()]
            if TUN_NAME in names or _is_ours(self._server_address):
                raise StageError("this machine itself is on the tailnet", "the namespace leaks; please report this")
            return f"no {TUN_NAME} among its {len(names)} interfaces, and {self._server_address} is not its own"

        self._step("outside", "this machine itself, which has nothing to do with the tailnet", do)

    def _probe_command(self, seconds: float) -> list[str]:
        return [*PYTHON, str(_INSIDE / "demo_probe.py"), SERVER, str(PORT), str(seconds)]

    def summary(self) -> list[str]:
        """The steps once more, as a table."""
        rows = [["STEP", "SECONDS", "OUTCOME"]]
        return tables.columns(rows + [[step.name, f"{step.seconds:7.2f}", step.detail] for step in self.steps])


def _is_ours(address: str) -> bool:
    """Whether this network namespace has this address."""
    with socket.socket() as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def _probed(text: str, name: str) -> dict[str, Any]:
    """One of the lines that a probe has printed. StageError where it failed before or there."""
    for line in text.splitlines():
        step: dict[str, Any] = json.loads(line)
        if "error" in step:
            raise StageError(f"{step['step']}: {step['error']}", "see the logs above")
        if step["step"] == name:
            return step
    raise StageError(f"the program inside {CLIENT} ended before its step {name}", "see the logs above")


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running, and say what to type")] = False,
    docker: Annotated[
        bool, typer.Option("--docker", help="Also attach a container of Docker's, made for this")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Show it at work, without any account.

    A tailnet of this machine's own: servers, two nodes, a command inside one that reaches the other. All of it is removed at the end.
    """
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        return _demo(DemoContainer() if docker else None, keep=keep, as_json=as_json, quiet=quiet, verbose=verbose)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _demo(container: DemoContainer | None, *, keep: bool, as_json: bool, quiet: bool, verbose: int) -> int:
    def tell(text: str) -> None:
        if as_json and not quiet:
            terminal.say(text)
        elif not as_json and not quiet:
            output.lines([text])

    stage = Stage(keep=keep)
    course = Demo(stage, tell, quiet=quiet, verbose=verbose, container=container)
    failure: StageError | None = None
    kept = False
    try:
        tell("A tailnet without any account: everything runs on this machine and is taken away again.")
        course.play()
        kept = keep
    except StageError as error:
        failure = error
        _show_logs(stage)
    finally:
        began = time.monotonic()
        if container is not None:
            container.close()
        left = [] if kept else stage.close()
    if not kept and not left:
        course.done("clean-up", "everything ended and removed", time.monotonic() - began, "nothing is left")
    if left and failure is None:
        failure = StageError(f"this could not be removed: {', '.join(left)}", "end or remove it by hand")
    if failure is not None:
        terminal.report(failure, verbose, owns_status=False)
    elif not quiet and not as_json:
        output.lines(["", *course.summary(), *(_what_to_type(stage) if kept else [])])
    if as_json:
        output.answer(_outcome(course, failure, stage if kept else None))
    return 0 if failure is None else 1


def _outcome(course: Demo, failure: StageError | None, kept: Stage | None) -> dict[str, Any]:
    steps = [
        {"name": step.name, "ok": step.ok, "seconds": step.seconds, "detail": step.detail} for step in course.steps
    ]
    outcome: dict[str, Any] = {
        "ok": failure is None,
        "error": failure.message if failure else None,
        "steps": steps,
        "throughput_mbit_s": course.throughput_mbit_s,
    }
    if kept is not None:
        outcome |= {"run_dir": str(kept.run), "state_dir": str(kept.state), "pids": kept.pids}
    return outcome


def _show_logs(stage: Stage) -> None:
    for name, lines in stage.last_words():
        terminal.say(f"--- {name}")
        for line in lines:
            terminal.say(f"    {line}")


def _what_to_type(stage: Stage) -> list[str]:
    tsns = shlex.join([sys.executable, "-m", "tsns"])
    places = f"TSNS_RUN_DIR={shlex.quote(str(stage.run))} TSNS_STATE_DIR={shlex.quote(str(stage.state))}"
    end = ["kill", *map(str, stage.pids)]
    return [
        "",
        f"It is still running. {'As root, in' if os.geteuid() == 0 else 'In'} a shell:",
        f"    export {places}",
        f"    {tsns} status {CLIENT}",
        f"    {tsns} run --name {CLIENT} -- curl http://{SERVER}:{PORT}/",
        "To end it:",
        f"    {places} {tsns} down --all && {shlex.join(end)} && rm -r {shlex.quote(str(stage.directory))}",
    ]

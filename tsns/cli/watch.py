"""`watch`: containers are attached as their labels say (ring 2)."""

from __future__ import annotations

import logging
import os
from typing import Annotated, Any

import typer

from tsns.attach import follow, jobs, wishes
from tsns.attach.engines import engines
from tsns.attach.follower import Follower
from tsns.attach.reconciliation import Action, Attach, Forget, Warn
from tsns.cli import output, terminal
from tsns.cli.options import Json, Quiet, Verbose
from tsns.cli.tables import columns
from tsns.error import UsageError
from tsns.node.places import Places, make_run_directory, places


def watch(
    once: Annotated[bool, typer.Option("--once", help="Do what there is to do now, and end")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what there is to do now")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Attach containers as their labels say: tsns.enable=true, and tsns.hostname, tsns.to, ... (docs/containers.md).

    It goes on until it is told to end. What it has attached stays so, and is followed, like what `tsns attach` has.
    """
    where = places(os.environ)
    if as_json and not (once or dry_run):
        raise UsageError("--json is for what ends", "use it with --once or --dry-run")
    make_run_directory(where.run)
    if once or dry_run:
        status = _look_once(where, dry_run=dry_run, as_json=as_json, quiet=quiet)
        if not dry_run:
            follow.ensure(where, os.environ)
        return status
    level = logging.WARNING if quiet else logging.DEBUG if verbose > 1 else logging.INFO
    logging.basicConfig(format="%(asctime)s %(message)s", level=level)
    for noisy in ("urllib3", "docker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    follow.watch(where, os.environ)
    return 0


def _look_once(where: Places, *, dry_run: bool, as_json: bool, quiet: bool) -> int:
    """1 where something is wrong, or could not be done."""
    for engine in engines(os.environ):  # or there is nothing to look at
        engine.close()
    follower = Follower(where, os.environ, labels_on=True)
    try:
        actions, made, complaints = follower.plan()
    finally:
        follower.close()
    if not dry_run:
        for wish in made:
            wishes.save(where, wish)
    fresh = {wish.key for wish in made}
    done = [_shown(action) for action in actions]
    for action, shown in zip(actions, done, strict=True):
        if dry_run or not isinstance(action, Attach | Forget):
            continue
        outcome = jobs.do(action, where, os.environ, fresh=action.wish.key in fresh)
        if "busy" in outcome:
            outcome = {"error": "somebody else is attaching or detaching it", "hint": "look again"}
        shown.update(jobs.from_line(jobs.to_line(outcome)))
    complaints += [action.text for action in actions if isinstance(action, Warn)]
    for complaint in () if as_json else complaints:
        terminal.say(f"warning: {complaint}")
    _show([shown for shown in done if shown], complaints, dry_run=dry_run, as_json=as_json, quiet=quiet)
    return int(bool(complaints) or any("error" in shown for shown in done))


def _shown(action: Action) -> dict[str, Any]:
    """One action for the answer; empty for one that changes no attachment."""
    if not isinstance(action, Attach | Forget):
        return {}
    wish = action.wish
    what = "attach" if isinstance(action, Attach) else "detach"
    return {"do": what, "kind": wish.kind, "id": wish.id, "name": wish.name, "node": wish.node, "why": action.why}


def _show(done: list[dict[str, Any]], complaints: list[str], *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    if as_json:
        output.answer({"actions": done, "warnings": complaints})
    elif dry_run:
        rows = [[each["do"], each["name"], each["node"], each["why"]] for each in done]
        output.lines(columns([["DO", "CONTAINER", "NODE", "WHY"], *rows]) if rows else [])
        if not rows and not quiet:
            terminal.say("there is nothing to do")
    else:
        for each in done:
            if "error" in each:
                terminal.show_error(f"{each['name']}: {each['error']}", each["hint"])
            elif not quiet and each["do"] == "detach":
                terminal.say(f"{each['name']} is detached: {each['why']}")
            elif not quiet:
                known = " ".join(filter(None, [each.get("dns_name"), *each.get("addresses", ())]))
                terminal.say(f"{each['name']} is on the tailnet as {known}")

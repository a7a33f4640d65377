"""`dns status` and `dns query`: how a node answers names, and whom it asks (ring 2)."""

from __future__ import annotations

import os
from typing import Annotated, Final

import typer

from tsns.cli import output, tables
from tsns.cli.options import Json, NodeName, Quiet, Verbose, the_node, waiting
from tsns.error import UsageError
from tsns.node import client
from tsns.node.places import Places, places

PATIENCE_S: Final = 15.0
TYPES: Final = frozenset("A AAAA ANY CAA CNAME DS HTTPS MX NAPTR NS PTR SOA SRV SVCB TLSA TXT".split())  # noqa: SIM905
_WAYS: Final = {
    "tunnel": "through the tunnel",
    "underlay": "from the host's network",
    "none": "not asked: out of reach",
}
_SWITCH: Final = {True: "on", False: "off"}

app = typer.Typer(help="How names are answered inside a node.", rich_markup_mode=None)


@app.command("status")
def status(name: NodeName = None, *, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    """Show which names a node answers itself, who is asked for the others, and which way."""
    where = places(os.environ)
    name = the_node(name, where, "dns status")
    with waiting(f"the node {name} to answer", quiet, verbose):
        found = client.query(name, where, "/tsns/v1/dns")
    if as_json:
        output.answer(found)
    else:
        output.lines(status_lines(found))
    return 0


@app.command("query")
def query(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[NAME] QNAME [TYPE]", help="The node, the name to ask for, and the type of record"),
    ],
    *,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Ask for a name as a program inside would, and see which rule and which server answered.

    An address is asked for its name. Exit status 1 when there is no such record, or no answer.
    """
    where = places(os.environ)
    name, asked, kind = _meant(words, where)
    name = the_node(name, where, "dns query")
    with waiting("the answer", quiet, verbose):
        found = client.query(name, where, "/tsns/v1/dns/query", {"name": asked, "type": kind}, timeout_s=PATIENCE_S)
    if as_json:
        output.answer(found)
    else:
        output.lines(query_lines(found))
    return 0 if found.get("ok") else 1


def _meant(words: list[str], where: Places) -> tuple[str | None, str, str]:
    """Node, name and type among one to three words; a second word in capitals that is a type is one."""
    match words:
        case [asked]:
            return None, asked, ""
        case [first, second] if second in TYPES or (
            second.upper() in TYPES and first not in {*client.names(where), *client.known(where)}
        ):
            return None, first, second
        case [node, asked]:
            return node, asked, ""
        case [node, asked, kind]:
            return node, asked, kind
    raise UsageError("these are too many words", "write `tsns dns query [NAME] QNAME [TYPE]`")


def status_lines(found: tables.Object) -> list[str]:
    """The state of a node's DNS for people."""
    default = found.get("default") or {}
    lines = [
        f"MagicDNS: {_SWITCH[bool(found.get('magic_dns'))]}"
        + (f", for names under {tables.cell(found['suffix'])}" if found.get("suffix") else ""),
        f"Control's configuration: {'followed' if found.get('accept_dns') else 'not followed (--accept-dns=false)'}",
        f"Search domains: {_listed(found.get('search'))}",
        f"Answers at: {_listed(found.get('listeners'))}",
        "",
        "Routes:",
        *(
            f"  {tables.cell(rule.get('suffix'))}: {_asked(rule.get('resolvers'), local=bool(rule.get('local')))}"
            for rule in found.get("routes") or [{"suffix": "none", "local": True}]
        ),
        f"All else: {_asked(default.get('resolvers'), local=False)}"
        + (f", as {tables.cell(default['origin'])} has it" if default.get("origin") else ""),
    ]
    if found.get("skipped"):
        lines.append(f"{found['skipped']} entries of control's configuration cannot be understood")
    cache = found.get("cache") or {}
    counted = [[str(count), tables.cell(what)] for what, count in (found.get("counters") or {}).items() if count]
    return [
        *lines,
        "",
        f"Cache: {cache.get('entries', 0)} answers; waiting for one: {found.get('in_flight', 0)}",
        *tables.columns(counted),
    ]


def _listed(texts: object) -> str:
    return ", ".join(map(tables.cell, texts)) if isinstance(texts, list) and texts else "none"


def _asked(resolvers: object, *, local: bool) -> str:
    if local:
        return "answered here alone"
    if not isinstance(resolvers, list) or not resolvers:
        return "nobody is asked"
    return ", ".join(
        f"{tables.cell(one.get('address'))} ({_WAYS.get(str(one.get('way')), tables.cell(one.get('way')))})"
        for one in resolvers
    )


def query_lines(found: tables.Object) -> list[str]:
    """One answer for people."""
    rows = [
        [tables.cell(record.get(key)) for key in ("name", "ttl", "type", "data")]
        for record in found.get("answers") or []
    ]
    code = tables.cell(found.get("code"))
    lines = tables.columns(rows) if rows else [f"{tables.cell(found.get('name'))}: {_NO_RECORD.get(code, code)}"]
    return [*lines, "", f"{_source(found)}, after {tables.milliseconds(float(found.get('seconds') or 0.0))}"]


_NO_RECORD: Final = {"NOERROR": "no record of this type", "NXDOMAIN": "there is no such name (NXDOMAIN)"}


def _source(found: tables.Object) -> str:
    rule = found.get("rule") or {}
    if rule.get("kind") == "netmap":
        return "answered from the netmap"
    because = f"the route for {tables.cell(rule.get('suffix'))}" if rule.get("kind") == "route" else "the default"
    if found.get("reason"):
        return f"not answered, by {because}: {tables.cell(found['reason'])}"
    resolver = tables.cell(found.get("resolver"))
    if found.get("cached"):
        return f"answered from the cache, by {because}: {resolver}"
    way = _WAYS.get(str(found.get("way")), "")
    return f"answered by {resolver} over {tables.cell(found.get('transport'))} {way}, by {because}"

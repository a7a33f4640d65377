"""`exit-node list`: which peers offer the way to everything else (ring 2)."""

from __future__ import annotations

import os
from typing import Final

import typer

from tsns.cli import output, tables, terminal
from tsns.cli.options import Json, NodeName, Quiet, Verbose, the_node, waiting
from tsns.cli.queries import running
from tsns.node.places import places

SHOWN: Final = ("name", "dns_name", "addresses", "online", "tags")

app = typer.Typer(help="See which peers may be exit nodes.")


@app.command("list")
def list_exit_nodes(name: NodeName = None, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    """List the peers that offer to be an exit node.

    Exit status 1 when there is none.
    """
    where = places(os.environ)
    name = the_node(name, where, "exit-node list")
    with waiting(f"the node {name} to answer", quiet, verbose):
        found = running(name, where)
    offers = [peer for peer in found.get("peers") or () if peer.get("exit_node_option")]
    if as_json:
        nodes = [{**{key: peer.get(key) for key in SHOWN}, "selected": bool(peer.get("exit_node"))} for peer in offers]
        output.answer({"name": name, "exit_nodes": nodes})
    elif offers:
        output.lines(tables.exit_node_list(offers))
    elif not quiet:
        terminal.say("no peer offers to be an exit node")
    return 0 if offers else 1

"""What `run` imports is what every `run` waits for."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

HEAVY: Final = {
    "typer", "click", "rich", "asyncio", "cryptography", "nacl", "pyroute2", "docker", "subprocess", "msgspec", "ssl", "h2",
    "h11", "dns", "zstandard", "numpy", "logging", "tomllib", "http", "email", "difflib", "argparse", "tempfile", "threading",
    "concurrent", "traceback", "json.tool", "dataclasses", "inspect", "shutil",
}  # fmt: skip
MAX_OWN_MODULES: Final = 25


def loaded(code: str) -> set[str]:
    """The modules that are there after this code, in a fresh interpreter without what its site adds."""
    places = [path for path in sys.path if path]
    lines = f"import sys; sys.path[:0] = {places!r}\n{code}\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", lines], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_a_run_imports_nothing_heavy() -> None:
    found = loaded("import tsns.__main__, tsns.cli.enter; tsns.__main__.main(['run', '--', '/no/such/command'])")
    assert {name for name in found if name.partition(".")[0] in HEAVY or name in HEAVY} == set()
    own = {name for name in found if name.startswith("tsns")}
    assert {"tsns.cli.enter", "tsns.node.client", "tsns.attach.process"} <= own
    assert len(own) <= MAX_OWN_MODULES, sorted(own)


def test_the_watcher_would_see_it() -> None:
    assert "typer" in loaded("import tsns.cli.app")

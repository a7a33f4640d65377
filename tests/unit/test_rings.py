"""The three rings: a module imports nothing of a higher ring, and what is pure imports nothing that touches the world.

Each module's docstring says which ring it is in; the table below pins those that the architecture names.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Of two entries the longer one counts. What a package does not pin is as its docstring says.
PINNED = {
    "tsns.error": 0,
    "tsns.keys": 0,
    "tsns.proto": 0,
    "tsns.noise": 0,
    "tsns.derp.framing": 0,
    "tsns.derp.session": 0,
    "tsns.control.netmap": 0,
    "tsns.control.register": 0,
    "tsns.wg": 0,
    "tsns.disco": 0,
    "tsns.paths": 0,
    "tsns.filter": 0,
    "tsns.dns.resolver": 0,
    "tsns.dns.configuration": 0,
    "tsns.dns.forwarder": 0,
    "tsns.dns.cache": 0,
    "tsns.config": 1,
    "tsns.state": 1,
    "tsns.netns": 1,
    "tsns.derp.client": 1,
    "tsns.control.client": 1,
    "tsns.wg.offload": 1,
    "tsns.wg.tuns": 1,
    "tsns.wg.socket": 1,
    "tsns.dns.server": 1,
    "tsns.dns.exchanges": 1,
    "tsns.node": 1,
    "tsns.lab": 1,
    "tsns.cli": 2,
    "tsns.attach": 2,
    "tsns.__main__": 2,
}

# What ring 0 must not have: sockets, files, clocks, randomness, processes, event loops.
WORLDLY = frozenset(
    """asyncio selectors select socket ssl http urllib.request os io pathlib shutil tempfile glob fcntl time random secrets
    subprocess threading multiprocessing signal concurrent logging.handlers pyroute2 docker typer""".split()  # noqa: SIM905
)
ADDRESS_ARITHMETIC = frozenset({"inet_pton", "inet_ntop", "AF_INET", "AF_INET6"})  # of `socket`: neither opens anything
TAMES_NUMPY = "tsns.wg.arrays"  # by the environment, while it is imported; that is the only way

# The way to a command inside a running node: milliseconds count.
QUICK = ["tsns.node.client", "tsns.attach.process", "tsns.config", "tsns.__main__"]
HEAVY = ["typer", "pyroute2", "asyncio", "cryptography", "docker", "numpy"]


@dataclass(frozen=True)
class Module:
    name: str
    tree: ast.Module

    @property
    def ring(self) -> int | None:
        """As its docstring says; "pure" within a package of another ring is ring 0 that this package keeps to itself."""
        found = re.search(r"\((?:ring ([012])|(pure))\b", (ast.get_docstring(self.tree) or "").split("\n\n")[0])
        if found is None:
            return None
        return int(found[1]) if found[1] else 0

    def imports(self) -> Iterator[str]:
        """What it imports anywhere, with `from a import b` as both a and a.b."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name} imports relatively"
                assert node.module is not None
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def uses_only_arithmetic_of_socket(self) -> bool:
        return all(
            node.attr in ADDRESS_ARITHMETIC
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket"
        ) and not any(isinstance(node, ast.ImportFrom) and node.module == "socket" for node in ast.walk(self.tree))


def read() -> dict[str, Module]:
    modules = {}
    for path in sorted((ROOT / "tsns").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, ast.parse(path.read_text()))
    return modules


MODULES = read()


def pinned(name: str) -> int | None:
    above = name
    while above:
        if above in PINNED:
            return PINNED[above]
        above = above.rpartition(".")[0]
    return None


def ring_of(name: str) -> int:
    """A module's ring; a package that only holds its docstring is in the lowest."""
    ring = MODULES[name].ring
    return 0 if ring is None else ring


def ours(name: str, modules: dict[str, Module]) -> Iterator[str]:
    """The modules of tsns that a module imports."""
    yield from (imported for imported in MODULES[name].imports() if imported in modules)


def test_there_is_something_to_judge() -> None:
    assert len(MODULES) > 20
    assert {"tsns.error", "tsns.proto.packets", "tsns.dns.server"} < set(MODULES)
    assert "tsns.proto.packets" in set(MODULES["tsns.filter.packet_filter"].imports())


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_its_ring(name: str) -> None:
    module = MODULES[name]
    if module.ring is None:
        assert len(module.tree.body) <= 1 or name == "tsns", "only an empty package may leave its ring open"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_in_the_ring_that_the_architecture_gives_it(name: str) -> None:
    expected, said = pinned(name), MODULES[name].ring
    if expected is None or said is None:
        return
    if name in PINNED:
        assert said == expected
    else:
        assert said <= expected


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_no_higher_ring(name: str) -> None:
    breaches = [imported for imported in ours(name, MODULES) if ring_of(imported) > ring_of(name)]
    assert breaches == []


@pytest.mark.parametrize("name", [name for name in MODULES if ring_of(name) == 0])
def test_the_pure_do_not_touch_the_world(name: str) -> None:
    worldly = {imported for imported in MODULES[name].imports() if imported in WORLDLY}
    if "socket" in worldly and MODULES[name].uses_only_arithmetic_of_socket():
        worldly.remove("socket")
    assert worldly == ({"os"} if name == TAMES_NUMPY else set())


@pytest.mark.parametrize("name", MODULES)
def test_only_netns_speaks_netlink(name: str) -> None:
    if not name.startswith("tsns.netns"):
        assert [imported for imported in MODULES[name].imports() if imported.partition(".")[0] == "pyroute2"] == []


def test_numpy_comes_alone_and_leaves_no_trace() -> None:
    script = f"""if True:
        import os
        before = dict(os.environ)
        import {TAMES_NUMPY}
        print(len(os.listdir("/proc/self/task")), before == dict(os.environ))"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["1", "True"]


@pytest.mark.parametrize("name", ["tsns.node.engine", "tsns.wg.transport", "tsns.wg.scalar_transport"])
def test_only_the_python_engine_loads_numpy(name: str) -> None:
    script = f"import sys, {name}; print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", MODULES)
def test_no_module_has_a_name_that_says_nothing(name: str) -> None:
    assert not {"utils", "util", "helpers", "common", "misc"} & set(name.split("."))


@pytest.mark.parametrize("name", [name for name in QUICK if name in MODULES])
def test_the_quick_path_imports_nothing_heavy(name: str) -> None:
    script = f"import sys, {name}; print(*[heavy for heavy in {HEAVY} if heavy in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("heavy", HEAVY)
def test_heavy_modules_are_there_to_be_found(heavy: str) -> None:
    """Else the test above would pass for nothing."""
    script = f"import sys, {heavy}; print({heavy!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


# --- the judges, judged --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "ring", "imports"),
    [
        ('"""A machine (ring 0)."""\nimport time', 0, ["time"]),
        (
            '"""An edge (ring 1, standard library only)."""\nfrom tsns.netns import tun',
            1,
            ["tsns.netns", "tsns.netns.tun"],
        ),
        ('"""Nothing said."""', None, []),
        ('"""A thing.\n\nNot (ring 2)."""', None, []),
        ('"""A room of the lab (pure: times are arguments)."""', 0, []),
        ('"""X (ring 0)."""\ndef f():\n    import os', 0, ["os"]),
    ],
)
def test_how_a_module_is_read(source: str, ring: int | None, imports: list[str]) -> None:
    module = Module("tsns.x", ast.parse(source))
    assert module.ring == ring
    assert list(module.imports()) == imports


@pytest.mark.parametrize(
    ("source", "harmless"),
    [
        ("import socket\nsocket.inet_pton(socket.AF_INET, '')", True),
        ("import socket\nsocket.socket()", False),
        ("from socket import socket", False),
    ],
)
def test_arithmetic_of_socket(source: str, harmless: bool) -> None:
    assert Module("tsns.x", ast.parse(source)).uses_only_arithmetic_of_socket() is harmless

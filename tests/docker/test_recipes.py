"""docs/containers.md is true: its recipes are run as they are written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docker.daemon import IMAGE, Dockerd
from tests.docker.podman import Podman, podman
from tests.netns.nodes import Tsns

pytestmark = pytest.mark.docker

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "docs" / "containers.md").read_text()
RECIPES: Final = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
COMPOSE_FILE: Final = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
# Debian's compose is a program of its own.
COMPOSE: Final = """#!/bin/sh
test "$1" = compose && shift && exec docker-compose "$@"
exec DOCKER "$@"
"""
TIMEOUT_S: Final = 60.0


def name_of(recipe: str) -> str:
    return str(re.search(r"--name (\w+)", recipe)[1])  # type: ignore[index]


@pytest.fixture
def busybox(docker: Dockerd) -> None:
    """The image that everybody knows, on a machine without a network."""
    docker.client.images.get(IMAGE).tag("busybox", "latest")


@pytest.fixture(scope="module")
def podman_service() -> Iterator[Podman]:
    """Podman at work."""
    with podman() as found:
        yield found


def follow(recipe: str, tsns: Tsns, directory: Path, programs: dict[str, list[str]]) -> str:
    """Run a recipe, with these programs by these names."""
    for name, command in {"tsns": [sys.executable, "-m", "tsns"], **programs}.items():
        file = directory / name
        file.write_text("#!/bin/sh\nexec " + " ".join(command) + ' "$@"\n')
        file.chmod(0o755)
    environment = {
        **tsns.environ,
        "PATH": f"{directory}:{tsns.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TS_LOGIN_SERVER": tsns.lab.url,
        "TS_AUTH_KEY": tsns.lab.auth_key,
    }
    done = subprocess.run(
        ["sh", "-ec", recipe],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 5


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "docker run" in recipe], ids=name_of)
@pytest.mark.usefixtures("busybox")
def test_a_recipe_for_docker(recipe: str, tsns: Tsns, tmp_path: Path) -> None:
    said = follow(recipe, tsns, tmp_path, {})
    assert "is on the tailnet as " in said
    assert [node for node in tsns.json("ls")["nodes"] if node["state"] == "running"] == []


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "podman run" in recipe], ids=name_of)
def test_a_recipe_for_podman(recipe: str, tsns: Tsns, podman_service: Podman, tmp_path: Path) -> None:
    tsns.environment["DOCKER_HOST"] = podman_service.url  # type: ignore[index]
    assert "is on the tailnet as " in follow(recipe, tsns, tmp_path, {"podman": podman_service.command()})


@pytest.mark.usefixtures("busybox")
def test_the_recipe_for_compose(tsns: Tsns, tmp_path: Path) -> None:
    [recipe] = [recipe for recipe in RECIPES if "docker compose" in recipe]
    [file] = COMPOSE_FILE
    (tmp_path / "docker-compose.yml").write_text(file)
    docker = tmp_path / "docker"
    docker.write_text(COMPOSE.replace("DOCKER", shutil.which("docker") or ""))
    docker.chmod(0o755)
    said = follow(recipe, tsns, tmp_path, {})
    assert "1 packets received" in said, "its neighbour, by the name in the compose file"
    assert "inet 100.64." in said
    assert [node for node in tsns.json("ls")["nodes"] if node["state"] == "running"] == []


def test_the_demo_shows_a_container(tsns: Tsns) -> None:
    done = tsns("demo", "--docker", "--json", timeout_s=90)
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
    assert {"container", "attach", "container-page", "detach", "clean-up"} <= steps.keys()
    assert all(step["ok"] for step in steps.values())

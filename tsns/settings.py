"""The table of settings, and how a node's settings are put together (ring 1, standard library only: `run` starts with it).

    flag  >  environment  >  the person's file  >  the machine's file  >  what the node had before  >  default

Within one file a table `[node.NAME]` stands above the top level. `SETTINGS` is the one table: it makes the options of both command-line
parsers, the names of environment variables and the keys of the files.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tsns import auth_key
from tsns.config import (
    DATA_PLANES,
    DEFAULT_CAPABILITY_VERSION,
    DEFAULT_LOGIN_SERVER,
    DEFAULT_TIMEOUT_S,
    LISTS,
    NATIVE,
    NodeConfig,
    Secret,
)
from tsns.error import UsageError, UserError
from tsns.node.places import NAME_PATTERN, check_name

MAX_FILE_BYTES: Final = 1 << 20
MAX_TIMEOUT_S: Final = 86_400.0
MAX_CAPABILITY_VERSION: Final = 1_000
MAX_TAGS: Final = 100
MAX_ADVERTISED_ROUTES: Final = 100
MAX_NAME_CHARS: Final = 253  # of a FQDN
MAX_PORT: Final = 65_535
RANDOM_NAME_BYTES: Final = 3
SYSTEM_FILE: Final = Path("/etc/tsns/config.toml")
FILE_NAME: Final = "tsns/config.toml"

_TRUE: Final = frozenset({"1", "t", "true"})
_FALSE: Final = frozenset({"0", "f", "false"})

Given = Mapping[str, str | bool | int]  # what a parser found, by the flag's name; texts are as they were typed


def read_bool(text: str) -> bool:
    """The value of `--flag=VALUE` for a switch; ValueError for what is neither true nor false."""
    word = text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("it is true or false")


def _read_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    host = rest.partition("/")[0]
    plain = text.isascii() and text.isprintable() and not set(" ?#\"'<>") & set(text)
    if not separator or scheme.lower() not in {"https", "http"} or not host.strip(":") or "@" in host or not plain:
        raise ValueError("it must be a URL such as https://headscale.example.com")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def _read_hostname(text: str) -> str:
    name = text.lower()
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError("it must have 1 to 63 letters, digits and hyphens, with no hyphen at either end")
    return name


def _read_tags(text: str) -> tuple[str, ...]:
    tags = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        tag = part.removeprefix("tag:")
        if not tag[:1].isalpha() or not tag.isascii() or not tag.replace("-", "").isalnum():
            raise ValueError("a tag is a letter followed by letters, digits and hyphens")
        if f"tag:{tag}" not in tags:
            tags.append(f"tag:{tag}")
    if len(tags) > MAX_TAGS:
        raise ValueError(f"there are more than {MAX_TAGS} tags")
    return tuple(tags)


def _read_exit_node(text: str) -> str:
    name = text.strip()
    if len(name) > MAX_NAME_CHARS or not name.isprintable() or len(name.split()) > 1:
        raise ValueError("it must be a peer's name or address, auto:any, or nothing for none")
    return name.lower() if name.lower() == "auto:any" else name


def _read_routes(text: str) -> tuple[str, ...]:
    from tsns.proto.addresses import Prefix, may_be_routed  # only where there are some

    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            prefix = Prefix.parse(part, strict=True)
        except ValueError:
            raise ValueError(f"{part!r} is not a network such as 192.168.1.0/24") from None
        if not prefix.bits:
            raise ValueError("all addresses are offered with --advertise-exit-node")
        if not may_be_routed(prefix):
            raise ValueError(f"{prefix} cannot be offered to anybody")
        if str(prefix) not in found:
            found.append(str(prefix))
    if len(found) > MAX_ADVERTISED_ROUTES:
        raise ValueError(f"there are more than {MAX_ADVERTISED_ROUTES} routes")
    return tuple(found)


def _read_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise ValueError(f"it must be a number of seconds, more than 0 and at most {MAX_TIMEOUT_S:.0f}")
    return seconds


def _read_port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:6]) > MAX_PORT:
        raise ValueError(f"it must be a port number, at most {MAX_PORT}, or 0 for any")
    return int(text)


def _read_data_plane(text: str) -> str:
    if text not in DATA_PLANES:
        raise ValueError(f"it must be {' or '.join(DATA_PLANES)}")
    if text == NATIVE and not _native_is_built():
        raise ValueError("it is not built here: install Rust and then tsns anew, or leave the option out")
    return text


def _native_is_built() -> bool:
    import importlib.util  # only where somebody asks for it

    return importlib.util.find_spec("tsns.wg._native") is not None


def _read_capability(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MAX_CAPABILITY_VERSION:
        raise ValueError(f"it must be a whole number from 1 to {MAX_CAPABILITY_VERSION}")
    return int(text)


class Flag(NamedTuple):
    """One option of the command line. Without a `metavar` it is a switch, or, with `counts`, counts how often it stands there."""

    name: str  # the long option without its dashes; also the key in files
    help: str
    metavar: str = ""
    short: str = ""
    alias: str = ""  # another long option
    counts: bool = False
    opposite: str = ""  # a switch's long option that means the contrary, without its dashes
    field: str = ""  # of NodeConfig
    environment: tuple[str, ...] = ()
    read: Callable[[str], Any] = str  # from text to the field's value; ValueError says what it must be

    @property
    def takes_value(self) -> bool:
        return bool(self.metavar)

    @property
    def is_switch(self) -> bool:
        return not self.metavar and not self.counts

    @property
    def options(self) -> tuple[str, ...]:
        """As they are typed."""
        return tuple(filter(None, (f"--{self.name}", self.alias, self.short)))


SETTINGS: Final = (
    Flag(
        "login-server",
        f"Control server [default: {DEFAULT_LOGIN_SERVER}]",
        "URL",
        field="login_server",
        environment=("TS_LOGIN_SERVER",),
        read=_read_url,
    ),
    Flag(
        "auth-key",
        "Auth key: itself, file:PATH, or - for one line of standard input [default: print the login URL and wait]",
        "KEY",
        alias="--authkey",
        field="auth_key",
        environment=auth_key.VARIABLES,
    ),
    Flag(
        "hostname",
        "Name in the tailnet [default: the node's name]",
        "NAME",
        field="hostname",
        environment=("TS_HOSTNAME",),
        read=_read_hostname,
    ),
    Flag("ephemeral", "Leave the tailnet when the node stops [default: for a run without --name]", field="ephemeral"),
    Flag("advertise-tags", "Tags to ask for, with commas between", "TAGS", field="advertise_tags", read=_read_tags),
    Flag("accept-dns", "Use the tailnet's names inside [default: yes]", field="accept_dns"),
    Flag("accept-routes", "Reach the subnets behind peers", field="accept_routes"),
    Flag(
        "exit-node",
        "Reach everything else by this peer: its name or address, or auto:any for the best one; empty for none",
        "PEER",
        field="exit_node",
        read=_read_exit_node,
    ),
    Flag(
        "exit-node-allow-lan-access",
        "With an exit node and --with-internet, reach the host's own network all the same",
        field="exit_node_allow_lan_access",
    ),
    Flag(
        "with-internet",
        "Also reach what the host reaches, by pasta; --only-tailnet is the opposite [default: only the tailnet]",
        opposite="only-tailnet",
        field="with_internet",
    ),
    Flag(
        "advertise-routes",
        "Offer peers the way to these networks, with commas between",
        "ROUTES",
        field="advertise_routes",
        read=_read_routes,
    ),
    Flag("advertise-exit-node", "Offer peers the way to the internet", field="advertise_exit_node"),
    Flag("shields-up", "Let no connection in from the tailnet", field="shields_up"),
    Flag(
        "accept-unverified-peers",
        "Join a tailnet with Tailnet Lock on, whose signatures are not checked here",
        field="accept_unverified_peers",
    ),
    Flag(
        "direct", "Look for direct paths; without them peers do not learn our addresses [default: yes]", field="direct"
    ),
    Flag(
        "map-root",
        "As an ordinary user: be root inside, with root's capabilities there and none outside",
        field="map_root",
    ),
    Flag("port", "UDP port on the host for direct paths [default: any]", "N", field="port", read=_read_port),
    Flag(
        "data-plane",
        "What seals and opens packets: native or python [default: native where it is built]",
        "ENGINE",
        field="data_plane",
        environment=("TSNS_DATA_PLANE",),
        read=_read_data_plane,
    ),
    Flag(
        "timeout",
        f"How long to wait until the node is ready [default: {DEFAULT_TIMEOUT_S:.0f}]",
        "SECONDS",
        field="timeout_s",
        read=_read_seconds,
    ),
    Flag(
        "capver",
        f"Capability version to name to the control server [default: {DEFAULT_CAPABILITY_VERSION}]",
        "N",
        field="capability_version",
        read=_read_capability,
    ),
)
_BY_KEY: Final = {flag.name: flag for flag in SETTINGS}
_REMEMBERED: Final[Mapping[str, type]] = {
    "login_server": str,
    "hostname": str,
    "ephemeral": bool,
    "advertise_tags": list,
    "accept_dns": bool,
    "accept_routes": bool,
    "exit_node": str,
    "exit_node_allow_lan_access": bool,
    "with_internet": bool,
    "advertise_routes": list,
    "advertise_exit_node": bool,
    "shields_up": bool,
    "accept_unverified_peers": bool,
    "direct": bool,
    "map_root": bool,
    "port": int,
    "data_plane": str,
    "capability_version": int,
}


class SettingsFile(NamedTuple):
    """One configuration file: what it says for all nodes and for single ones."""

    path: Path
    default: Mapping[str, Any]
    nodes: Mapping[str, Mapping[str, Any]]


def random_name() -> str:
    """The name of a node that is there for one command."""
    return f"run-{os.urandom(RANDOM_NAME_BYTES).hex()}"


def caller_uid(environ: Mapping[str, str]) -> int:
    """Who typed the command: sudo's caller, where root came through sudo."""
    uid = environ.get("SUDO_UID", "")
    return int(uid) if os.geteuid() == 0 and uid.isascii() and uid.isdigit() else os.geteuid()


def _caller_home(environ: Mapping[str, str]) -> Path | None:
    uid = caller_uid(environ)
    if uid == os.geteuid() and (home := environ.get("HOME")):
        return Path(home)
    try:
        return Path(pwd.getpwuid(uid).pw_dir)
    except KeyError:
        return None


def file_paths(environ: Mapping[str, str]) -> list[Path]:
    """Where configuration files may lie, the stronger one first."""
    found = [SYSTEM_FILE]
    if home := _caller_home(environ):
        own = environ.get("XDG_CONFIG_HOME", "") if caller_uid(environ) == os.geteuid() else ""
        found.insert(0, (Path(own) if own.startswith("/") else home / ".config") / FILE_NAME)
    return found


def _file_error(path: Path, what: str, hint: str) -> UserError:
    return UserError(f"{path}: {what}", hint, UsageError.status)


def _check_keys(path: Path, table: Mapping[str, Any], where: str) -> None:
    for key, value in table.items():
        if key not in _BY_KEY:
            known = ", ".join(_BY_KEY)
            raise _file_error(path, f"there is no setting {key!r}{where}", f"the settings are {known}")
        flag = _BY_KEY[key]
        if flag.is_switch:
            if not isinstance(value, bool):
                raise _file_error(path, f"{key}{where} must be true or false", f"write {key} = true, or leave it out")
        elif flag.field in LISTS and isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise _file_error(path, f"{key}{where} must be a list of texts", f'write {key} = ["a", "b"]')
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _file_error(path, f"{key}{where} has a value of the wrong kind", f'write {key} = "{flag.metavar}"')


def read_file(path: Path) -> SettingsFile | None:
    """A configuration file, checked; None where there is none. UserError for what is wrong in it."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _file_error(path, f"cannot be read: {error.strerror}", "see who owns it, or remove it") from error
    if len(data) > MAX_FILE_BYTES:
        raise _file_error(path, "is too large", "it holds settings for nodes and nothing else")
    import tomllib  # only where there is a file: it costs some milliseconds

    try:
        content = tomllib.loads(data.decode())
    except ValueError as error:
        raise _file_error(path, f"is not TOML: {error}", "mend it, or move it away") from error
    nodes = content.pop("node", {})
    _check_keys(path, content, "")
    if not isinstance(nodes, dict):
        raise _file_error(path, "`node` is not a table", "write [node.NAME] above the settings of a node")
    for name, table in nodes.items():
        if not NAME_PATTERN.fullmatch(name) or not isinstance(table, dict):
            raise _file_error(
                path, f"[node.{name}] is not a node's table", "a node's name is a DNS label, as in [node.web]"
            )
        _check_keys(path, table, f" in [node.{name}]")
    return SettingsFile(path, content, nodes)


def read_files(environ: Mapping[str, str]) -> list[SettingsFile]:
    """The configuration files that there are, the stronger one first."""
    return [file for path in file_paths(environ) if (file := read_file(path)) is not None]


def _checked_memory(remembered: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a lasting node was told before, what still makes sense."""
    found = {key: remembered[key] for key, kind in _REMEMBERED.items() if type(remembered.get(key)) is kind}
    for key in LISTS:
        if key in found:
            found[key] = tuple(map(str, found[key]))
    return found


class _Found(NamedTuple):
    """A setting's raw value and where it was found."""

    value: Any
    origin: str
    base: Path | None = None  # of relative paths: None is the working directory


def _look_up(
    flag: Flag, name: str, given: Given, environ: Mapping[str, str], files: Sequence[SettingsFile]
) -> _Found | None:
    if flag.name in given:
        return _Found(given[flag.name], f"--{flag.name}")
    for variable in flag.environment:
        if text := environ.get(variable):
            return _Found(text, variable)
    for file in files:
        for table in (file.nodes.get(name, {}), file.default):
            if flag.name in table:
                value = table[flag.name]
                raw = ",".join(value) if isinstance(value, list) else value
                return _Found(raw if flag.is_switch else str(raw), f"{flag.name} in {file.path}", file.path.parent)
    return None


def node_config(
    name: str,
    given: Given,
    environ: Mapping[str, str],
    *,
    files: Sequence[SettingsFile] | None = None,
    remembered: Mapping[str, Any] | None = None,
    ephemeral: bool = False,
    stdin: int = 0,
) -> NodeConfig:
    """The settings of the node `name`, complete and checked; UserError or UsageError where they cannot be.

    `given` are the flags, `remembered` what the node was told before, `ephemeral` the default of that setting. A line of `stdin` is read
    for an auth key of `-`, and only after everything else is in order.
    """
    check_name(name)
    if files is None:
        files = read_files(environ)
    values: dict[str, Any] = {"ephemeral": ephemeral, **_checked_memory(remembered or {})}
    key: _Found | None = None
    for flag in SETTINGS:
        found = _look_up(flag, name, given, environ, files)
        if found is None:
            continue
        if flag.field == "auth_key":
            key = found
            continue
        try:
            values[flag.field] = found.value if flag.is_switch else flag.read(found.value)
        except ValueError as error:
            raise UsageError(f"{found.origin}: {found.value!r} is wrong", str(error)) from None
    NodeConfig(name=name, **values).check()
    if key is not None:
        values["auth_key"] = _read_key(key, environ, stdin)
    roots = environ.get("SSL_CERT_FILE", "")
    return NodeConfig(
        name=name,
        tls_roots=os.path.abspath(roots) if roots else "",
        owner_uid=caller_uid(environ),
        **_proxies(environ),
        **values,
    )


def changes(given: Given) -> dict[str, Any]:
    """What flags alone say, as fields of NodeConfig; UsageError for what is wrong. For a node that runs."""
    found: dict[str, Any] = {}
    for flag in SETTINGS:
        if flag.name in given:
            value = given[flag.name]
            try:
                found[flag.field] = value if flag.is_switch else flag.read(str(value))
            except ValueError as error:
                raise UsageError(f"--{flag.name}: {value!r} is wrong", str(error)) from None
    return found


def _proxies(environ: Mapping[str, str]) -> dict[str, Any]:
    if not any(name.lower() in {"https_proxy", "http_proxy"} for name in environ):
        return {}
    from tsns import proxies  # with what it imports some milliseconds, and seldom needed

    return dict(proxies.settings(environ))


def login_key(
    name: str,
    given: Given,
    environ: Mapping[str, str],
    *,
    files: Sequence[SettingsFile] | None = None,
    stdin: int = 0,
) -> Secret | None:
    """The auth key for one more login of a node that runs, from the same places as ever; None where a person is to log in."""
    key = _look_up(_BY_KEY["auth-key"], name, given, environ, read_files(environ) if files is None else files)
    return None if key is None else _read_key(key, environ, stdin)


def _read_key(key: _Found, environ: Mapping[str, str], stdin: int) -> Secret:
    if key.value == "-" and key.origin.startswith("--"):
        return auth_key.from_input(stdin)
    return auth_key.from_text(key.value, key.origin, key.base or Path(), _caller_home(environ))

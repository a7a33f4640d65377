"""Flag beats environment beats the person's file beats the machine's file beats what the node had beats the default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tsns import auth_key, settings
from tsns.config import DATA_PLANES, NodeConfig, Secret
from tsns.error import UsageError, UserError
from tsns.settings import Given, SettingsFile
from tsns.wg import engines


def config(given: Given | None = None, environ: dict[str, str] | None = None, **more: Any) -> NodeConfig:
    return settings.node_config("web", given or {}, environ or {}, files=more.pop("files", []), **more)


def own_file(path: Path, text: str) -> SettingsFile:
    path.write_text(text)
    found = settings.read_file(path)
    assert found is not None
    return found


def test_the_ladder_from_default_to_flag(tmp_path: Path) -> None:
    machine = own_file(tmp_path / "machine.toml", 'hostname = "machine"\n[node.web]\nhostname = "machine-web"')
    person = own_file(tmp_path / "person.toml", 'hostname = "person"\n[node.web]\nhostname = "person-web"')
    general = own_file(tmp_path / "general.toml", 'hostname = "person"\n[node.db]\nhostname = "person-db"')
    remembered = {"hostname": "before"}
    environ = {"TS_HOSTNAME": "environment"}
    assert config().hostname == ""
    assert config(remembered=remembered).hostname == "before"
    assert config(remembered=remembered, files=[machine]).hostname == "machine-web"
    assert config(files=[general, machine]).hostname == "person"
    assert config(files=[person, machine]).hostname == "person-web"
    assert config(environ=environ, files=[person, machine]).hostname == "environment"
    assert config({"hostname": "flag"}, environ, files=[person, machine]).hostname == "flag"


def test_an_empty_variable_is_none() -> None:
    assert config(environ={"TS_HOSTNAME": ""}, remembered={"hostname": "before"}).hostname == "before"


def test_every_setting_has_a_field_and_every_field_is_read(tmp_path: Path) -> None:
    file = own_file(
        tmp_path / "config.toml",
        """
        login-server = "https://hs.example/"
        auth-key = "tskey-1"
        hostname = "Other"
        ephemeral = true
        advertise-tags = ["a", "tag:b", "a"]
        accept-dns = false
        accept-routes = true
        exit-node = "Auto:Any"
        exit-node-allow-lan-access = true
        with-internet = true
        advertise-routes = ["10.1.0.0/16", "fd00:1::/64", "10.1.0.0/16"]
        advertise-exit-node = false
        shields-up = true
        accept-unverified-peers = true
        direct = false
        map-root = true
        port = 41641
        data-plane = "python"
        timeout = 2.5
        capver = 113
        """,
    )
    assert set(file.default) == {flag.name for flag in settings.SETTINGS}
    found = settings.node_config("web", {}, {"SSL_CERT_FILE": "/roots.pem"}, files=[file])
    assert found == NodeConfig(
        name="web",
        login_server="https://hs.example",
        auth_key=Secret("tskey-1"),
        hostname="other",
        ephemeral=True,
        advertise_tags=("tag:a", "tag:b"),
        accept_dns=False,
        accept_routes=True,
        exit_node="auto:any",
        exit_node_allow_lan_access=True,
        with_internet=True,
        advertise_routes=("10.1.0.0/16", "fd00:1::/64"),
        advertise_exit_node=False,
        shields_up=True,
        accept_unverified_peers=True,
        direct=False,
        map_root=True,
        port=41641,
        data_plane="python",
        timeout_s=2.5,
        capability_version=113,
        tls_roots="/roots.pem",
        owner_uid=os.geteuid(),
    )


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"login-server": "hs.example"}, "--login-server"),
        ({"login-server": "ftp://hs.example"}, "--login-server"),
        ({"login-server": "https://"}, "--login-server"),
        ({"login-server": "https://a b"}, "--login-server"),
        ({"login-server": "https://user@host"}, "--login-server"),
        ({"hostname": "-a"}, "--hostname"),
        ({"hostname": "a.b"}, "--hostname"),
        ({"hostname": ""}, "--hostname"),
        ({"advertise-tags": "1a"}, "--advertise-tags"),
        ({"advertise-tags": "a b"}, "--advertise-tags"),
        ({"advertise-routes": "10.1.0.1/16"}, "--advertise-routes"),
        ({"advertise-routes": "0.0.0.0/0"}, "--advertise-routes"),
        ({"advertise-routes": "127.0.0.0/8"}, "--advertise-routes"),
        ({"advertise-routes": ",".join(f"10.1.{n}.0/24" for n in range(101))}, "--advertise-routes"),
        ({"exit-node": "a b"}, "--exit-node"),
        ({"timeout": "0"}, "--timeout"),
        ({"timeout": "nan"}, "--timeout"),
        ({"timeout": "inf"}, "--timeout"),
        ({"timeout": "soon"}, "--timeout"),
        ({"data-plane": "fortran"}, "--data-plane"),
        ({"capver": "0"}, "--capver"),
        ({"capver": "1e2"}, "--capver"),
        ({"capver": "9999999999999999"}, "--capver"),
    ],
)
def test_a_wrong_value_is_told_with_where_it_stands(given: dict[str, str], part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        config(given)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('hostnam = "a"', "no setting 'hostnam'"),
        ('[node.web]\nhostnam = "a"', r"no setting 'hostnam' in \[node.web\]"),
        ("shields-up = 1", "must be true or false"),
        ("hostname = [1]", "wrong kind"),
        ("hostname = true", "wrong kind"),
        ("advertise-tags = [1]", "list of texts"),
        ("node = 3", "not a table"),
        ("[node.Web]", r"\[node.Web\]"),
        ("hostname = ", "not TOML"),
    ],
)
def test_a_wrong_file_is_told_with_its_name(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=part) as caught:
        settings.read_file(path)
    assert str(path) in caught.value.message
    assert caught.value.status == 2


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert settings.read_file(tmp_path / "none" / "config.toml") is None


def test_a_wrong_value_in_a_file_is_told_with_the_file(tmp_path: Path) -> None:
    file = own_file(tmp_path / "config.toml", "timeout = -1")
    with pytest.raises(UsageError, match=f"timeout in {file.path}"):
        config(files=[file])


def test_the_files_are_looked_for_at_the_callers_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.file_paths({"HOME": "/home/me"}) == [
        Path("/home/me/.config/tsns/config.toml"),
        Path("/etc/tsns/config.toml"),
    ]
    assert settings.file_paths({"HOME": "/home/me", "XDG_CONFIG_HOME": "/x"})[0] == Path("/x/tsns/config.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    through_sudo = {"HOME": "/root", "SUDO_UID": "1", "XDG_CONFIG_HOME": "/x"}
    assert settings.caller_uid(through_sudo) == 1
    import pwd

    assert settings.file_paths(through_sudo)[0] == Path(pwd.getpwuid(1).pw_dir) / ".config/tsns/config.toml"
    assert config(environ=through_sudo).owner_uid == 1


def test_sudo_uid_is_not_believed_of_a_plain_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert settings.caller_uid({"SUDO_UID": "1"}) == 1000


def test_a_memory_that_makes_no_sense_is_passed_over() -> None:
    nonsense = {"hostname": 5, "advertise_tags": "x", "name": "other", "owner_uid": 7, "accept_dns": "no", "flux": 1}
    assert config(remembered=nonsense) == config()


# --- the auth key


def test_the_key_from_a_flag_and_from_either_variable() -> None:
    environ = {"TS_AUTHKEY": "first", "TS_AUTH_KEY": "second"}
    assert config({"auth-key": "flag"}, environ).auth_key == Secret("flag")
    assert config(environ=environ).auth_key == Secret("first")
    assert config(environ={"TS_AUTH_KEY": "second"}).auth_key == Secret("second")
    assert config().auth_key is None


def test_the_key_from_a_file_relative_to_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "key").write_text("  tskey-2\n")
    (tmp_path / "home" / "key").write_text("tskey-3\n")
    monkeypatch.chdir("/")
    file = own_file(tmp_path / "config.toml", 'auth-key = "file:key"')
    assert config(files=[file]).auth_key == Secret("tskey-2")
    assert config({"auth-key": f"file:{tmp_path}/key"}).auth_key == Secret("tskey-2")
    assert config({"auth-key": "file:~/key"}, {"HOME": str(tmp_path / "home")}).auth_key == Secret("tskey-3")


def test_one_line_of_the_input_and_not_a_byte_more() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"tskey-4\nfor the command")
    os.close(writer)
    assert config({"auth-key": "-"}, stdin=reader).auth_key == Secret("tskey-4")
    assert os.read(reader, 100) == b"for the command"
    os.close(reader)


def test_the_input_is_left_alone_when_another_setting_is_wrong() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"tskey-4\n")
    with pytest.raises(UsageError, match="timeout"):
        config({"auth-key": "-", "timeout": "x"}, stdin=reader)
    os.close(writer)
    assert os.read(reader, 100) == b"tskey-4\n"
    os.close(reader)


@pytest.mark.parametrize("text", ["", "two words", "a\nb", "ключ", "x" * 5000])
def test_what_is_no_key_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)
    for value in (text, f"file:{tmp_path}/key"):
        with pytest.raises(UserError) as caught:
            config({"auth-key": value})
        assert not text or text not in f"{caught.value.message} {caught.value.hint}"


def test_a_key_file_that_is_not_there_names_the_path() -> None:
    with pytest.raises(UserError, match="/no/such/key"):
        config({"auth-key": "file:/no/such/key"})


def test_secrets_leave_the_environment() -> None:
    environ = {"TS_AUTHKEY": "a", "TS_AUTH_KEY": "b", "TS_HOSTNAME": "c"}
    auth_key.forget(environ)
    assert environ == {"TS_HOSTNAME": "c"}


def test_the_name_of_a_nameless_run() -> None:
    names = {settings.random_name() for _ in range(20)}
    assert len(names) > 1
    assert all(len(name) == 10 and name.startswith("run-") and int(name[4:], 16) >= 0 for name in names)


def test_a_wrong_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        settings.node_config("Web!", {}, {}, files=[])


def test_a_data_plane_that_is_not_built_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(DATA_PLANES) == {engines.NATIVE, engines.PYTHON}
    monkeypatch.setattr(settings, "_native_is_built", lambda: True)
    assert config({"data-plane": engines.NATIVE}).data_plane == engines.NATIVE
    monkeypatch.setattr(settings, "_native_is_built", lambda: False)
    with pytest.raises(UsageError, match="--data-plane") as error:
        config({"data-plane": engines.NATIVE})
    assert "install Rust" in error.value.hint
    assert config({"data-plane": engines.PYTHON}).data_plane == engines.PYTHON


def test_the_environment_names_the_data_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_native_is_built", lambda: True)
    assert config(environ={"TSNS_DATA_PLANE": "python"}).data_plane == "python"
    assert config({"data-plane": "native"}, environ={"TSNS_DATA_PLANE": "python"}).data_plane == "native"
    assert not config().data_plane  # whatever is there


def test_an_exit_node_that_uses_another_one_is_none() -> None:
    with pytest.raises(UsageError, match="cannot be one"):
        config({"exit-node": "out", "advertise-exit-node": True})
    assert config({"exit-node": "", "advertise-exit-node": True}, remembered={"exit_node": "out"}).advertise_exit_node

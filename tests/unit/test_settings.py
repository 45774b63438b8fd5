"""Settings: checked when made, read from files, the environment and options, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shadowcat.settings import Deployment, Settings, check_upstream, parse_upstreams
from shadowcat_stores import Window

URL = "http://127.0.0.1:1/mcp"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tape_frames", 0),
        ("tape_bytes", -1),
        ("session_ttl", 0),
        ("max_body_bytes", 0),
        ("max_message_bytes", 0),
        ("connect_timeout", 0),
        ("max_connections", 0),
        ("keepalive", -1),
        ("record_queue_bytes", 0),
        ("record_window", -1),
        ("shutdown_grace", -0.1),
        ("response_timeout", 0),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("credential_headers", "authorization"),
        ("allowed_origins", "https://app.example.com"),
        ("allowed_origins", ("app.example.com",)),
        ("allowed_origins", ("https://app.example.com/",)),
        ("allowed_hosts", ("mcp.example.com:8080",)),
        ("tape", "fll"),
        ("session_ids", "upstrem"),
        ("response_timeout", "3"),
    ],
)
def test_a_value_of_another_kind_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_values_that_are_right() -> None:
    origins = ("*", "https://app.example.com:8443", "http://[::1]:6274", "vscode-webview://abc")
    Settings(allowed_origins=origins, allowed_hosts=("*", "::1", "mcp.example.com"), response_timeout=3)


def test_a_variable_that_looks_like_a_setting_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"SHADOWCAT_UPSTREAM": URL, "SHADOWCAT_TPAE": "full", "SHADOWCAT_SERVICE_PORT": "80"}
    assert Deployment.load(environ).tape == "window"
    assert [record.getMessage() for record in caplog.records] == [
        "the environment variable SHADOWCAT_TPAE is no setting; do you mean SHADOWCAT_TAPE?"
    ]


def test_the_window_is_a_matter_of_the_tape() -> None:
    assert Settings(tape_frames=5, tape_bytes=6).window == Window(5, 6)
    assert Settings(tape="full").window is None


def test_a_file_then_the_environment_then_options(tmp_path: Path) -> None:
    file = tmp_path / "shadowcat.toml"
    file.write_text(
        'tape = "off"\nsession_ttl = 5\nmax_connections = 7\n[upstream]\nfile = "http://file/mcp"\n'
    )
    environ = {"SHADOWCAT_CONFIG": str(file), "SHADOWCAT_SESSION_TTL": "6.5", "SHADOWCAT_TAPE": "full"}
    deployment = Deployment.load(environ, {"tape": "window", "store": "memory://x"})
    assert (deployment.max_connections, deployment.session_ttl, deployment.tape) == (7, 6.5, "window")
    assert deployment.upstream == {"file": "http://file/mcp"}
    assert deployment.store == "memory://x"


def test_lists_and_upstreams_in_the_environment() -> None:
    environ = {
        "SHADOWCAT_UPSTREAM": f"{URL}, other=http://b/mcp?x=1",
        "SHADOWCAT_ALLOWED_ORIGINS": "https://a, https://b",
        "SHADOWCAT_RESPONSE_TIMEOUT": "3",
    }
    deployment = Deployment.load(environ)
    assert deployment.upstream == {"default": URL, "other": "http://b/mcp?x=1"}
    assert deployment.allowed_origins == ("https://a", "https://b")
    assert deployment.response_timeout == 3


@pytest.mark.parametrize(
    ("environ", "overrides", "says"),
    [
        ({}, {}, "SHADOWCAT_UPSTREAM"),
        ({"SHADOWCAT_UPSTREAM": URL, "SHADOWCAT_TAPE": "long"}, {}, "tape"),
        ({"SHADOWCAT_UPSTREAM": URL, "SHADOWCAT_SESSION_TTL": "soon"}, {}, "session_ttl"),
        ({"SHADOWCAT_UPSTREAM": URL, "SHADOWCAT_SESSION_TTL": "-1"}, {}, "session_ttl"),
        ({"SHADOWCAT_UPSTREAM": "ftp://x"}, {}, "ftp://x"),
        ({"SHADOWCAT_UPSTREAM": URL}, {"colour": "red"}, "colour"),
        ({"SHADOWCAT_CONFIG": "/nowhere/x.toml"}, {}, "does not exist"),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Deployment.load(environ, overrides)


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("upstream = ")
    with pytest.raises(ValueError, match="no TOML"):
        Deployment.load({}, {"config": str(file)})


def test_a_file_may_name_one_upstream(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f'upstream = "{URL}"\n')
    assert Deployment.load({}, {"config": str(file)}).upstream == {"default": URL}


def test_upstreams_by_name() -> None:
    assert parse_upstreams((URL, "a=http://x/mcp?k=v")) == {"default": URL, "a": "http://x/mcp?k=v"}
    with pytest.raises(ValueError, match="given twice"):
        parse_upstreams((URL, URL))


@pytest.mark.parametrize(
    ("name", "url"),
    [("a/b", URL), ("", URL), ("a", "localhost:80"), ("a", "http://"), ("a", "http://a:99999/")],
)
def test_an_upstream_that_is_none(name: str, url: str) -> None:
    with pytest.raises(ValueError, match="upstream"):
        check_upstream(name, url)

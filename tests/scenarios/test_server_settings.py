"""The settings of `conveyor server`: where they come from, which one wins, and what is said of those that are wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli

PRODUCTION = ("--etcd", "http://127.0.0.1:2379", "--nats", "nats://127.0.0.1:4222")


def checked(*arguments: str, **environment: str) -> dict[str, Any]:
    """What --check-config prints, which is a configuration file."""
    return tomllib.loads(shown(*arguments, **environment))


def shown(*arguments: str, **environment: str) -> str:
    """The same as text."""
    done = Cli(**environment)("server", "start", "--check-config", *arguments)
    assert (done.code, done.err) == (0, "")
    return done.out


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "conveyor.toml"
    file.write_text(
        'listen = ["127.0.0.1:1", "127.0.0.2:1"]\nsession_ttl = "20s"\nmax_runs = 5\nlog_level = "debug"\n'
        'etcd = ["http://a:2379"]\nnats = ["nats://b:4222"]\n'
    )
    found = checked(
        *("--config", str(file), "--log-level", "error"),
        CONVEYOR_SESSION_TTL="30s",
        CONVEYOR_LOG_LEVEL="warning",
    )
    assert found["listen"] == ["127.0.0.1:1", "127.0.0.2:1"]
    assert (found["session_ttl"], found["max_runs"], found["log_level"]) == ("30s", 5, "error")
    assert (found["etcd"], found["nats"]) == (["http://a:2379"], ["nats://b:4222"])
    assert (found["sweep_period"], found["run_retention"]) == ("60s", "2592000s")


def test_what_is_shown_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "conveyor.toml"
    file.write_text(shown(*PRODUCTION, "--session-ttl", "1m30s", "--insecure", "--etcd-username", 'o"neil'))
    assert shown("--config", str(file)) == file.read_text()


def test_secrets_are_not_shown() -> None:
    found = shown(*PRODUCTION, CONVEYOR_ETCD_PASSWORD="hunter2", CONVEYOR_NATS_TOKEN="hunter2")
    assert "# etcd_password is set" in found
    assert "# nats_token is set" in found
    assert "hunter2" not in found
    nats = ("nats://jo:hunter2@a:4222", "nats://hunter2@b:4222")
    found = shown("--etcd", "http://127.0.0.1:2379", "--nats", ",".join(nats))
    assert 'nats = ["nats://jo:***@a:4222", "nats://***@b:4222"]' in found
    assert "hunter2" not in found


BAD = {
    "no store": ((), "--etcd"),
    "no broker": (("--etcd", "http://127.0.0.1:2379"), "--nats"),
    "a port that is none": ((*PRODUCTION, "--listen", "127.0.0.1:99999"), "is not an address"),
    "no port": ((*PRODUCTION, "--listen", "127.0.0.1"), "is not an address"),
    "no host's name": ((*PRODUCTION, "--listen", "a..b:7460"), "cannot be the name of a host"),
    "too long a name": ((*PRODUCTION, "--metrics-listen", f"{'x' * 64}:7461"), "cannot be the name of a host"),
    "a bare v6 address": ((*PRODUCTION, "--listen", "::1"), "is not an address"),
    "no address": ((*PRODUCTION, "--listen", ","), "name at least one address"),
    "open to all": ((*PRODUCTION, "--listen", "0.0.0.0:7460"), "--insecure"),
    "open to all by IPv6": ((*PRODUCTION, "--listen", "[::]:7460"), "--insecure"),
    "open by name": ((*PRODUCTION, "--listen", "127.0.0.1:1,host.example:7460"), "host.example"),
    "a bare number": ((*PRODUCTION, "--session-ttl", "90"), "write it with units"),
    "too short": ((*PRODUCTION, "--session-ttl", "1s"), "from 3s to 1h"),
    "a lease too short": ((*PRODUCTION, "--lease-ttl", "1s"), "from 2s to 10m"),
    "below zero": ((*PRODUCTION, "--max-runs", "-1"), "not a whole number from 0 on"),
    "no number": ((*PRODUCTION, "--max-runs", "many"), "many"),
    "an unknown level": ((*PRODUCTION, "--log-level", "loud"), "debug, info, warning, error"),
    "a certificate alone": ((*PRODUCTION, "--tls-cert", "/dev/null"), "go together"),
    "clients' authority alone": ((*PRODUCTION, "--tls-client-ca", "/dev/null"), "tls_cert"),
    "a file that is not there": ((*PRODUCTION, "--etcd-ca", "/nowhere/ca.pem"), "/nowhere/ca.pem cannot be read"),
    "a configuration that is not there": ((*PRODUCTION, "--config", "/nowhere/conveyor.toml"), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_setting_is_named_with_what_to_write(case: str) -> None:
    arguments, told = BAD[case]
    done = Cli()("server", "start", *arguments)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert told in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("listen = 5.5", "listen must be text"),
        ('session-ttl = "5s"', "there is no setting session-ttl"),
        ("max_runs = ", "is not TOML"),
        ('log_level = "loud"', "conveyor.toml: log_level"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "conveyor.toml"
    file.write_text(text)
    done = Cli()("server", "start", *PRODUCTION, "--config", str(file))
    assert (done.code, told in done.err, str(file) in done.err) == (1, True, True)


def test_a_wrong_variable_is_named() -> None:
    done = Cli(CONVEYOR_SWEEP_PERIOD="soon")("server", "start", *PRODUCTION)
    assert done.code == 1
    assert "CONVEYOR_SWEEP_PERIOD" in done.err
    assert "is not a duration" in done.err

"""Where the server is, and how it is reached."""

import pytest

from conveyor.sdk import DEFAULT_ADDRESS, Client, ConfigurationError, Tls
from conveyor.sdk.config import addresses, flag, is_loopback, namespace, proxied, worker_labels


def test_the_default_is_the_server_on_this_machine():
    assert DEFAULT_ADDRESS == "127.0.0.1:7460"
    assert addresses(None, {}) == (DEFAULT_ADDRESS,)
    assert namespace(None, {}) == "default"


def test_the_environment_comes_before_the_default_and_an_argument_before_both():
    environment = {"CONVEYOR_ADDRESS": "a:1, b:2 ,", "CONVEYOR_NAMESPACE": "team"}
    assert addresses(None, environment) == ("a:1", "b:2")
    assert addresses("c:3", environment) == ("c:3",)
    assert addresses(["c:3", "[::1]:4"], environment) == ("c:3", "[::1]:4")
    assert namespace(None, environment) == "team"
    assert namespace("other", environment) == "other"


def test_labels_are_added_by_the_environment():
    environment = {"CONVEYOR_WORKER_LABELS": " os=linux,, zone = a ,expr=a=b,empty="}
    said = {"os": "linux", "zone": "a", "expr": "a=b", "empty": ""}
    assert worker_labels({}, environment) == said
    assert worker_labels({"os": "mac", "gpu": "1"}, environment) == {**said, "os": "mac", "gpu": "1"}
    assert worker_labels({"os": "mac"}, {}) == {"os": "mac"}


@pytest.mark.parametrize("bad", ["linux", "=linux", "os=linux,gpu"])
def test_malformed_labels_are_refused(bad):
    with pytest.raises(ConfigurationError, match="which is not KEY=VALUE"):
        worker_labels({}, {"CONVEYOR_WORKER_LABELS": bad})


def test_a_missing_port_is_the_default_one():
    assert addresses("build.example") == ("build.example:7460",)
    assert addresses("[::1]") == ("[::1]:7460",)


@pytest.mark.parametrize("bad", ["", ",", "http://a:1", "a:b", "a:", ":1", "a:0", "a:65536", "::1", "::1:7460", "a:-1"])
def test_a_malformed_address_is_refused(bad):
    with pytest.raises(ConfigurationError):
        addresses(bad)
    with pytest.raises(ConfigurationError):
        Client(bad)


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "LOCALHOST:1"])
def test_this_machine_is_never_proxied(address):
    assert is_loopback(address)
    assert proxied(address, {"http_proxy": "http://proxy:3128"}) is None


def test_other_machines_are_proxied_unless_switched_off():
    environment = {"https_proxy": "http://proxy:3128"}
    assert proxied("build.example:7460", environment) == "http://proxy:3128"
    assert proxied("build.example:7460", {**environment, "CONVEYOR_NO_PROXY": "1"}) is None
    assert not is_loopback("10.0.0.1:1")
    for excepted in ("other,.example", "build.example"):
        assert proxied("build.example:7460", {**environment, "no_proxy": excepted}) is None
    assert proxied("10.1.2.3:7460", {**environment, "no_proxy": "10.0.0.0/8"}) is None
    assert proxied("11.1.2.3:7460", {**environment, "no_proxy": "10.0.0.0/8, ,x"}) == "http://proxy:3128"


@pytest.mark.parametrize(("text", "on"), [("1", True), ("true", True), ("0", False), ("off", False), ("", False)])
def test_switches(text, on):
    assert flag("CONVEYOR_TLS", {"CONVEYOR_TLS": text}) is on


def test_tls_comes_from_the_environment(tmp_path):
    (tmp_path / "ca.pem").write_bytes(b"ca")
    (tmp_path / "key.pem").write_bytes(b"key")
    ca, key = str(tmp_path / "ca.pem"), str(tmp_path / "key.pem")
    assert Tls.from_environment({}) is None
    assert Tls.from_environment({"CONVEYOR_TLS": "1"}) == Tls()
    named = {"CONVEYOR_TLS_CA": ca, "CONVEYOR_TLS_SERVER_NAME": "conveyor"}
    assert Tls.from_environment(named) == Tls(ca=b"ca", server_name="conveyor")
    with pytest.raises(ConfigurationError, match="needs its key"):
        Tls.from_environment({"CONVEYOR_TLS_CA": ca, "CONVEYOR_TLS_KEY": key})
    with pytest.raises(ConfigurationError, match=r"cannot read.*gone\.pem"):
        Tls.from_environment({"CONVEYOR_TLS_CA": str(tmp_path / "gone.pem")})

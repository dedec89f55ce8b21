"""The store of a training, and the network interface of its ranks."""

import os
import socket

import pytest

from clip4vla.training.network import (
    INTERFACE_VARIABLES,
    LOOPBACK,
    address_of_interface,
    interface_towards,
    open_store,
    use_interface_towards,
)

OTHER_LOOPBACK = "127.0.0.2"
"""Leads to listeners on all interfaces, as the machine's outward addresses do, but not to those on LOOPBACK."""


def test_a_store_listens_on_its_address_only() -> None:
    store = open_store(LOOPBACK, 0, hosts=True)
    store.set("key", "value")
    assert open_store(LOOPBACK, store.port, hosts=False).get("key") == b"value"
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect((OTHER_LOOPBACK, store.port))


def test_a_store_at_another_machines_address_is_an_error() -> None:
    with pytest.raises(OSError, match="Cannot assign requested address"):
        open_store("203.0.113.1", 0, hosts=True)


def test_the_interface_towards_this_machine_is_the_loopback_one() -> None:
    assert address_of_interface(interface_towards(LOOPBACK)) == LOOPBACK
    with pytest.raises(ValueError, match="no interface 'none0' with an IPv4 address"):
        address_of_interface("none0")


@pytest.mark.parametrize(("address", "kept"), [(LOOPBACK, False), (OTHER_LOOPBACK, True)])
def test_an_interface_of_the_environment_counts_between_nodes_only(
    monkeypatch: pytest.MonkeyPatch, address: str, kept: bool
) -> None:
    for variable in INTERFACE_VARIABLES:
        monkeypatch.setenv(variable, "cluster0")
    use_interface_towards(address)
    expected = "cluster0" if kept else interface_towards(LOOPBACK)
    assert [os.environ[variable] for variable in INTERFACE_VARIABLES] == [expected] * 2

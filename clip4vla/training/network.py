"""The network of a training: the store at which its ranks meet, and the interface that they use.

In: the address of the first node. Out: a store that listens on this address only, and the environment in which gloo and
NCCL use its network. On one node the address is the loopback one: no other machine can reach the training.

None of these connections has a login. torch's own rendezvous listens on all interfaces, and torchrun's agent unpickles
what a peer writes there; the rendezvous here does neither.
"""

import os
import socket
from datetime import timedelta

import psutil
from torch.distributed import TCPStore

LOOPBACK = "127.0.0.1"
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Where gloo and NCCL read the network interface that they use."""
STORE_TIMEOUT = timedelta(minutes=15)
"""How long the ranks wait for each other, such as for nodes that start late."""
BACKLOG = 2048
"""Ranks that may connect at the same moment."""


def open_store(address: str, port: int, hosts: bool) -> TCPStore:
    """The store of a training.

    Args:
        address: IPv4 address at which it listens.
        port: with `hosts`, 0 takes a free one.
        hosts: whether this process is the one that serves it; others connect to it.

    Raises:
        OSError: `address` is not one of this machine's, or the port is taken.
    """
    if not hosts:
        return TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT)
    listener = socket.create_server((address, port), backlog=BACKLOG)
    port = listener.getsockname()[1]
    return TCPStore(address, port, is_master=True, timeout=STORE_TIMEOUT, master_listen_fd=listener.detach())


def use_interface_towards(address: str) -> None:
    """Set the interface of gloo and NCCL: the one that leads to `address`, the first node's.

    Between several nodes, one that the environment names already is kept.
    """
    interface = interface_towards(address)
    for variable in INTERFACE_VARIABLES:
        if address == LOOPBACK:
            os.environ[variable] = interface
        else:
            os.environ.setdefault(variable, interface)


def interface_towards(address: str) -> str:
    """Name of the interface by which this machine reaches `address`, such as `lo` or `eth0`. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = probe.getsockname()[0]
    found = (name for name, addresses in psutil.net_if_addrs().items() if own in [each.address for each in addresses])
    return next(found)


def address_of_interface(interface: str) -> str:
    """The first IPv4 address of one of this machine's interfaces.

    Raises:
        ValueError: there is no such interface, or it has none.
    """
    for address in psutil.net_if_addrs().get(interface, ()):
        if address.family is socket.AF_INET:
            return str(address.address)
    raise ValueError(f"this machine has no interface {interface!r} with an IPv4 address")

"""The hosts of a testbed: network namespaces of this machine, each with an address of its own, on one bridge."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gridfs.errors import GridfsError

BRIDGE = "gmbr0"
MASTER = "gpu-master"
_GATEWAY = "10.77.0.254"
_CLONE_NEWNET = 0x40000000


def names(workers: int) -> list[str]:
    """The master's name, then the workers'."""
    return [MASTER, *(f"gpu{number}" for number in range(1, workers + 1))]


def address(host: str) -> str:
    """The host's address: 10.77.0.1 for the master, .2 for gpu1 and so on."""
    return f"10.77.0.{_number(host)}"


def bridge_exists() -> bool:
    """True if the bridge is there, whoever made it."""
    return Path(f"/sys/class/net/{BRIDGE}").exists()


def host_exists(host: str) -> bool:
    """True if there is a network namespace of that name, whoever made it."""
    return Path(f"/run/netns/{host}").exists()


def make(hosts: Sequence[str]) -> None:
    """Make the bridge and the hosts that do not exist yet. Raises GridfsError with what `ip` says."""
    if not bridge_exists():
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        _ip("addr", "add", f"{_GATEWAY}/24", "dev", BRIDGE)
    for host in hosts:
        if not host_exists(host):
            _make_host(host)


def remove(hosts: Sequence[str], *, bridge: bool) -> None:
    """Remove these hosts, and the bridge if told so; what does not exist is no error."""
    for host in hosts:
        _ip("link", "del", _link(host), check=False)  # the kernel removes it with the host too, but later
        _ip("netns", "del", host, check=False)
    if bridge:
        _ip("link", "del", BRIDGE, check=False)


def enter(host: str) -> None:
    """Move this process, and all that it starts from now on, into the host's network; it must have one thread only."""
    with Path(f"/run/netns/{host}").open("rb") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise GridfsError(f"cannot enter the network of {host}: {os.strerror(ctypes.get_errno())}")


def _make_host(host: str) -> None:
    link = _link(host)
    _ip("link", "del", link, check=False)  # what a start that was cut short has left
    _ip("netns", "add", host)
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host)
    _ip("link", "set", link, "master", BRIDGE, "up")
    _ip("-n", host, "addr", "add", f"{address(host)}/24", "dev", "eth0")
    _ip("-n", host, "link", "set", "eth0", "up")
    _ip("-n", host, "link", "set", "lo", "up")
    _ip("-n", host, "route", "add", "default", "via", _GATEWAY)


def _link(host: str) -> str:
    """The name of the bridge's end of the host's cable."""
    return f"v{_number(host)}"


def _number(host: str) -> int:
    return 1 if host == MASTER else int(host.removeprefix("gpu")) + 1


def _ip(*arguments: str, check: bool = True) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise GridfsError("the command ip is missing: install the Debian package iproute2") from None
    if check and done.returncode:
        raise GridfsError(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")

"""Raw TCP between two hosts of a testbed, and the Python streams without FUSE: what a mount stands on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import testbed_hosts as hosts
from bench_measure import MIB, Figures, Unit

ROLES = Path(__file__).with_name("bench_wire_roles.py")
DEADLINE_S = 120.0
UNITS = {
    "tcp_write": Unit("raw TCP, writing", "MB/s"),
    "tcp_read": Unit("raw TCP, reading", "MB/s"),
    "stream_write": Unit("streams without FUSE, writing", "MB/s"),
    "stream_read": Unit("streams without FUSE, reading", "MB/s"),
}
STANDS_ON = {"seq_write": "tcp_write", "seq_read": "tcp_read", "stream_write": "tcp_write", "stream_read": "tcp_read"}
"""Figure -> the figure of raw TCP that it is a share of."""


class WireFailed(Exception):
    """The connection between the two hosts could not be measured; the message says why."""


@contextmanager
def wire(here: str, there: str, size_bytes: int) -> Iterator[Callable[[], Figures]]:
    """A server on host `there`. Yields what measures it from host `here` with so many bytes, once for each call."""
    command = _on(there, "server", hosts.address(there))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ports = server.stdout.readline()
        if not ports:
            raise WireFailed(f"nothing listens on {there}: is the testbed up, and are you root?")

        def measure() -> Figures:
            client = _on(here, "client", hosts.address(there), *map(str, json.loads(ports)), str(max(size_bytes // MIB, 1)))
            done = subprocess.run(client, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
            if done.returncode:
                raise WireFailed(f"{here} could not be measured: {done.stderr.strip()[-300:]}")
            figures: Figures = json.loads(done.stdout)
            return figures

        yield measure


def _on(host: str, *arguments: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{host}", sys.executable, str(ROLES), *arguments]

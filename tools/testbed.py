"""Three hosts on one machine: network namespaces gpu-master, gpu1, gpu2, each a real Ray node with its own address.

The filesystem is mounted from gpu-master, visible to the whole machine. There can be one testbed at a time, because the
hosts' names and addresses are fixed; /run/gridfs-testbed.json says which, and what has to be removed with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import click

import testbed_hosts as hosts
from gridfs import cluster, config, logs
from gridfs.cli import commands, filesystem, mounts
from gridfs.cli.size import Size
from gridfs.cluster import ClusterRecord, NodePlan
from gridfs.errors import GridfsError

STATE = Path("/run/gridfs-testbed.json")
HOME_DEFAULT = "/tmp/gridfs-testbed"
MOUNTPOINT_DEFAULT = "/mnt/gridmem"
MEMORY_DEFAULT = "3GiB"
WORKERS_MAX = 8
_MOUNT_TIMEOUT_S = 60.0
_SPARE_BYTES = 5 * config.GIB // 4


@dataclass(frozen=True)
class Testbed:
    """What a testbed has made, written down before it is made."""

    home: str
    mountpoint: str
    hosts_made: list[str]
    bridge_made: bool
    mountpoint_made: bool
    owner: tuple[int, int] | None = None
    """(process id, when it began) of the process that it is to end with; None if it stays until `down`."""

    @property
    def is_orphaned(self) -> bool:
        """True once its owner has ended, without having taken it down."""
        return self.owner is not None and _began(self.owner[0]) != self.owner[1]

    def save(self) -> None:
        """Put it where the next command finds it."""
        config.write_private(STATE, json.dumps(asdict(self)).encode())

    @staticmethod
    def load() -> Testbed | None:
        """The testbed of this machine, or None."""
        try:
            saved = json.loads(STATE.read_text())
            owner = saved.pop("owner", None)
            return Testbed(**saved, owner=None if owner is None else (owner[0], owner[1]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise GridfsError(f"{STATE} is damaged ({error}): remove it, and the network namespaces") from error


def up(workers: int, memory_bytes: int, mountpoint: str, owner: int | None = None) -> None:
    """Make the hosts, start a filesystem over them, mount it. After a failure nothing is left but logs.

    One whose owner was killed before it could take it down is taken down first.
    """
    with _alone():
        other = Testbed.load()
        if other is not None and other.is_orphaned:
            _say(f"ending the testbed that process {other.owner[0] if other.owner else 0} has left")
            _end(other)
        elif other is not None:
            raise GridfsError(f"a testbed is up already (its home is {other.home}): tools/testbed down ends it")
        filesystem.check_memory(workers, memory_bytes)
        names = hosts.names(workers)
        bed = Testbed(
            home=str(config.home()),
            mountpoint=mountpoint,
            hosts_made=[host for host in names if not hosts.host_exists(host)],
            bridge_made=not hosts.bridge_exists(),
            mountpoint_made=mountpoint not in mounts.mountpoints() and not Path(mountpoint).exists(),
            owner=None if owner is None else (owner, _began(owner)),
        )
        bed.save()
        try:
            _make(bed, names, memory_bytes)
        except BaseException:
            _remove(bed)
            raise


def down() -> bool:
    """End the testbed, whatever state it is in, and remove all that it made; False if there was none."""
    with _alone():
        bed = Testbed.load()
        if bed is None:
            return False
        _end(bed)
        return True


def execute(host: str, command: tuple[str, ...]) -> NoReturn:
    """Become `command` on that host: in its network, and in its memory group if it has one."""
    node = _record().node(host)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
    arguments = cluster.node_command(node, command)
    commands.restore_native_output()
    os.execvpe(arguments[0], arguments, environment)


def kill(host: str) -> None:
    """End all processes of a host at once, with SIGKILL."""
    cluster.kill_node(_record().node(host))


def plan(names: list[str], memory_bytes: int) -> list[NodePlan]:
    """The nodes on these hosts. A worker's processes share a memory limit, so that each has a memory figure of its own.

    The limit leaves room for its Ray processes and for chunks that are being sealed, so that a worker whose share of the
    filesystem is full is not yet under pressure.
    """
    master = NodePlan(names[0], cluster.MASTER, hosts.address(names[0]), 0, network_namespace=names[0])
    workers = (
        NodePlan(host, cluster.WORKER, hosts.address(host), memory_bytes, host, memory_bytes * 8 // 5 + _SPARE_BYTES)
        for host in names[1:]
    )
    return [master, *workers]


def _make(bed: Testbed, names: list[str], memory_bytes: int) -> None:
    hosts.make(names)
    if bed.mountpoint_made:
        Path(bed.mountpoint).mkdir(parents=True)
    mounts.check_mountable(bed.mountpoint)
    hosts.enter(hosts.MASTER)
    endpoints = filesystem.bring_up(plan(names, memory_bytes), _say)
    cluster.disconnect()
    _say(f"mounting at {bed.mountpoint}")
    mounts.write_handoff(bed.mountpoint, endpoints)
    _mount(bed.mountpoint)


def _mount(mountpoint: str) -> None:
    """Start the mount's daemon in this process's network; its standard error goes to a file that outlives this."""
    output = cluster.log_dir() / "mount-start.log"
    with output.open("wb") as file:
        command = mounts.command(mountpoint, "", foreground=False)
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=_MOUNT_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise GridfsError(f"the mount did not come up within {_MOUNT_TIMEOUT_S:.0f} s: see {output}") from None
    if done.returncode or mountpoint not in mounts.mountpoints():
        last = output.read_text(errors="replace").strip().splitlines()[-1:] or ["it left no word"]
        raise GridfsError(f"the mount did not come up: {last[0][:300]} (see {output})")


def _end(bed: Testbed) -> None:
    """Remove a testbed of an earlier command, its home included."""
    ours, os.environ["GRIDFS_HOME"] = os.environ["GRIDFS_HOME"], bed.home
    try:
        _remove(bed)
        shutil.rmtree(bed.home, ignore_errors=True)
    finally:
        os.environ["GRIDFS_HOME"] = ours


def _began(process_id: int) -> int:
    """When the process began, which tells it from a later one with the same number; 0 if there is none (proc(5), starttime)."""
    with suppress(FileNotFoundError):
        return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def _remove(bed: Testbed) -> None:
    for mount in mounts.known():
        with suppress(GridfsError):
            mounts.abandon(mount)
    if cluster.record_path().exists():
        filesystem.take_down(_say, force=True)
    hosts.remove(bed.hosts_made, bridge=bed.bridge_made)
    if bed.mountpoint_made:
        with suppress(OSError):
            Path(bed.mountpoint).rmdir()
    STATE.unlink(missing_ok=True)


def _record() -> ClusterRecord:
    bed = Testbed.load()
    if bed is None:
        raise GridfsError("no testbed is up: run tools/testbed up")
    os.environ["GRIDFS_HOME"] = bed.home
    return ClusterRecord.load()


def _say(step: str) -> None:
    click.echo(f"{time.monotonic() - _STARTED_S:5.1f} s  {step}", err=True)


_STARTED_S = time.monotonic()


@contextmanager
def _alone() -> Iterator[None]:
    if os.geteuid() != 0:
        raise GridfsError("a testbed makes network namespaces, which needs root: run tools/testbed with sudo")
    with STATE.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GridfsError("another tools/testbed up or down is under way: wait until it has ended") from None
        yield


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    r"""Three hosts on one machine, with the filesystem mounted from the first.

    \b
    Example: tools/testbed up --memory 1GiB --mountpoint /mnt/gridmem
             tools/testbed exec gpu1 ip addr
             tools/testbed kill gpu2
             tools/testbed down
    """
    os.environ["GRIDFS_HOME"] = os.environ.get("GRIDFS_TESTBED_HOME") or HOME_DEFAULT
    logs.start(os.environ.get("GRIDFS_LOG") or "warning")
    commands.divert_native_output()


@cli.command("up")
@click.option("--workers", type=click.IntRange(1, WORKERS_MAX), default=2, show_default=True)
@click.option("--memory", type=Size(), default=MEMORY_DEFAULT, show_default=True, help="What each worker gives.")
@click.option("--mountpoint", type=click.Path(), default=MOUNTPOINT_DEFAULT, show_default=True)
@click.option("--owner", type=int, metavar="PID", help="A later `up` may replace it once this process has ended.")
def _up(workers: int, memory: int, mountpoint: str, owner: int | None) -> None:
    """Make the hosts and the filesystem, and mount it."""
    up(workers, memory, mounts.canonical(mountpoint), owner)
    _say(f"up: mounted at {mountpoint}")


@cli.command("down")
def _down() -> None:
    """End the testbed and remove everything it made, whatever state it is in."""
    _say("down" if down() else "there was no testbed")


@cli.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def _exec(host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST; its exit status is this one's."""
    execute(host, command)


@cli.command("kill")
@click.argument("host")
def _kill(host: str) -> None:
    """End all processes of HOST with SIGKILL; it stays dead until the testbed is down."""
    kill(host)


if __name__ == "__main__":
    commands.run(cli, "testbed")

"""Shows the filesystem at work: local Ray nodes, a mount, a file of 1 GiB copied in and read back, and where it lies.

It runs the commands that a person would type, says each in one line, and takes everything down again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from gridfs import cluster, config, logs
from gridfs.cli import commands, filesystem, mounts
from gridfs.cluster import ClusterRecord
from gridfs.errors import GridfsError

MOUNTPOINT_DEFAULT = "/mnt/gridmem"
WORKERS = 2
MEMORY_BYTES = 5 * config.GIB // 4
"""Of each worker: the file, wherever its chunks go, and some room."""
FILE_BYTES = config.GIB
BLOCK_BYTES = 4 * config.MIB
STORE_EMPTY_BYTES = config.MIB
"""Ray writes some pages of a store when it makes it; a chunk would be eight times this."""
POLL_S = 0.1
INTERRUPT_TIMEOUT_S = 40.0
COMMAND_TIMEOUT_S = 180.0

Advance = Callable[[int], None]
"""Takes how many bytes of a step are done."""
Say = Callable[[str], None]
"""Takes the line that stays of a step."""

GRIDFS = Path(sys.executable).with_name("gridfs")


class Demo:
    """The steps, what they print, and what undoes them."""

    def __init__(self, mountpoint: str, console: Console) -> None:
        """Nothing is done yet; `close` undoes what will be."""
        self.mountpoint, self.console = mountpoint, console
        self.file = Path(mountpoint) / "demo-1GiB"
        self.scratch = ExitStack()
        """Removes the original file."""
        self._system = ExitStack()
        """Takes the filesystem down and removes the mountpoint."""

    def run(self) -> None:
        """All steps. Raises GridfsError with the reason when one does not do what it should."""
        self.check()
        self._system.callback(self._remove_mountpoint, made=self._make_mountpoint())
        self._system.callback(self._take_down)
        self.gridfs("up", "--workers", str(WORKERS), "--memory", f"{MEMORY_BYTES // config.MIB}MiB")
        self.gridfs("mount", self.mountpoint)
        original, digest = self.make_file()
        self.copy(original)
        self.read_back(digest)
        self.show_chunks()
        self.show_master()

    def close(self, *, keep: bool) -> None:
        """Undo everything, or, with `keep`, all but the filesystem and its mount."""
        with _undisturbed():
            self.scratch.close()
            if keep:
                self._system.pop_all()
            else:
                self._system.close()

    def check(self) -> None:
        """Raise GridfsError if the demo cannot work here."""
        if os.geteuid() != 0:
            raise GridfsError("gridfs up and gridfs mount need root: run sudo tools/demo")
        if cluster.record_path().exists():
            raise GridfsError("a filesystem is up already, and the demo starts its own: run gridfs down first")
        filesystem.check_memory(WORKERS, MEMORY_BYTES)
        if Path(self.mountpoint).exists() or self.mountpoint in mounts.mountpoints():
            mounts.check_mountable(self.mountpoint)
        free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
        if free_bytes < FILE_BYTES:
            raise GridfsError(
                f"the demo's file takes {config.format_size(FILE_BYTES)}, and {tempfile.gettempdir()} has "
                f"{config.format_size(free_bytes)} free: set TMPDIR to another folder"
            )

    # -- the steps ---------------------------------------------------------------------------------------------------

    def gridfs(self, *arguments: str) -> None:
        """Run the command gridfs, say what was run and how long it took."""
        title = shlex.join(["gridfs", *arguments])
        with self._step(title) as (_, say):
            done = _run([str(GRIDFS), *arguments])
            if done.returncode:
                raise GridfsError(f"{title} failed: {_last_line(done.stderr).removeprefix('gridfs: ')}")
            say(title)

    def make_file(self) -> tuple[Path, str]:
        """Random bytes off the mount; returns the file and their SHA-256."""
        folder = self.scratch.enter_context(tempfile.TemporaryDirectory(prefix="gridfs-demo-"))
        original, digest = Path(folder) / "original", hashlib.sha256()
        with self._step("making random bytes", FILE_BYTES) as (advance, say), original.open("wb") as output:
            for offset in range(0, FILE_BYTES, BLOCK_BYTES):
                block = os.urandom(BLOCK_BYTES)
                digest.update(block)
                output.write(block)
                advance(offset + BLOCK_BYTES)
            say(f"made {original}, {config.format_size(FILE_BYTES)} of random bytes")
        return original, digest.hexdigest()

    def copy(self, original: Path) -> None:
        """Copy the file in with `cp`."""
        command = ["cp", str(original), str(self.file)]
        with self._step(shlex.join(command), FILE_BYTES) as (advance, say):
            began_s = time.monotonic()
            done = _run(command, lambda: advance(_size_of(self.file)))
            if done.returncode:
                raise GridfsError(f"{shlex.join(command)} failed: {_last_line(done.stderr)}")
            say(f"{shlex.join(command)}: {_rate(began_s)}")

    def read_back(self, digest: str) -> None:
        """Read the file with `cat | sha256sum` from the workers, and compare."""
        command = f"cat {shlex.quote(str(self.file))} | sha256sum"
        with self._step(command, FILE_BYTES) as (advance, say):
            _forget_cached(self.file)
            began_s = time.monotonic()
            with subprocess.Popen(["cat", self.file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as cat:
                done = _run(["sha256sum"], lambda: advance(_position(cat.pid)), stdin=cat.stdout)
                complaint = cat.stderr.read() if cat.stderr else ""
            if cat.returncode or done.returncode:
                raise GridfsError(f"{command} failed: {_last_line(complaint or done.stderr)}")
            if done.stdout.split()[0] != digest:
                raise GridfsError(f"{self.file} came back with other bytes than were copied in")
            say(f"{command}: {_rate(began_s)}, the same {digest[:12]}… as the original")

    def show_chunks(self) -> None:
        """Print which node holds how many of the file's chunks."""
        layout = json.loads(os.getxattr(self.file, "user.gridfs.layout"))
        held: dict[str, int] = layout["nodes"]
        expected = -(-FILE_BYTES // layout["chunk_size"])
        if sum(held.values()) != expected or cluster.MASTER in held:
            raise GridfsError(f"the layout is not as it should be, {expected} chunks on the workers: {layout}")
        shares = ", ".join(f"{count} on {host}" for host, count in sorted(held.items()))
        chunk = config.format_size(layout["chunk_size"])
        self._say(f"getfattr -n user.gridfs.layout {self.file}: {expected} chunks of {chunk}, {shares}")

    def show_master(self) -> None:
        """Print what the object store of each node holds: nothing on the master."""
        done = _run([str(GRIDFS), "status", "--json"])
        if not done.stdout.startswith("{"):
            raise GridfsError(f"gridfs status failed: {_last_line(done.stderr)}")
        status = json.loads(done.stdout)
        chunks = {node["host"]: node["chunks"] for node in status["nodes"]}
        stores = {node.host: _store_used_bytes(node.pid) for node in ClusterRecord.load().nodes}
        for host, used_bytes in stores.items():
            self._say(f"{host}: {chunks[host]} chunks, {config.format_size(used_bytes)} in its object store")
        if chunks[cluster.MASTER] or stores[cluster.MASTER] > STORE_EMPTY_BYTES:
            raise GridfsError("the master holds data, which it should not")
        if status["problems"]:
            raise GridfsError(f"the filesystem is not well: {status['problems'][0]}")

    # -- undoing -----------------------------------------------------------------------------------------------------

    def _take_down(self) -> None:
        if self.mountpoint in mounts.mountpoints():
            with suppress(GridfsError):  # down --force takes it away in any case
                self.gridfs("umount", self.mountpoint)
        if cluster.record_path().exists():
            self.gridfs("down", "--force")

    def _make_mountpoint(self) -> bool:
        """True if it was not there."""
        if Path(self.mountpoint).exists():
            return False
        Path(self.mountpoint).mkdir(parents=True)
        return True

    def _remove_mountpoint(self, *, made: bool) -> None:
        if made:
            with suppress(OSError):
                Path(self.mountpoint).rmdir()

    # -- lines and bars ----------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, title: str, total_bytes: int | None = None) -> Iterator[tuple[Advance, Say]]:
        """A bar while the step lasts; yields what moves it, and what says the line that stays."""
        sizes = (DownloadColumn(binary_units=True),) if total_bytes else ()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), *sizes, TimeElapsedColumn())
        began_s, lines = time.monotonic(), list[str]()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=total_bytes)
            yield lambda done_bytes: progress.update(task, completed=done_bytes), lines.append
        for line in lines:
            self._say(line, f"{time.monotonic() - began_s:5.1f} s")

    def _say(self, line: str, took: str = "") -> None:
        self.console.print(f"{took:>7}  {line}", soft_wrap=True, markup=False, highlight=False)


def _run(
    command: Sequence[str], watch: Callable[[], None] = lambda: None, stdin: object = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, `watch` being called meanwhile. Interrupted, it interrupts the program and waits for it.

    The program is in a session of its own, so that a Ctrl-C reaches it through here only: `gridfs up` undoes itself then.
    """
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdin=stdin, stdout=output, stderr=errors, start_new_session=True)  # type: ignore[call-overload]
        try:
            while child.poll() is None:
                watch()
                if time.monotonic() > deadline:
                    raise GridfsError(f"{shlex.join(command)} has not ended within {COMMAND_TIMEOUT_S:.0f} s")
                with suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
        finally:
            _end(child)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, child.returncode, output.read(), errors.read())


def _end(child: subprocess.Popen[bytes]) -> None:
    """See to it that a program has ended: it may clean up, for a while."""
    with _undisturbed():
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(INTERRUPT_TIMEOUT_S)
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that ask to end are ignored: what is under way here is the ending."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _forget_cached(path: Path) -> None:
    """Make the bytes durable and drop the kernel's copy, so that the next read comes from the workers."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _position(pid: int) -> int:
    """How far a program has read the first file it opened."""
    try:
        return int(Path(f"/proc/{pid}/fdinfo/3").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _store_used_bytes(pid: int) -> int:
    """What lies in the object store of a local node: its /dev/shm is its own."""
    figures = os.statvfs(Path("/proc", str(pid), "root", "dev/shm"))
    return (figures.f_blocks - figures.f_bfree) * figures.f_frsize


def _rate(began_s: float) -> str:
    return f"{FILE_BYTES / 1e6 / (time.monotonic() - began_s):,.0f} MB/s"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it left no word"])[-1]


def _how_to_go_on(mountpoint: str) -> str:
    """What to type after `--keep`."""
    home = f"GRIDFS_HOME={shlex.quote(os.environ['GRIDFS_HOME'])} " if "GRIDFS_HOME" in os.environ else ""
    program = home + ("gridfs" if shutil.which("gridfs") == str(GRIDFS) else shlex.quote(str(GRIDFS)))
    point = shlex.quote(mountpoint)
    use = f"It stays up: use {point} as any folder; {program} status shows how it is."
    return f"{use}\nTo stop it: {program} umount {point} && {program} down"


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: sudo tools/demo --keep")
@click.option("--mountpoint", type=click.Path(), default=MOUNTPOINT_DEFAULT, show_default=True, help="Made if it is missing.")
@click.option("--keep", is_flag=True, help="Leave the filesystem running, and say how to go on and how to stop it.")
def main(mountpoint: str, keep: bool) -> None:
    """Start a master and two workers, mount, copy 1 GiB in, read it back, show where it lies, take all down."""
    commands.divert_native_output()
    logs.start("warning")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    demo, worked = Demo(mounts.canonical(mountpoint), Console()), False
    try:
        demo.run()
        worked = True
    finally:
        demo.close(keep=keep and worked)
    click.echo(_how_to_go_on(demo.mountpoint) if keep else "All of it worked, and nothing is left of it.")


if __name__ == "__main__":
    commands.run(main, "demo")

"""The commands of `gridfs`: what they are called, take and print. What they do is in the files beside this one."""

from __future__ import annotations

import json
import logging
import os
import sys

import click
from rich.console import Console

from gridfs import config, logs
from gridfs.cli import checking, offload
from gridfs.cli.endpoints import resolve
from gridfs.cli.progress import progress
from gridfs.cli.size import Size
from gridfs.errors import GridfsError

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USAGE, EXIT_BUG = 1, 2, 70
WORKERS_DEFAULT, WORKERS_MAX = 2, 32
_MEMORY_SHARE = 2
"""Unless told otherwise, the workers together get this part of the memory that is free: 1/2."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done; GRIDFS_LOG=debug does the same.")
def cli(verbose: bool) -> None:
    """A filesystem in the spare memory of a Ray cluster's workers.

    \b
    Example: gridfs up --workers 2 --memory 3GiB
             gridfs mount /mnt/gridmem
    """
    if verbose:
        os.environ["GRIDFS_LOG"] = "debug"
    divert_native_output()  # first, because the log goes to the standard error that this leaves to us
    try:
        logs.start(os.environ.get("GRIDFS_LOG") or "warning")
    except ValueError:
        raise GridfsError(f"GRIDFS_LOG={os.environ['GRIDFS_LOG']} is no level: debug, info, warning or error") from None


@cli.command()
@click.option("--workers", type=click.IntRange(1, WORKERS_MAX), help=f"How many local workers.  [default: {WORKERS_DEFAULT}]")
@click.option("--memory", type=Size(), help="Memory each worker gives.  [default: half of what is free, shared by the workers]")
@click.option("--address", metavar="HOST:PORT", help="Use the Ray cluster that exists at this address; start no nodes.")
def up(workers: int | None, memory: int | None, address: str | None) -> None:
    """Bring a filesystem up.

    Starts a local Ray cluster of a master and some workers (needs root), or uses one that exists. In that case this
    machine has to be one of its nodes, and --memory (default: 80 % of its object store) is what each worker gives.

    \b
    Example: gridfs up --workers 2 --memory 3GiB
             gridfs up --address 10.0.0.1:6379
    """
    from gridfs.cli import filesystem

    with progress() as say:
        if address is not None:
            if workers is not None:
                raise click.UsageError("--workers starts local nodes, --address uses a cluster that exists: give one of them")
            filesystem.join(address, memory, say)
        else:
            count = workers or WORKERS_DEFAULT
            each_bytes = memory or filesystem.available_bytes() // _MEMORY_SHARE // count
            filesystem.bring_up(filesystem.local_plans(count, each_bytes), say)
        _disconnect()
    click.echo("up: gridfs mount /mnt/gridmem mounts it, gridfs status shows it, gridfs down ends it")


@cli.command()
@click.argument("mountpoint", type=click.Path())
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Mount options, separated by commas.")
@click.option("--memory", type=Size(), help="Most memory for bytes on their way, 64MiB at least.  [default: 256MiB]")
@click.option("--write-window", type=Size(), help="What of it may be written and not yet with the workers.  [default: 64MiB]")
@click.option("--replicas", type=click.IntRange(1, 8), help="Copies of each chunk, where a file does not say.  [default: 1]")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground, and log to standard error.")
@click.option("--address", metavar="HOST:PORT", help="On another host: the Ray cluster whose filesystem is to be mounted here.")
def mount(
    mountpoint: str,
    options: tuple[str, ...],
    memory: int | None,
    write_window: int | None,
    replicas: int | None,
    foreground: bool,
    address: str | None,
) -> None:
    """Mount the filesystem at MOUNTPOINT, an existing directory.

    Any number of hosts may mount it. On one where it was not brought up, --address says where it is the first time.
    -o memory=SIZE, write-window=SIZE and replicas=N are the same as the options of those names.

    \b
    Example: gridfs mount /mnt/gridmem
             gridfs mount --memory 512MiB --write-window 128MiB /mnt/gridmem
             gridfs mount --address 10.0.0.1:6379 /mnt/gridmem
    """
    from gridfs import cluster
    from gridfs.cli import filesystem, mounts

    if address is not None:
        filesystem.visit(address)
    cluster.ClusterRecord.load()  # what is wrong with the mountpoint matters only where something is up
    point = mounts.canonical(mountpoint)
    mounts.check_mountable(point)
    mounts.write_handoff(point, resolve())
    restore_native_output()
    numbers = mounts.number_options(memory, write_window, replicas)
    mounts.become_daemon(point, ",".join([*options, *numbers]), foreground=foreground)


@cli.command(short_help="Unmount MOUNTPOINT, once everything written is with the workers.")
@click.argument("mountpoint", type=click.Path())
def umount(mountpoint: str) -> None:
    """Unmount MOUNTPOINT, after everything written is with the workers; a dead mount is cleaned up.

    \b
    Example: gridfs umount /mnt/gridmem
    """
    from gridfs.cli import mounts

    click.echo(mounts.unmount(mounts.canonical(mountpoint)))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes.")
def status(as_json: bool) -> None:
    """Show nodes, capacity, use, chunks, mounts and health. Exits with 1 if something is wrong.

    \b
    Example: gridfs status
             gridfs status --json | jq .used_bytes
    """
    from gridfs import cluster
    from gridfs.cli import status as page

    gathered = page.gather(cluster.ClusterRecord.load())
    if as_json:
        click.echo(json.dumps(gathered, indent=2))
    else:
        page.show(gathered, Console())
    if not gathered["healthy"]:
        sys.exit(EXIT_FAILED)


@cli.command()
@click.option("--force", is_flag=True, help="Also while it is mounted: what is not written yet is lost.")
def down(force: bool) -> None:
    """End everything that `gridfs up` started. The files in the filesystem are gone with it.

    \b
    Example: gridfs umount /mnt/gridmem && gridfs down
    """
    from gridfs.cli import filesystem

    with progress() as say:
        filesystem.take_down(say, force=force)
    click.echo("down")


cli.add_command(checking.fsck)
cli.add_command(checking.scrub)
cli.add_command(checking.meta)
cli.add_command(offload.offload)
cli.add_command(offload.jobs)


def run(command: click.Command = cli, name: str = "gridfs") -> None:
    """Run the command line; an error becomes one sentence and an exit status, never a traceback."""
    try:
        status = command.main(prog_name=name, standalone_mode=False)
        if status:  # of a click.exceptions.Exit, which click turns into what main returns
            _leave(status)
    except click.ClickException as error:
        error.show()
        _leave(EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        _complain(name, "interrupted")
        _leave(130)
    except GridfsError as error:
        log.debug("failed", exc_info=True)
        _complain(name, str(error))
        _leave(EXIT_FAILED)
    except PermissionError as error:
        _complain(name, f"no permission for {error.filename}: run this as the user who ran gridfs up, or as root")
        _leave(EXIT_FAILED)
    except Exception:  # noqa: BLE001 - the last resort: whatever it is, a person gets a sentence
        _complain(name, f"this should not have happened; please report it with {_write_traceback()}")
        _leave(EXIT_BUG)


def _complain(name: str, sentence: str) -> None:
    click.echo(f"{name}: {sentence}", err=True)


def _leave(status: int) -> None:
    """End at once: a thread that waits for a dead cluster inside Ray would hold up an ordinary exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def divert_native_output() -> None:
    """Send what is written to file descriptor 2 to home()/log/ray.log, and keep `sys.stderr` as it is.

    Ray's native part complains there while it tries again and again; what it means for a person is said once, by us.
    """
    log_dir = config.home() / "log"
    path = log_dir / "ray.log" if os.access(log_dir, os.W_OK) else os.devnull
    sys.stderr.flush()
    terminal = os.dup(2)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 2)
    os.close(target)
    sys.stderr = open(terminal, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115 - open until the end


def restore_native_output() -> None:
    """Undo `divert_native_output`, before another program takes this process over."""
    os.dup2(sys.stderr.fileno(), 2)


def _write_traceback() -> str:
    """Put the traceback into the log; returns where that is."""
    path = config.home() / "log" / "cli.log"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs.start("debug", path)
    except OSError:
        return "the output of the same command with -v"
    log.exception("unexpected: %s", " ".join(sys.argv))  # noqa: LOG004 - called where an exception is handled
    return str(path)


def _disconnect() -> None:
    from gridfs import cluster

    cluster.disconnect()

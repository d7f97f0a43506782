"""The commands that have jobs done where the bytes are: offload, and jobs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridfs.cli.job_files import Absent, JobFiles, Status
from gridfs.cli.progress import bar
from gridfs.cli.size import Size
from gridfs.config import format_size
from gridfs.errors import GridfsError

EXIT_FAILED, EXIT_CANCELLED = 1, 130
LISTED = 50
_TIMES = ("submitted", "started", "ended")
_SIZES = ("size", "progress", "bytes_local", "bytes_network", "output_bytes")
_STYLES = {"done": "green", "failed": "red", "running": "cyan"}

_mountpoint = click.option("--mountpoint", metavar="DIR", help="The mount whose jobs are meant, if there are several.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(short_help="Have a job done on FILE where its bytes are.")
@click.argument("file", type=click.Path())
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND]")
@click.option("--function", metavar="TEXT", help="A built-in function with its arguments, such as 'grep -c ERROR'.")
@click.option("--python", metavar="MODULE:NAME", help="A Python function of a module that is allowed.")
@click.option("--shell", metavar="TEXT", help="A command line for the shell, where that is allowed.")
@click.option("--args", "arguments", metavar="JSON", help="A list: more arguments of --function or --python.")
@click.option("--output", metavar="PATH", help="Where the result goes: beside FILE, unless it is a path in the mount.")
@click.option("--overwrite", is_flag=True, help="The output may replace a file.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End it after that long.")
@click.option("--memory", type=Size(), help="Most memory it may take.")
@click.option("--idempotent", is_flag=True, help="It may be run again if its node dies.")
@click.option("--split", is_flag=True, help="Run map of --python on every node at once, over its own chunks.")
@click.option("--wait", is_flag=True, help="Wait for its end, print its output, exit as it does.")
def offload(
    file: str,
    command: tuple[str, ...],
    function: str | None,
    python: str | None,
    shell: str | None,
    arguments: str | None,
    output: str | None,
    timeout: float | None,
    memory: int | None,
    wait: bool,
    **flags: bool,
) -> None:
    """Have a job done on FILE where its bytes are, and print the job's number.

    COMMAND gets the content on its standard input; {} in it is replaced by a path with the content. Other ways to say what
    is to be done are --function, --python and --shell.

    \b
    Example: gridfs offload /mnt/gridmem/big.iso --function sha256 --wait
             gridfs offload big.iso --output big.zst -- zstd -3
             gridfs offload app.log --wait -- awk '{ s += $1 } END { print s }'
    """
    kinds = {"run": list(command) or None, "function": function, "python": python, "shell": shell}
    chosen = [kind for kind in kinds if kinds[kind] is not None]
    if len(chosen) != 1:
        raise click.UsageError("say what is to be done: one of -- COMMAND, --function, --python and --shell")
    jobs = JobFiles.of_file(file)
    request: dict[str, Any] = {"run": shell, "shell": True} if shell is not None else {chosen[0]: kinds[chosen[0]]}
    optional = {"timeout_s": timeout, "memory": memory, "output": output and _output(output, jobs), "args": _list(arguments)}
    request |= {key: value for key, value in optional.items() if value is not None}
    job = jobs.submit(file, request | {key: True for key in flags if flags[key]})
    if not wait:
        click.echo(job)
        return
    _end_as(jobs, _waited(jobs, job))


def _output(path: str, jobs: JobFiles) -> str:
    """The path as the mount takes it: from its root, or relative to the file."""
    if not os.path.isabs(path):
        return path
    below = os.path.relpath(path, jobs.mountpoint)
    if below.startswith(".."):
        raise GridfsError(f"{path} is not in {jobs.mountpoint}: the output goes into the filesystem of the file")
    return f"/{below}"


def _list(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        raise click.UsageError("--args takes a JSON list, such as '[3]'") from None


# -- jobs ------------------------------------------------------------------------------------------------------------


@click.group(short_help="List jobs, look at one, wait for it, or cancel it.", invoke_without_command=True)
@_mountpoint
@_as_json
@click.pass_context
def jobs(context: click.Context, mountpoint: str | None, as_json: bool) -> None:
    """List jobs, look at one, wait for it, or cancel it: of your own, or of anybody's if you are root.

    \b
    Example: gridfs jobs
             gridfs jobs wait 17
             gridfs jobs logs 17
    """
    if context.invoked_subcommand is None:
        context.invoke(list_jobs, mountpoint=mountpoint, as_json=as_json)
    elif mountpoint or as_json:
        raise click.UsageError(f"write options behind the command: gridfs jobs {context.invoked_subcommand} --help names them")


@jobs.command("list", short_help="List jobs, newest first.")
@click.option("--limit", type=click.IntRange(1), default=LISTED, show_default=True, help="How many, at most.")
@_mountpoint
@_as_json
def list_jobs(limit: int = LISTED, mountpoint: str | None = None, as_json: bool = False) -> None:
    """List jobs, newest first.

    \b
    Example: gridfs jobs list
             gridfs jobs list --json | jq -r '.[] | select(.state == "failed") | .id'
    """
    files = JobFiles.of_machine(mountpoint)
    found = list(islice(_statuses(files), limit))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("job", "state", "file", "request", "progress", "nodes", "submitted")
    for status in found:
        table.add_row(*(Text(cell) for cell in _cells(status)), style=_STYLES.get(status["state"], ""))
    Console().print(table)


def _statuses(files: JobFiles) -> Iterator[Status]:
    """Newest first, without those that are forgotten just now."""
    for job in files.ids():
        with suppress(Absent):
            yield files.status(job)


def _cells(status: Status) -> list[str]:
    size, progress = (_readable(key, status[key]) for key in ("size", "progress"))
    if status["progress"] != status["size"]:
        progress = f"{progress} of {size}"
    nodes, submitted = _readable("nodes", status["nodes"]), _readable("submitted", status["submitted"])
    told = (_readable(key, status[key]) for key in ("id", "state", "file", "request"))
    return [*told, progress, nodes, submitted]


def _readable(key: str, value: Any) -> str:
    """What `status` has under that key, for people: times are local ones."""
    if key in _TIMES:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if key in _SIZES:
        return format_size(value)
    if key == "nodes":
        return ", ".join(value)
    return harmless(value) if isinstance(value, str) else json.dumps(value)


def harmless(text: str) -> str:
    """The text with what a terminal would obey, and what begins a line, spelled out: another user may have chosen it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@jobs.command("show", short_help="Tell all that is known of a job.")
@click.argument("job", type=click.IntRange(1))
@_mountpoint
@_as_json
def show_job(job: int, mountpoint: str | None, as_json: bool) -> None:
    """Tell all that is known of a job.

    \b
    Example: gridfs jobs show 17
             gridfs jobs show 17 --json | jq .result
    """
    status = JobFiles.of_machine(mountpoint).status(job)
    if as_json:
        click.echo(json.dumps(status, indent=2))
        return
    for key, value in status.items():
        if value not in (None, "", []) and (key != "output_bytes" or status["output"]):
            click.echo(f"{key + ':':<15}{_readable(key, value)}")


@jobs.command("wait", short_help="Wait until a job has ended.")
@click.argument("job", type=click.IntRange(1))
@_mountpoint
@_as_json
def wait_for_job(job: int, mountpoint: str | None, as_json: bool) -> None:
    """Wait until a job has ended, print what it left, and exit as it did: 130 if it was cancelled.

    \b
    Example: gridfs jobs wait 17
    """
    files = JobFiles.of_machine(mountpoint)
    status = _waited(files, job)
    if as_json:
        click.echo(json.dumps(status, indent=2))
        raise click.exceptions.Exit(exit_status(status))
    _end_as(files, status)


@jobs.command("cancel", short_help="End a job.")
@click.argument("job", type=click.IntRange(1))
@_mountpoint
def cancel_job(job: int, mountpoint: str | None) -> None:
    """End a job, with all that it has started.

    \b
    Example: gridfs jobs cancel 17
    """
    if not JobFiles.of_machine(mountpoint).cancel(job):
        raise GridfsError(f"job {job} has ended already: gridfs jobs show {job} tells how")
    click.echo(f"job {job} is cancelled")


@jobs.command("logs", short_help="Print what a job has printed.")
@click.argument("job", type=click.IntRange(1))
@_mountpoint
def print_logs(job: int, mountpoint: str | None) -> None:
    """Print what a job has printed: its standard output and its standard error, each where it belongs.

    \b
    Example: gridfs jobs logs 17
    """
    _print_streams(JobFiles.of_machine(mountpoint), job)


def _waited(files: JobFiles, job: int) -> Status:
    with bar() as (say, advance):
        say(f"job {job}")
        try:
            return files.wait(job, advance)
        except KeyboardInterrupt:
            click.echo(
                f"gridfs: job {job} goes on: gridfs jobs wait {job} waits again, gridfs jobs cancel {job} ends it", err=True
            )
            raise


def _end_as(files: JobFiles, status: Status) -> NoReturn:
    """Print what the job has left, and exit as it did."""
    _print_streams(files, status["id"])
    if (result := status["result"]) is not None:
        click.echo(result if isinstance(result, str) else json.dumps(result))
    if status["state"] != "done":
        click.echo(f"gridfs: job {status['id']} {_how(status)}", err=True)
    raise click.exceptions.Exit(exit_status(status))


def _print_streams(files: JobFiles, job: int) -> None:
    sys.stdout.buffer.write(files.read(job, "stdout"))
    sys.stdout.flush()
    click.echo(files.read(job, "stderr").decode(errors="replace"), err=True, nl=False)


def _how(status: Status) -> str:
    if status["state"] == "cancelled":
        return "was cancelled"
    return f"has failed: {harmless(status['error']) or 'its exit status is ' + str(status['exit_code'])}"


def exit_status(status: Status) -> int:
    """What a process that stands for the job ends with: as it did, 1 if it failed without a status, 130 if cancelled."""
    if status["state"] == "cancelled":
        return EXIT_CANCELLED
    code: int = status["exit_code"] or 0
    return code if status["state"] == "done" else code or EXIT_FAILED

"""The commands that look at a filesystem from outside its mounts: fsck, scrub, meta dump and meta load."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gridfs.cli.endpoints import resolve
from gridfs.cli.progress import bar, progress
from gridfs.cli.size import Size
from gridfs.errors import GridfsError

EXIT_FAULTS, EXIT_UNCHECKED = 1, 2
_STANDARD = "-"

if TYPE_CHECKING:
    from gridfs.fsck.report import Report


@click.command(short_help="Check the inode table against the chunk servers.")
@click.option("--repair", is_flag=True, help="Mend what is safe to mend, and say what was done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fsck(repair: bool, as_json: bool) -> None:
    """Check the inode table against the chunk servers, while the filesystem is in use. Changes nothing without --repair.

    --repair drops chunks that belong to no file, cuts chunks that are longer than their file, and ends inodes that nobody can
    reach. Files whose bytes are lost are listed and stay. It compares names and lengths, and reads no byte: gridfs scrub does,
    and makes copies of chunks that lack some.

    Exits with 0 if all is well or was mended, with 1 if a fault is left, and with 2 if it could not be checked.

    \b
    Example: gridfs fsck
             gridfs fsck --repair
             gridfs fsck --json | jq -r '.faults[].paths[]'
    """
    from gridfs.fsck import run

    try:
        endpoints = resolve()
        with progress() as say:
            report = run.check_now(endpoints, say, mend=repair)
    except GridfsError as error:
        click.echo(f"gridfs: {error}", err=True)
        raise click.exceptions.Exit(EXIT_UNCHECKED) from error
    _tell(report, as_json=as_json)


@click.command(short_help="Verify the checksum of every copy of every chunk.")
@click.option("--rate", type=Size(), default="256MiB", show_default=True, help="Bytes a second, over all chunk servers.")
@click.option("--no-repair", is_flag=True, help="Change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scrub(rate: int, no_repair: bool, as_json: bool) -> None:
    """Have the chunk servers verify every copy of every chunk, while the filesystem is in use, and mend what is wrong.

    A copy that is bad or missing is withdrawn where there is a good one. Copies that are wanting are made anew: by the eldest
    mount, or by this command while nothing is mounted. Bytes of which no good copy is left are listed by file. Chunks that are
    being written have no checksum yet, and are passed over.

    Exits with 0 if all is well or was mended, with 1 if a fault is left, and with 2 if nothing could be verified.

    \b
    Example: gridfs scrub
             gridfs scrub --rate 50MiB --no-repair
             gridfs scrub --json | jq -r '.faults[].paths[]'
    """
    from gridfs.fsck import scrub

    try:
        endpoints = resolve()
        with bar() as (say, advance):
            report = scrub.scrub_now(endpoints, say, advance, rate_bytes_s=rate, mend=not no_repair)
    except GridfsError as error:
        click.echo(f"gridfs: {error}", err=True)
        raise click.exceptions.Exit(EXIT_UNCHECKED) from error
    _tell(report, as_json=as_json)


def _tell(report: Report, *, as_json: bool) -> None:
    """Print the report, and exit with EXIT_FAULTS if a fault is left."""
    if as_json:
        click.echo(json.dumps(report.values(), indent=2))
    else:
        for line in report.lines():
            click.echo(line)
    if report.left:
        raise click.exceptions.Exit(EXIT_FAULTS)


@click.group(short_help="Write the inode table to a file, or load it.")
def meta() -> None:
    """Write the inode table to a file, or load it from one; docs/DUMP.md describes the file.

    \b
    Example: gridfs meta dump table.jsonl
             gridfs meta load table.jsonl
    """


@meta.command("dump", short_help="Write the inode table to FILE.")
@click.argument("file", type=click.Path())
def dump_table(file: str) -> None:
    """Write the inode table to FILE, "-" for standard output. It holds names and attributes, no bytes of files.

    \b
    Example: gridfs meta dump table.jsonl
             gridfs meta dump - | jq -r 'select(.row == "name") | .name'
    """
    from gridfs.meta import dump, thin

    with progress() as say:
        table = thin.fetch(resolve(), say)
        say("writing the dump")
        _write(file, dump.dump(table, time.time_ns()))


@meta.command("load", short_help="Load the inode table from FILE.")
@click.argument("file", type=click.Path())
def load_table(file: str) -> None:
    """Load the inode table from FILE, "-" for standard input, into a filesystem that is empty and not mounted.

    All of it is loaded, or nothing. Bytes of files are where they were, if their chunk servers still hold them.

    \b
    Example: gridfs meta load table.jsonl
    """
    from gridfs.meta import dump, thin

    with progress() as say:
        say("reading the dump")
        try:
            with open(sys.stdin.fileno() if file == _STANDARD else file, "rb") as lines:
                table = dump.load(lines)
        except OSError as error:
            raise GridfsError(f"{file} cannot be read: {error.strerror}") from error
        thin.load(resolve(), table, say)
    click.echo(f"loaded {len(table.inodes):,} inodes; gridfs fsck tells which files lack bytes")


def _write(file: str, lines: Iterable[bytes]) -> None:
    """Put the lines into a file readable by its owner only, whole or not at all; what is no regular file is written to."""
    path, staged = Path(file), Path(file).with_name(f".{Path(file).name}.{os.getpid()}")
    direct = file == _STANDARD or (path.exists() and not path.is_file())
    try:
        if direct:
            with open(sys.stdout.fileno() if file == _STANDARD else path, "wb") as output:
                output.writelines(lines)
        else:
            with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
                output.writelines(lines)
            os.replace(staged, path)
    except OSError as error:
        raise GridfsError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        if not direct:
            staged.unlink(missing_ok=True)

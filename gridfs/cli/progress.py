"""A line on standard error that says what is being done, and how much of it is done, on a terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """What the context is given shows one short line in place of the one before; nothing is left of it at the end."""
    console = Console(stderr=True)
    with console.status("") as line:

        def say(step: str) -> None:
            log.info(step)
            line.update(step)

        yield say


@contextmanager
def bar() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """As `progress`, beside a bar: the second of the two takes how many bytes are done, of how many."""
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    console, step_shown = Console(stderr=True), TextColumn("{task.description}")
    with Progress(step_shown, *columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=None)

        def say(step: str) -> None:
            log.info(step)
            shown.update(task, description=step)

        def advance(done_bytes: int, total_bytes: int) -> None:
            shown.update(task, completed=done_bytes, total=total_bytes)

        yield say, advance

"""A line on standard error that says what is being done, on a terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

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

"""A thread that runs trio for a server that lives inside another program's process, such as a Ray actor's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

log = logging.getLogger(__name__)
T = TypeVar("T")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class TrioThread:
    """Runs `main(started)` in trio, in a thread of its own, until `stop`.

    `main` owns all state of the server; other threads reach it through `call` only, which runs a plain function between two
    steps of trio: it sees and leaves a consistent state.
    """

    def __init__(self, name: str, main: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Start, and wait until `main` has called `started`; what `main` raised before that is raised here."""
        self._main = main
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise TimeoutError(f"{name} did not start within {START_TIMEOUT_S} s")
        if self._failure:
            raise self._failure

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function(*arguments)` returns, run in the trio thread; raises RuntimeError once that has ended."""
        if self._token is None:
            raise RuntimeError(f"{self._thread.name} has ended")
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def call_async(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """As `call`, for a coroutine function: other tasks run while it waits."""
        if self._token is None:
            raise RuntimeError(f"{self._thread.name} has ended")
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def stop(self) -> None:
        """Cancel `main` and wait for it to end; may be called again."""
        if self._thread.is_alive() and self._token is not None:
            self._token.run_sync_soon(self._scope.cancel)
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            trio.run(self._run_main)
        except BaseException as error:  # a thread has nobody above it: keep it for the constructor, and say it
            self._failure = error
            log.exception("%s failed", self._thread.name)
        finally:
            self._token = None
            self._ready.set()

    async def _run_main(self) -> None:
        with self._scope:
            self._token = trio.lowlevel.current_trio_token()
            await self._main(self._ready.set)

"""Child processes of a job: started by fork(2) out of a process with many threads, fed, watched, and ended for good.

    runner, a thread per child ("keeper") ── fork ──> the one that keeps count ── fork ──> the one that runs the work

The first child is the first process of a PID namespace where that may be done (`sandbox`); it starts the second, waits for it,
says how it ended, and ends itself, which ends whatever the work has left running. The keeper watches what they all take, and
kills them at the time limit, the memory limit, the limit of threads, or when it is told to.

The work sees the parent's memory as it was, without a copy: that is how it reads objects of the object store. What it writes
comes through a pipe, so it waits while nobody takes it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from gridfs.errors import GridfsError
from gridfs.offload import directory, group, pipes, sandbox, usage
from gridfs.offload.directory import Directory
from gridfs.offload.group import Group
from gridfs.offload.job import Submitter
from gridfs.offload.keeper import ERROR_MAX, FAILED_EXIT, REPORT_MAX, STUCK, Ending, Keeper, Limits
from gridfs.offload.pipes import Buffer

__all__ = ["Child", "Ending", "Limits", "NotStarted", "Work", "sweep"]

Work = Callable[[Callable[[Buffer], None]], None]
"""What runs in the child: it is given `write`. What it raises is the job's error: of a ValueError or GridfsError the text
alone; of others the type as well, and their traceback is in stderr."""


class NotStarted(GridfsError):
    """A program could not be run; raised by the work, whose exit code is the shell's in that case."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Child:
    """One child, from its start. `with` it, or call `wait`: either ends it, and leaves nothing behind.

    `cancel` may be called from any thread; the rest from one.
    """

    def __init__(
        self,
        work: Work,
        submitter: Submitter,
        limits: Limits,
        *,
        job: int = 0,
        feed: Iterable[Buffer] | None = None,
        program: bool = False,
        given: int | None = None,
    ) -> None:
        """Starts `work` as `submitter`.

        `feed` goes to its standard input, from a thread of its own; without it that is empty. It may stop reading early. What
        `feed` raises cancels the child and is raised by `wait`. `program` says that the work will replace itself by a program,
        whose standard output `chunks` then gives, instead of the pieces written. `given` is a descriptor that it finds as
        number GIVEN.

        Raises PermissionError, with a sentence, if this process cannot run anything as that user; OSError if it cannot fork.
        """
        sandbox.check(submitter)
        self._work, self._limits, self._program, self._given = work, limits, program, given
        self.stderr = b""
        """What came on standard error, once it has ended: KEPT_OUTPUT_BYTES of it, and a line that says how much more came."""
        self._ending = Ending()
        self._feed_error: BaseException | None = None
        self._finished = threading.Event()
        self._lock = threading.Lock()
        with ExitStack() as undo:
            self._directory = Directory(job, submitter)
            undo.callback(self._directory.remove)
            threads_max = usage.threads_of(submitter.uid) + 2 * limits.threads
            self._place = sandbox.Place(job, submitter, self._directory.path, limits.memory_bytes, threads_max)
            self._group = Group(job, 2 * limits.threads)
            undo.callback(self._group.remove)
            self._pipes = pipes.Pipes(fed=feed is not None)
            undo.callback(self._pipes.close)
            started: Future[None] = Future()
            threading.Thread(target=self._keep, args=(started,), name=f"job-{job}", daemon=True).start()
            started.result()
            undo.pop_all()
        self._feeder: threading.Thread | None = None
        if feed is not None:
            self._start_feeder(feed)

    # -- for the one who started it ------------------------------------------------------------------------------------

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: object, *raised: object) -> None:
        self.cancel()
        if kind is None:
            self.wait()
        else:
            with suppress(Exception):  # what is being raised says more
                self.wait()

    def chunks(self) -> Iterator[bytes]:
        """What comes out, as it comes: the pieces that the work wrote, each whole, or a program's output in any pieces.

        Ends when the child has ended, or has closed its output. One that is killed leaves its last piece out.
        """
        return self._pipes.output() if self._program else self._pipes.pieces()

    def cancel(self) -> None:
        """Kill it and all that it has started; no error if it has ended."""
        self._pipes.wake()

    def wait(self) -> Ending:
        """Drop what still comes out, wait for its end, and tell it. May be called again. Raises what `feed` raised."""
        with self._lock:
            if not self._pipes.closed:
                for _ in self._pipes.output():
                    pass
                self._finished.wait()
                if self._feeder is not None:
                    self._feeder.join()
                self._pipes.close()
        if self._feed_error is not None:
            raise self._feed_error
        return self._ending

    def _start_feeder(self, feed: Iterable[Buffer]) -> None:
        feeder = threading.Thread(target=self._feed, args=(feed,), name=f"job-{self._place.job}-feed", daemon=True)
        try:
            feeder.start()
        except RuntimeError as error:  # there are too many threads
            self.cancel()
            self.wait()
            raise BlockingIOError(*error.args) from None
        self._feeder = feeder

    def _feed(self, feed: Iterable[Buffer]) -> None:
        try:
            self._pipes.feed(feed)
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            self._feed_error = error
            self.cancel()

    # -- in the keeper -------------------------------------------------------------------------------------------------

    def _keep(self, started: Future[None]) -> None:
        """Fork, watch, reap: the kernel kills the child when the thread that forked it ends."""
        try:
            keeper = self._start()
        except BaseException as error:  # noqa: BLE001 - it is raised where the child was asked for
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            verdict = keeper.watch()
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            verdict = Ending(failure="function", error=f"the job could not be watched: {error!r}")
        has_ended = keeper.end()
        self._ending = (verdict or keeper.ending()) if has_ended else STUCK
        self.stderr = keeper.stderr()
        if has_ended:
            self._remove()
        self._pipes.say_ended()
        self._finished.set()
        if not has_ended:
            keeper.reap()
            self._remove()

    def _remove(self) -> None:
        self._directory.remove()
        self._group.remove()

    def _start(self) -> Keeper:
        separated = sandbox.separate()
        pid = self._fork(separated)
        try:
            own_bytes = 0 if self._program else usage.anonymous_bytes()
            keeper = Keeper(pid, separated, self._limits, self._pipes, own_bytes)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._pipes.close_childs()
        return keeper

    def _fork(self, separated: bool) -> int:
        with _forking():
            if (pid := os.fork()) == 0:
                try:
                    self._count(separated)
                except BaseException as error:  # noqa: BLE001 - the parent tells it
                    _report(self._pipes.report_in, error)
                finally:
                    os._exit(FAILED_EXIT)
        return pid

    # -- in the children -----------------------------------------------------------------------------------------------

    def _count(self, separated: bool) -> None:
        """In the first child: start the second, and tell how it ended."""
        ends = self._pipes
        sandbox.detach()
        self._group.join()
        sandbox.close_all_but({*ends.childs, *([] if self._given is None else [self._given])})
        sandbox.keep_count(separated, self._place)
        if ends.is_orphan():
            return
        pid = os.fork()
        if pid == 0:
            try:
                self._run()
            finally:
                os._exit(FAILED_EXIT)
        sandbox.close_all_but({ends.status_in, ends.report_in})
        while (ended := os.waitpid(-1, 0))[0] != pid:
            pass
        os.write(ends.status_in, struct.pack("=i", ended[1]))
        if not separated:
            sandbox.end_children()
        os._exit(0)

    def _run(self) -> None:
        """In the second child."""
        ends = self._pipes
        try:
            ends.place(self._given, self._program)
            sandbox.detach()
            sandbox.close_all_but(ends.placed(self._given))
            sandbox.confine(self._place)
            _adopt_streams()
            if not self._program:
                sandbox.limit_data(usage.data_bytes() + self._limits.memory_bytes)
                gc.enable()
            self._work(ends.write_piece)
            sys.stderr.flush()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - all of it is the job's error
            _report(ends.report_in, error)


def sweep() -> None:
    """Remove what processes that were killed have left of their children: call it when a process starts that will have some."""
    directory.sweep()
    group.sweep()


@contextmanager
def _forking() -> Iterator[None]:
    """No collection between fork and `sandbox.detach`: it could run finalizers of the parent's in the child."""
    with _fork_lock:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


_fork_lock = threading.Lock()
_inherited: list[Any] = []
"""In a child: the parent's streams, kept so that what they hold is not written twice."""


def _adopt_streams() -> None:
    """What the work prints goes to its standard error."""
    _inherited.extend([sys.stdin, sys.stdout, sys.stderr])
    sys.stdin = open(0, closefd=False, encoding="utf-8", errors="replace")  # noqa: SIM115 - to stay
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115


def _report(report_in: int, error: BaseException) -> None:
    """Tell the parent the error, and end with its exit code."""
    is_sentence = isinstance(error, (ValueError, GridfsError))
    text = " ".join((str(error) if is_sentence else f"{type(error).__name__}: {error}").split())[:ERROR_MAX]
    told = {"error": text, "memory": isinstance(error, MemoryError)}
    with suppress(OSError):
        os.set_blocking(report_in, False)
        os.write(report_in, json.dumps(told).encode()[:REPORT_MAX])
    if not is_sentence:
        with suppress(Exception):
            traceback.print_exception(error)
            sys.stderr.flush()
    os._exit(error.exit_code if isinstance(error, NotStarted) else 1)

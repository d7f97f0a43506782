"""One attempt to do a job, or a part of it, on this node."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from gridfs import node
from gridfs.buffers import Buffer
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError, GridfsError
from gridfs.offload import command, work
from gridfs.offload.gateway import Gateway
from gridfs.offload.job import KEPT_OUTPUT_BYTES, Job
from gridfs.offload.process import Child, Limits
from gridfs.offload.source import BytesLostError, Source
from gridfs.offload.writer import OutputFile

log = logging.getLogger(__name__)

CHILDREN_MAX = 4
"""Of one job on this node at once."""
CHILD_MEMORY_BYTES = 256 * MIB
"""A job that may not take so much for each gets fewer children."""
PARTIALS_MAX_BYTES = 256 * MIB
"""All partial results of one part of a job. They travel through memory: what makes more is to be run as a whole."""
SPARE_SHARE = 0.8
"""So much of the node's available memory a command may have that names the file by a path."""

Runs = Sequence[tuple[int, int]]
"""Ranges of chunk indices, the end not included."""
Held = Callable[[int], Mapping[int, memoryview]]
"""Gives what this node holds of a job's input, by its id."""


class EndedError(GridfsError):
    """A child did not come to a good end; `failure` is one of `Ending`'s."""

    def __init__(self, sentence: str, failure: str) -> None:
        super().__init__(sentence)
        self.failure = failure


class Kept:
    """The first bytes of an output that is kept with the job."""

    def __init__(self, *, may_be_cut: bool) -> None:
        """`may_be_cut`: more than is kept of it is no error."""
        self._may_be_cut = may_be_cut
        self._content = bytearray()
        self.dropped_bytes = 0

    @property
    def content(self) -> bytes:
        """What was kept."""
        return bytes(self._content)

    def write(self, piece: Buffer) -> None:
        """Raises TooLongError; then nothing is kept."""
        kept = piece[: KEPT_OUTPUT_BYTES - len(self._content)]
        self._content += kept
        self.dropped_bytes += len(piece) - len(kept)
        if self.dropped_bytes and not self._may_be_cut:
            self._content.clear()
            raise work.TooLongError(KEPT_OUTPUT_BYTES)

    def commit(self) -> int:
        """No output was written."""
        return 0


class Attempt:
    """What one call of the scheduler's has this node do for a job: in the caller's thread, and one for each child.

    `stop` may be called from any thread, and ends all that is under way; whatever is begun after it ends at once.
    """

    def __init__(self, gateway: Gateway, host: str, task: Mapping[str, Any], held: Held) -> None:
        """`task` is what `Runner.run` takes."""
        self._gateway, self._host, self._task, self._held = gateway, host, task, held
        self.job, self.number = Job.unpack(task["job"]), int(task["attempt"])
        self._deadline_s = time.monotonic() + self.job.request.timeout_s
        self._lock = threading.Lock()
        self._stops: list[Callable[[], object]] = []
        """How to end what is under way."""
        self._is_stopped = self._is_cancelled = False
        self._sources: list[Source] = []
        self._told: dict[str, Any] = {
            "partials": [],
            "result": None,
            "stdout": b"",
            "stderr": b"",
            "exit_code": None,
            "local_bytes": 0,
            "network_bytes": 0,
            "output_bytes": 0,
            "error": "",
            "failure": "",
        }

    def run(self) -> dict[str, Any]:
        """See `Runner.run`."""
        return self._guarded(self._map if self._task["mode"] == "map" else self._whole)

    def reduce(self, partials: Sequence[bytes]) -> dict[str, Any]:
        """See `Runner.reduce`."""
        return self._guarded(lambda: self._reduce(partials))

    def taken_bytes(self) -> int:
        """How much of the input was taken in so far."""
        return sum(source.counts.read()[0] for source in self._sources)

    def cancel(self) -> None:
        """End it; the result will say so, unless it is there already."""
        self._is_cancelled = True
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            stops, self._stops = self._stops, []
        for stop in reversed(stops):  # children before what they read and write
            stop()

    def _on_stop(self, stop: Callable[[], object]) -> None:
        """Have `stop` called when all is to end; at once if that was said already."""
        with self._lock:
            if not self._is_stopped:
                self._stops.append(stop)
                return
        stop()

    # -- what may become of it ---------------------------------------------------------------------------------------

    def _guarded(self, do: Callable[[], None]) -> dict[str, Any]:
        """What is told of the job once `do` has ended. Never raises."""
        told = self._told
        try:
            self._refuse_if_cancelled()
            do()
        except Exception as error:  # noqa: BLE001 - all of it is the job's
            told["failure"], told["error"] = self._explain(error)
            if self._is_cancelled:
                told["failure"], told["error"] = "cancelled", "the job was cancelled"
        finally:
            for source in self._sources:
                source.stop()
        counts = [source.counts.read() for source in self._sources]
        told["local_bytes"], told["network_bytes"] = sum(count[1] for count in counts), sum(count[2] for count in counts)
        return told

    def _refuse_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise EndedError("the job was cancelled", "cancelled")

    def _explain(self, error: Exception) -> tuple[str, str]:
        """(failure, sentence)."""
        if isinstance(error, EndedError):
            return error.failure, str(error)
        if isinstance(error, BytesLostError):
            return "bytes lost", str(error)
        if isinstance(error, FilesystemError):
            return "function", f"the output {self.job.output and self.job.output.path} cannot be written: {error.strerror}"
        if isinstance(error, (GridfsError, ValueError, PermissionError)):
            return "function", str(error)
        log.error("job %d failed on this node", self.job.id, exc_info=error)
        return "function", f"{type(error).__name__}: {error}"

    # -- kinds of attempt --------------------------------------------------------------------------------------------

    def _map(self) -> None:
        """The partial results of some runs, by several children at once; when one fails, so do all."""
        runs = [(first, end) for first, end in self._task["runs"]]
        count = max(1, min(len(runs), CHILDREN_MAX, os.cpu_count() or 1, self.job.request.memory_bytes // CHILD_MEMORY_BYTES))
        held, told = self._held_of(runs), [b""] * len(runs)
        errors: list[Exception] = []

        def map_some(number: int) -> None:
            try:
                told[number::count] = self._map_some(runs[number::count], held, count)
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
                self._stop()

        with ThreadPoolExecutor(count, f"job-{self.job.id}") as threads:
            list(threads.map(map_some, range(count)))
        for error in errors:
            raise error  # the first: what follows is that the others were stopped
        self._told["partials"] = told

    def _map_some(self, runs: Runs, held: Mapping[int, memoryview], share: int) -> list[bytes]:
        source, what, last = self._source(runs, held), work.of(self.job, self._host), self.job.input.chunk_count
        partials: list[bytes] = []

        def run(number: int, first: int, end: int) -> work.Run:
            return work.Run(source.run_in_child(number), first == 0, end == last, first * CHUNK_SIZE_BYTES)

        def body(write: work.Write) -> None:
            work.map_runs(what, (run(number, *bounds) for number, bounds in enumerate(runs)), write)

        with self._child(body, source, self.job.request.memory_bytes // share) as child:
            self._take(child, lambda pieces: partials.extend(work.partials_of(pieces, PARTIALS_MAX_BYTES // share)))
        return partials

    def _whole(self) -> None:
        """The result over all bytes, in order."""
        runs = [(0, self.job.input.chunk_count)]
        source = self._source(runs, self._held_of(runs))
        if self.job.request.kind == "command":
            self._command(source)
        else:
            what = work.of(self.job, self._host)
            self._function(what, lambda write: what.whole(source.run_in_child(0), write), source)

    def _reduce(self, partials: Sequence[bytes]) -> None:
        """The result over partials that are here."""
        what = work.of(self.job, self._host)
        self._function(what, lambda write: what.reduce(map(work.unpack_partial, partials), write), None)

    def _function(self, what: work.Work, body: Callable[[work.Write], None], source: Source | None) -> None:
        with self._sink() as sink:

            def deliver(written: Iterator[bytes]) -> None:
                outcome = work.bounded_result(what, written, self.job.output is not None)
                if outcome.stream is not None:
                    for piece in outcome.stream:
                        sink.write(piece)
                elif isinstance(sink, OutputFile):
                    sink.write(work.packed_value(outcome.value))
                else:
                    self._told["result"] = outcome.value

            with self._child(body, source, self.job.request.memory_bytes) as child:
                self._take(child, deliver)
            self._told["output_bytes"] = sink.commit()

    def _command(self, source: Source) -> None:
        with self._sink() as sink:

            def deliver(written: Iterator[bytes]) -> None:
                for piece in written:
                    sink.write(piece)

            spare_bytes = int(node.sample().available_bytes * SPARE_SHARE)
            with command.start(self.job, source.run(0), spare_bytes) as child:
                self._on_stop(child.cancel)
                self._take(child, deliver)
            self._told["output_bytes"] = sink.commit()

    # -- what they are made of ---------------------------------------------------------------------------------------

    def _held_of(self, runs: Runs) -> Mapping[int, memoryview]:
        """What this node has of the input, if there is any of these runs."""
        own, chunks = self._task["server"], self.job.input.chunks
        is_any_here = any(own in chunks.get(index, ()) for first, end in runs for index in range(first, end))
        return self._held(self.job.id) if is_any_here else {}

    def _source(self, runs: Runs, held: Mapping[int, memoryview]) -> Source:
        source = Source(self._gateway, self.job, runs, held)
        self._sources.append(source)
        self._on_stop(source.stop)
        return source

    def _child(self, body: Callable[[work.Write], None], source: Source | None, memory_bytes: int) -> Child:
        limits = Limits(max(0.1, self._deadline_s - time.monotonic()), memory_bytes)
        feed = None if source is None or source.is_here else source.fetched()
        child = Child(body, self.job.submitter, limits, job=self.job.id, feed=feed)
        self._on_stop(child.cancel)
        return child

    def _take(self, child: Child, deliver: Callable[[Iterator[bytes]], None]) -> None:
        """Have what comes out delivered, and see how it ends. Raises EndedError, and what `deliver` and its feed raise."""
        unfinished: ValueError | None = None
        try:
            deliver(child.chunks())
        except ValueError as error:  # a value that was cut short, most likely
            unfinished = error
        ending = child.wait()
        self._told["exit_code"] = ending.exit_code
        self._told["stderr"] += child.stderr
        if ending.failure:
            raise EndedError(ending.error, ending.failure)
        if unfinished is not None:
            raise unfinished

    @contextmanager
    def _sink(self) -> Iterator[Kept | OutputFile]:
        """Where the output goes; nothing is left of a file that was not committed."""
        if self.job.output is None:
            kept = Kept(may_be_cut=self.job.request.kind == "command")
            try:
                yield kept
            finally:
                self._keep(kept)
            return
        file = OutputFile(self._gateway, self.job, self.job.output, self.number, self._task["server"])
        self._on_stop(file.abort)
        file.open()
        try:
            yield file
        except BaseException:
            file.abort()
            raise

    def _keep(self, kept: Kept) -> None:
        self._told["stdout"] = kept.content
        if kept.dropped_bytes and self.job.request.kind == "command":
            note = f"[{kept.dropped_bytes} more bytes of output were not kept: name an output for them]"
            self._told["stderr"] += f"\n{note}\n".encode()

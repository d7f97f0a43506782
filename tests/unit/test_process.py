"""Work runs in a child: its pieces come as they were written, its end is told, and it can be ended whatever it does."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gridfs.config import MIB
from gridfs.errors import GridfsError
from gridfs.offload import directory, group, pipes, usage
from gridfs.offload.job import KEPT_OUTPUT_BYTES
from gridfs.offload.pipes import Buffer
from gridfs.offload.process import Child, Limits
from tests.unit.children import LATE_S, LIMITS, ME, detach_daemon, leaves_nothing, left, needs_group, run

__all__ = ["leaves_nothing"]

pytestmark = pytest.mark.usefixtures("leaves_nothing")

Write = Callable[[Buffer], None]


def nothing(_: Write) -> None:
    pass


def forever(_: Write) -> None:
    signal.pause()


def ready(write: Write) -> None:
    write(b"ready")
    signal.pause()


def test_pieces_come_as_they_were_written() -> None:
    written = [b"", b"a", b"b" * 3 * MIB, b""]

    def work(write: Write) -> None:
        for piece in written:
            write(piece)

    pieces, ending, stderr = run(work)
    assert (pieces, ending.exit_code, ending.error, stderr) == (written, 0, "", "")


def test_pieces_come_while_it_runs() -> None:
    with Child(ready, ME, LIMITS) as child:
        assert next(child.chunks()) == b"ready"


def test_it_sees_the_parents_memory() -> None:
    view = memoryview(os.urandom(MIB))
    assert run(lambda write: write(view))[0] == [view]


def test_a_flood_waits_for_whoever_reads() -> None:
    def work(write: Write) -> None:
        while True:
            write(bytes(MIB))

    with Child(work, ME, LIMITS) as child:
        chunks = child.chunks()
        for _ in range(20):
            assert next(chunks) == bytes(MIB)
        child.cancel()
        child._finished.wait()
        assert len(list(chunks)) <= 2
        assert child.wait().failure == "cancelled"


def test_what_is_not_taken_does_not_hold_up_its_end() -> None:
    def work(write: Write) -> None:
        for _ in range(10):
            write(bytes(MIB))

    with Child(work, ME, LIMITS) as child:
        assert child.wait().exit_code == 0
        assert child.wait().exit_code == 0


def test_too_long_a_piece_is_an_error() -> None:
    pieces, ending, _ = run(lambda write: write(bytes(pipes.PIECE_BYTES_MAX + 1)))
    assert pieces == []
    assert "one piece of a result has" in ending.error


def test_garbage_between_the_pieces_is_told() -> None:
    def work(_: Write) -> None:
        for fd in range(3, 64):
            try:
                os.write(fd, b"\xff" * 8)
            except OSError:
                pass

    with pytest.raises(GridfsError), Child(work, ME, LIMITS) as child:
        list(child.chunks())


@pytest.mark.parametrize("error", [ValueError("it is bad"), GridfsError("it is bad")])
def test_a_sentence_is_the_error_without_a_traceback(error: Exception) -> None:
    _, ending, stderr = run(lambda write: throw(error))
    assert (ending.error, ending.failure, ending.exit_code, stderr) == ("it is bad", "function", 1, "")


def test_any_other_error_is_one_line_and_its_traceback_in_stderr() -> None:
    _, ending, stderr = run(lambda write: throw(KeyError("no\nsuch")))
    assert ending.error == r"KeyError: 'no\nsuch'"
    assert "Traceback" in stderr
    assert "in throw" in stderr


def throw(error: BaseException) -> None:
    raise error


def test_no_memory_is_told_as_that() -> None:
    _, ending, _ = run(lambda write: throw(MemoryError()))
    assert ending.out_of_memory


def test_memory_is_limited_for_each_process() -> None:
    _, ending, _ = run(lambda write: write(bytes(64 * MIB)), limits=Limits(20.0, 32 * MIB))
    assert ending.out_of_memory


def test_memory_is_limited_for_all_together() -> None:
    def work(_: Write) -> None:
        for _child in range(4):
            if os.fork() == 0:
                block = bytearray(os.urandom(24 * MIB))
                signal.pause()
                del block
        signal.pause()

    _, ending, _ = run(work, limits=Limits(20.0, 64 * MIB))
    assert (ending.failure, ending.error) == ("memory", f"the job took more than its {64 * MIB} bytes of memory")


def test_what_the_parent_has_is_not_counted() -> None:
    block = bytearray(os.urandom(64 * MIB))
    _, ending, _ = run(lambda write: time.sleep(0.3), limits=Limits(20.0, 32 * MIB))
    assert ending.error == ""
    del block


def test_threads_are_limited_for_all_together() -> None:
    def work(_: Write) -> None:
        for _thread in range(15):
            threading.Thread(target=signal.pause, daemon=True).start()
        signal.pause()

    _, ending, _ = run(work, limits=Limits(20.0, threads=10))
    assert ending.error == "the job had more than 10 processes and threads"


def test_a_signal_is_told() -> None:
    _, ending, _ = run(lambda write: os.kill(os.getpid(), signal.SIGUSR1))
    assert (ending.signal, ending.exit_code, ending.error) == (signal.SIGUSR1, None, "it was killed by the signal SIGUSR1")


def test_an_exit_code_is_told() -> None:
    assert run(lambda write: os._exit(41))[1].exit_code == 41


def test_the_time_limit_ends_it() -> None:
    began_s = time.monotonic()
    _, ending, _ = run(forever, limits=Limits(0.2))
    assert ending.timed_out
    assert ending.error == "the job took longer than its 0.2 seconds"
    assert time.monotonic() - began_s < LATE_S


def test_cancelling_ends_what_ignores_signals() -> None:
    def work(write: Write) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        write(b"ready")
        while True:
            signal.pause()

    with Child(work, ME, LIMITS) as child:
        assert next(child.chunks()) == b"ready"
        began_s = time.monotonic()
        child.cancel()
        assert child.wait().failure == "cancelled"
        assert time.monotonic() - began_s < LATE_S
    child.cancel()


def test_whatever_it_left_running_ends_with_it() -> None:
    pieces, ending, _ = run(lambda write: write(detach_daemon()))
    assert (pieces, ending.exit_code) == ([b"daemon"], 0)


def test_an_error_of_its_owner_ends_it() -> None:
    with pytest.raises(KeyError), Child(forever, ME, LIMITS):
        raise KeyError


def test_it_is_fed() -> None:
    pieces, _, _ = run(lambda write: write(sys.stdin.buffer.read()), feed=iter([b"abc", memoryview(b"def"), b""]))
    assert pieces == [b"abcdef"]


def test_without_food_its_standard_input_is_empty() -> None:
    assert run(lambda write: write(sys.stdin.buffer.read()))[0] == [b""]


@pytest.mark.parametrize("work", [nothing, lambda write: os.close(0), lambda write: time.sleep(0.2)])
def test_it_need_not_eat(work: Callable[[Write], None]) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(MIB)

    assert run(work, feed=endless())[1].exit_code == 0


def test_the_food_is_not_held_any_more_when_it_has_ended() -> None:
    freed = []

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(MIB)
        finally:
            time.sleep(0.1)
            freed.append(True)

    food = endless()
    run(nothing, feed=food)
    assert freed


def test_output_ends_with_the_child_though_somebody_else_holds_it_open() -> None:
    ends = pipes.Pipes(fed=False)
    os.write(ends.stdout_in, b"abc")
    ends.say_ended()
    assert list(ends.output()) == [b"abc"]
    ends.close()


def test_what_is_given_is_found_whatever_number_it_had() -> None:
    def work(write: Write) -> None:
        write(subprocess.check_output(["cat", f"/proc/self/fd/{pipes.GIVEN}"], close_fds=False))

    for number in (pipes.GIVEN, 100):
        kept = os.dup(pipes.GIVEN) if os.path.lexists(f"/proc/self/fd/{pipes.GIVEN}") else None
        with tempfile.TemporaryFile() as file:
            file.write(b"content")
            file.seek(0)
            os.dup2(file.fileno(), number, inheritable=False)
            assert run(work, given=number)[0] == [b"content"]
        os.close(number)
        if kept is not None:
            os.dup2(kept, pipes.GIVEN, inheritable=False)
            os.close(kept)


def test_an_error_of_the_food_cancels_it_and_is_raised() -> None:
    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise ConnectionError("lost")

    with pytest.raises(ConnectionError, match="lost"), Child(forever, ME, LIMITS, feed=broken()) as child:
        child.wait()


def test_of_standard_error_the_beginning_is_kept() -> None:
    def work(_: Write) -> None:
        sys.stderr.write("e" * 3 * MIB)

    _, ending, stderr = run(work)
    assert ending.exit_code == 0
    assert stderr == "e" * KEPT_OUTPUT_BYTES + f"\n[{2 * MIB} more bytes were not kept]\n"


def test_what_it_prints_is_on_standard_error() -> None:
    assert run(lambda write: print("hello")) == ([], run(nothing)[1], "hello\n")


def test_its_parents_garbage_is_not_collected_there() -> None:
    collected = bytearray()

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            collected.extend(b"!")

    gc.disable()
    Garbage()

    def work(write: Write) -> None:
        gc.collect()
        write(collected)

    assert run(work)[0] == [b""]
    gc.enable()


def test_many_run_at_once() -> None:
    def one(number: int) -> None:
        results[number] = run(lambda write: write(bytes([number]) * MIB))[0]

    results: dict[int, list[bytes]] = {}
    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [bytes([number]) * MIB] for number in range(20)}


def test_it_dies_with_its_parent_and_what_is_left_can_be_swept() -> None:
    before = left()
    out, into = os.pipe()
    parent = os.fork()
    if parent == 0:
        with Child(ready, ME, LIMITS) as child:
            next(child.chunks())
            os.write(into, " ".join(map(str, usage.descendants(os.getpid()))).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    pids = os.read(out, 100).split()
    os.waitpid(parent, 0)
    os.close(out)
    os.close(into)
    assert len(pids) == 2
    deadline_s = time.monotonic() + 5
    while (any(map(is_alive, pids)) or left() - before) and time.monotonic() < deadline_s:
        directory.sweep(young_s=0)
        group.sweep(young_s=0)
    assert not any(map(is_alive, pids))
    assert not left() - before


def is_alive(pid: bytes) -> bool:
    try:
        with open(b"/proc/%b/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_sweep_leaves_what_is_in_use_or_young() -> None:
    with Child(forever, ME, LIMITS) as child:
        directory.sweep(young_s=0)
        assert os.path.isdir(child._directory.path)
    made = directory.Directory(1, ME)
    os.close(made._fd)
    directory.sweep()
    assert os.path.isdir(made.path)
    directory.sweep(young_s=0)
    assert not os.path.isdir(made.path)


def test_a_sweep_leaves_groups_that_somebody_may_be_about_to_join() -> None:
    needs_group()
    made = group.Group(1, 10)
    group.sweep()
    assert os.path.isdir(made.path)
    group.sweep(young_s=0)
    assert not os.path.isdir(made.path)


def test_without_descriptors_it_does_not_start_and_leaves_nothing() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(20):
        before = left()
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest, 16) + 1 + spare, hard))
        try:
            with Child(nothing, ME, LIMITS, feed=[]):
                pass
        except OSError as error:
            assert error.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert {what for what in left() - before if not what.startswith("thread")} == set()
    with Child(nothing, ME, LIMITS, feed=[]) as child:
        assert child.wait().exit_code == 0

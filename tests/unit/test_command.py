"""A command gets the file, is bounded, and ends when it must, whatever it is."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator

import pytest

from gridfs.config import GIB, MIB
from gridfs.errors import GridfsError
from gridfs.offload import command
from gridfs.offload.job import Submitter
from gridfs.offload.pipes import Buffer
from tests.unit.children import LATE_S, ME, OTHER, as_user, job, leaves_nothing, needs_group, needs_root, run_command

__all__ = ["leaves_nothing"]

pytestmark = pytest.mark.usefixtures("leaves_nothing")

WHO = [ME, pytest.param(OTHER, marks=needs_root)]
CONTENT: list[Buffer] = [os.urandom(3 * MIB), memoryview(os.urandom(MIB)), b"end"]
SIZE = sum(map(len, CONTENT))
DIGEST = hashlib.sha256(b"".join(CONTENT)).hexdigest().encode()


@pytest.mark.parametrize("who", WHO)
def test_it_is_fed_on_standard_input(who: Submitter) -> None:
    output, ending, _ = run_command(job("sha256sum", "-b", submitter=who), *CONTENT)
    assert (output, ending.exit_code, ending.error) == (DIGEST + b" *-\n", 0, "")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("words", [("sha256sum", "{}"), ("exec sha256sum {}",), ("cat {} | sha256sum",)])
def test_a_path_has_the_files_content(words: tuple[str, ...], who: Submitter) -> None:
    output, ending, stderr = run_command(job(*words, submitter=who, size=SIZE), *CONTENT)
    assert (output.split()[0], ending.exit_code, stderr) == (DIGEST, 0, "")


@pytest.mark.parametrize("who", WHO)
def test_the_path_is_part_of_a_word_and_can_be_sought_but_not_written(who: Submitter) -> None:
    output, _, _ = run_command(job("dd", "if={}", "bs=1", "skip=6", "count=3", submitter=who, size=9), b"abcdefghi")
    assert output == b"ghi"
    _, ending, _ = run_command(job("echo x 1<> {}", submitter=who, size=9), b"abcdefghi")
    assert ending.exit_code != 0


def test_with_a_path_standard_input_is_empty() -> None:
    assert run_command(job("cat; echo {}", size=3), b"abc")[0] == command.PATH.encode() + b"\n"


def test_a_path_needs_memory_to_spare() -> None:
    with pytest.raises(GridfsError, match="3 bytes of the node's memory, and 2 are to spare"):
        command.start(job("wc", "{}", size=3), [b"abc"], spare_bytes=2)


def test_an_error_while_the_path_is_filled_is_raised() -> None:
    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise ConnectionError("lost")

    with pytest.raises(ConnectionError):
        command.start(job("wc", "{}", size=6), broken(), spare_bytes=GIB)


def test_without_a_shell_nothing_is_expanded() -> None:
    assert run_command(job("echo", "$HOME", "`id`", ";", "*"))[0] == b"$HOME `id` ; *\n"


@pytest.mark.parametrize(
    ("words", "exit_code", "error"),
    [
        (("nonesuch", "-x"), 127, "there is no program 'nonesuch' on this node"),
        (("/nonesuch", "-x"), 126, "'/nonesuch' cannot be run on this node: No such file or directory"),
        (("/etc/passwd", "-x"), 126, "'/etc/passwd' cannot be run on this node: Permission denied"),
        (("a\0b", "-x"), 127, "there is no program"),
        (("exit 3",), 3, "it ended with exit code 3"),
    ],
)
def test_what_cannot_run_or_fails_says_so(words: tuple[str, ...], exit_code: int, error: str) -> None:
    output, ending, stderr = run_command(job(*words))
    assert (output, ending.exit_code, ending.failure, stderr) == (b"", exit_code, "function", "")
    assert error in ending.error


def test_a_signal_is_told() -> None:
    assert run_command(job("kill -SEGV $$"))[1].signal == 11


def test_standard_error_is_apart() -> None:
    assert run_command(job("echo out; echo err >&2"))[::2] == (b"out\n", "err\n")


@pytest.mark.parametrize("text", ["true", "exec 0<&-; sleep 0.1", "head -c 5 > /dev/null", "exec <&- >&- 2>&-; sleep 0.1"])
def test_it_need_not_read(text: str) -> None:
    assert run_command(job(text), *[bytes(8 * MIB)] * 4)[1].exit_code == 0


def test_much_output_comes_through() -> None:
    with command.start(job("head -c 200000000 /dev/zero"), [], spare_bytes=0) as child:
        assert sum(map(len, child.chunks())) == 200_000_000


@pytest.mark.parametrize(
    "text", ["trap '' TERM HUP INT; sleep 60 & sleep 60", "setsid sleep 60; setsid -f sleep 60; sleep 60", "yes"]
)
@pytest.mark.parametrize("who", WHO)
def test_the_time_limit_ends_all_of_it(text: str, who: Submitter) -> None:
    began_s = time.monotonic()
    _, ending, _ = run_command(job(text, submitter=who, timeout_s=0.3))
    assert ending.timed_out
    assert time.monotonic() - began_s < LATE_S


@pytest.mark.parametrize("who", WHO)
def test_what_it_left_behind_ends_with_it(who: Submitter) -> None:
    assert run_command(job("setsid -f sh -c 'trap \"\" TERM; sleep 60'; echo done", submitter=who))[0] == b"done\n"


BOMB = "bomb() { bomb | bomb & }; while :; do bomb; done"
"""Either it is seen, or a shell of it ends since it cannot fork."""


@pytest.mark.parametrize("who", WHO)
def test_a_fork_bomb_is_defused(who: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    if who.uid == 0:
        needs_group()
    monkeypatch.setattr("gridfs.offload.keeper.THREADS_MAX", 50)
    _, ending, _ = run_command(job(BOMB, submitter=who))
    assert ending.error in ("the job had more than 50 processes and threads", "it ended with exit code 2")


@needs_root
def test_a_fork_bomb_of_a_service_that_is_not_root_is_defused() -> None:
    ending = as_user(OTHER, lambda: run_command(job(BOMB, submitter=OTHER, memory_bytes=200 * MIB))[1])
    assert ending.failure in ("function", "memory")


@pytest.mark.parametrize("who", WHO)
def test_memory_is_limited(who: Submitter) -> None:
    hog = "import sys; block = bytearray(300 << 20)"
    _, ending, stderr = run_command(job("python3", "-c", hog, submitter=who, memory_bytes=200 * MIB))
    assert ending.exit_code == 1
    assert "MemoryError" in stderr


@pytest.mark.parametrize("who", WHO)
def test_memory_of_many_is_limited_together(who: Submitter) -> None:
    hog = "python3 -c 'import os, time; block = os.urandom(60 << 20); time.sleep(60)' & "
    _, ending, _ = run_command(job(hog * 4 + "wait", submitter=who, memory_bytes=150 * MIB))
    assert ending.out_of_memory


def test_memory_that_is_shared_is_limited_too() -> None:
    hog = (
        "import mmap, time; block = mmap.mmap(-1, 200 << 20); [block.write(bytes(1 << 20)) for _ in range(200)]; time.sleep(60)"
    )
    _, ending, _ = run_command(job("python3", "-c", hog, memory_bytes=150 * MIB))
    assert ending.out_of_memory


def test_a_mapping_of_the_path_is_not_its_own_memory() -> None:
    opened = "import mmap, time; f = open('{}', 'rb'); block = mmap.mmap(f.fileno(), 0, access=1)"
    read = f"{opened}; print(sum(len(block[at : at + 4096]) for at in range(0, len(block), 4096))); time.sleep(0.3)"
    size = 64 * MIB
    output, ending, _ = run_command(job("python3", "-c", read, size=size, memory_bytes=60 * MIB), bytes(size))
    assert (output, ending.error) == (b"%d\n" % size, "")

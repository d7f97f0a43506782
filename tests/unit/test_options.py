"""The options of a mount: what is understood, what is refused, and what the sizes leave to the bytes of files."""

from __future__ import annotations

import pytest

from gridfs.cli.mounts import number_options
from gridfs.config import MIB
from gridfs.errors import GridfsError
from mount.options import TASK_BYTES, TASKS_MIN, parse_options


def test_without_options_a_mount_has_the_documented_memory() -> None:
    options = parse_options("")
    assert (options.memory_bytes, options.window_bytes, options.flags) == (256 * MIB, 64 * MIB, frozenset())
    assert parse_options(",".join(number_options(None, None))) == options


def test_flags_and_sizes_stand_side_by_side_and_the_later_size_counts() -> None:
    options = parse_options("ro,memory=1GiB,noatime,write-window=128M,memory=512MiB")
    assert options.flags == {"ro", "noatime"}
    assert (options.memory_bytes, options.window_bytes) == (512 * MIB, 128 * MIB)


def test_the_options_of_the_command_are_those_of_the_mount() -> None:
    options = parse_options(",".join(number_options(512 * MIB, 100 * MIB, 2)))
    assert (options.memory_bytes, options.window_bytes, options.replicas) == (512 * MIB, 100 * MIB, 2)


@pytest.mark.parametrize("memory_mib", [64, 100, 256, 4096])
def test_requests_and_the_bytes_of_files_share_the_memory(memory_mib: int) -> None:
    options = parse_options(f"memory={memory_mib}MiB")
    assert options.tasks >= TASKS_MIN
    assert options.limits.budget_bytes + options.tasks * TASK_BYTES == options.memory_bytes
    assert options.limits.window_bytes <= options.memory_bytes // 4
    assert options.limits.budget_bytes - options.limits.window_bytes >= 16 * MIB


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fast", "mount option 'fast' is not known; known are memory=SIZE, write-window=SIZE, replicas=N, allow_other"),
        ("memory", "mount option 'memory' is not known"),
        ("memory=lots", "mount option memory: 'lots' is not a size: write a number and a unit, such as 512MiB"),
        ("replicas=0", "mount option replicas: '0' is not a number of copies from 1 to 8"),
        ("replicas=many", "mount option replicas: 'many' is not a number of copies from 1 to 8"),
        ("write-window=", "mount option write-window: '' is not a size"),
        ("memory=63MiB", "memory of 63.0 MiB is too little for a mount: give 64.0 MiB at least"),
        ("write-window=129MiB", "write-window of 129.0 MiB does not fit into memory of 256.0 MiB: give 1.0 MiB to 128.0 MiB"),
        ("write-window=4K", "write-window of 4.0 KiB does not fit"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(GridfsError) as raised:
        parse_options(text)
    assert str(raised.value).startswith(sentence)

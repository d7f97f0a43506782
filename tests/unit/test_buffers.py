"""Memory for bytes in flight."""

import subprocess
import sys

import pytest

from gridfs.buffers import allocate

FAULTS = """
import resource
from gridfs.buffers import allocate, keep_freed_memory

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill() -> None:
    allocate(8 << 20)[:] = CONTENT

CONTENT = bytes(8 << 20)
keep_freed_memory()
fill()
before = faults()
for _ in range(20):
    fill()
print(faults() - before)
"""


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 5_000_000])
def test_a_buffer_has_the_size_asked_and_is_an_ordinary_bytearray(size_bytes: int) -> None:
    buffer = allocate(size_bytes)
    assert type(buffer) is bytearray
    assert len(buffer) == size_bytes
    buffer[:] = b"x" * size_bytes
    buffer += b"end"
    assert bytes(buffer) == b"x" * size_bytes + b"end"


def test_buffers_do_not_share_memory() -> None:
    buffers = [allocate(1000) for _ in range(10)]
    for number, buffer in enumerate(buffers):
        buffer[:] = bytes([number]) * 1000
    assert [buffer[0] for buffer in buffers] == list(range(10))


def test_a_negative_size_is_an_error() -> None:
    with pytest.raises(SystemError):
        allocate(-1)


def test_freed_memory_is_used_again_without_page_faults() -> None:
    """A fresh 8 MiB costs 2048 faults; twenty recycled ones must cost less than one of those."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 2048

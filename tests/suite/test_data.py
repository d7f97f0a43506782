"""Bytes: what was written is what is read, wherever it lies in the file."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from tests.suite.syscalls import fails, opened, write

MIB = 1 << 20
CHUNK_BYTES = 8 * MIB
"""The default chunk: the boundaries at which a chunked filesystem could go wrong."""
TIB = 1 << 40
LARGEST_MODEL_BYTES = 20 * MIB
STEPS = 400


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 20 * MIB + 7])
def test_a_file_of_any_size_reads_back(root: Path, size: int) -> None:
    """Size in stat and content are those written, at and around every boundary."""
    content = random.Random(size).randbytes(size)
    path = write(root / "file", content)
    assert path.stat().st_size == size
    assert path.read_bytes() == content


def test_a_sparse_file_of_a_terabyte_takes_no_space(root: Path) -> None:
    """A huge file that holds nothing has its size, reads zeros and takes next to no blocks; the far end is writable."""
    with opened(root / "sparse", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, TIB)
        assert os.fstat(fd).st_size == TIB
        assert os.pread(fd, 4096, TIB - 4096) == bytes(4096)
        assert os.pread(fd, 4096, TIB // 2 + 1) == bytes(4096)
        os.pwrite(fd, b"far", TIB - 3)
        os.pwrite(fd, b"mid", TIB // 2)
        assert os.pread(fd, 10, TIB - 5) == b"\0\0far"
        assert os.pread(fd, 5, TIB // 2 - 1) == b"\0mid\0"
        assert os.fstat(fd).st_size == TIB
        assert os.fstat(fd).st_blocks * 512 <= 4 * CHUNK_BYTES


class Model:
    """A file and the bytes it must have, changed side by side."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random, self.bytes = path, random.Random(seed), bytearray()
        self.fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)

    def _place(self) -> tuple[int, int]:
        length = self.random.choice((1, 100, 4096, 70_000, MIB, 3 * MIB))
        return self.random.randrange(LARGEST_MODEL_BYTES - length), length

    def step(self) -> None:
        """One random operation on both."""
        self.random.choice((self.write, self.write, self.read, self.read, self.truncate, self.reopen))()

    def write(self) -> None:
        """Overwrite, or write past the end."""
        offset, length = self._place()
        data = self.random.randbytes(length)
        assert os.pwrite(self.fd, data, offset) == length
        self.bytes.extend(bytes(max(0, offset - len(self.bytes))))
        self.bytes[offset : offset + length] = data

    def read(self) -> None:
        """Compare a range."""
        offset, length = self._place()
        assert os.pread(self.fd, length, offset) == self.bytes[offset : offset + length], (offset, length)

    def truncate(self) -> None:
        """Cut or grow."""
        size, _ = self._place()
        os.ftruncate(self.fd, size)
        del self.bytes[size:]
        self.bytes.extend(bytes(size - len(self.bytes)))

    def reopen(self) -> None:
        """Close the handle and take another."""
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def close(self) -> None:
        """Close, and compare all of it."""
        os.close(self.fd)
        assert self.path.stat().st_size == len(self.bytes)
        assert self.path.read_bytes() == self.bytes


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_writes_truncates_and_reads_match_a_model(root: Path, seed: int) -> None:
    """Hundreds of random operations leave the file equal to a bytearray that went through the same."""
    model = Model(root / "file", seed)
    for _ in range(STEPS):
        model.step()
    model.close()


def test_seek_data_and_hole_agree_with_the_content(root: Path) -> None:
    """SEEK_DATA never skips data, SEEK_HOLE ends at the file's end at the latest, both fail with ENXIO beyond it."""
    size = 4 * CHUNK_BYTES
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, size)
        os.pwrite(fd, b"data", CHUNK_BYTES)
        data = os.lseek(fd, 0, os.SEEK_DATA)
        assert data <= CHUNK_BYTES
        assert CHUNK_BYTES + 4 <= os.lseek(fd, CHUNK_BYTES, os.SEEK_HOLE) <= size
        with fails(errno.ENXIO):
            os.lseek(fd, size, os.SEEK_DATA)
        with fails(errno.ENXIO):
            os.lseek(fd, size, os.SEEK_HOLE)


def test_copy_file_range_and_sendfile_copy_bytes(root: Path) -> None:
    """Both in-kernel copies work, natively or by the kernel's fallback."""
    content = random.Random(2).randbytes(CHUNK_BYTES + 12_345)
    source = write(root / "source", content)
    for name, copy in (("range", os.copy_file_range), ("sendfile", lambda a, b, n: os.sendfile(b, a, None, n))):
        with opened(source, os.O_RDONLY) as reader, opened(root / name, os.O_CREAT | os.O_WRONLY) as writer:
            while copy(reader, writer, MIB):
                pass
        assert (root / name).read_bytes() == content


def test_posix_fallocate_grows_the_file(root: Path) -> None:
    """posix_fallocate(3) gives the file its size, natively or by writing zeros, and keeps what is there."""
    with opened(write(root / "file", b"kept"), os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 100_000)
        assert os.fstat(fd).st_size == 100_000
        assert os.pread(fd, 6, 0) == b"kept\0\0"


def test_vectored_writes_and_reads_keep_their_order(root: Path) -> None:
    """pwritev and preadv put the pieces where they belong."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        assert os.pwritev(fd, [b"one", b"", b"twoo", b"three"], 2) == 12
        pieces = [bytearray(4), bytearray(10)]
        assert os.preadv(fd, pieces, 0) == 14
        assert b"".join(pieces) == b"\0\0onetwoothree"


def test_space_is_counted_in_blocks(root: Path) -> None:
    """st_blocks covers the bytes of a file that has them all, once it is closed."""
    path = write(root / "file", random.Random(3).randbytes(3 * MIB))
    assert 3 * MIB <= path.stat().st_blocks * 512 <= 2 * CHUNK_BYTES

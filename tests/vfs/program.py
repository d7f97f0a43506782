"""A program that reads and writes one file, and copes with errors."""

from __future__ import annotations

import os
import random

import trio
import trio.testing

from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER
from tests.vfs.faults import Fault
from tests.vfs.files import FILE

PIECE_BYTES = 100 * KIB


class Program:
    """A careful program: whatever fails it does again, and after an fsync that failed all since the one before."""

    def __init__(self, filesystem: Filesystem, ino: int, fh: int) -> None:
        self.filesystem, self.ino, self.fh = filesystem, ino, fh
        self.content = bytearray()
        self.errors: list[int] = []
        self._unsure: list[tuple[int, bytes]] = []
        self._blocks: set[int] = set()

    async def write(self, offset: int, data: bytes) -> None:
        self._unsure.append((offset, data))
        self._blocks.update(range(offset - offset % MIB, offset + len(data), MIB))
        await self._write(offset, data)
        self.content.extend(bytes(max(0, offset + len(data) - len(self.content))))
        self.content[offset : offset + len(data)] = data

    async def _write(self, offset: int, data: bytes) -> None:
        taken = 0
        while taken < len(data):
            try:
                taken += await self.filesystem.data.write(self.fh, offset + taken, data[taken:])
            except FilesystemError as error:
                self._heard(error)

    async def fsync(self) -> None:
        while True:
            try:
                await self.filesystem.data.fsync(self.fh)
            except FilesystemError as error:
                self._heard(error)
                for offset, data in self._unsure:
                    await self._write(offset, data)
            else:
                self._unsure.clear()
                return

    async def truncate(self, size: int) -> None:
        await self.fsync()
        while True:
            try:
                await self.filesystem.change(self.ino, size=size)
            except FilesystemError as error:
                self._heard(error)
            else:
                del self.content[size:]
                return

    def blocks(self) -> list[int]:
        """Where to read: every MiB into which something was ever written. The rest are holes."""
        return sorted(at for at in self._blocks if at < len(self.content))

    async def read(self) -> list[bytes]:
        return [await self._read(at) for at in self.blocks()]

    async def _read(self, at: int) -> bytes:
        while True:
            try:
                return bytes(await self.filesystem.read(self.fh, at, MIB))
            except FilesystemError as error:
                self._heard(error)

    def is_content(self, blocks: list[bytes]) -> bool:
        """Whether this is what should have been read."""
        return blocks == [self.content[at : at + MIB] for at in self.blocks()]

    async def settle(self) -> None:
        """Read what may be on its way still, then make it safe and read it again."""
        seen, errors = await self.read(), len(self.errors)
        await self.fsync()
        assert len(self.errors) > errors or self.is_content(seen)
        assert self.is_content(await self.read())

    def _heard(self, error: FilesystemError) -> None:
        self.errors.append(error.errno or 0)
        assert len(self.errors) < 5, "one fault was told again and again"


async def started(filesystem: Filesystem, name: bytes = b"file") -> Program:
    ino = (await filesystem.make(USER, ROOT_INO, name, FILE)).ino
    return Program(filesystem, ino, await filesystem.open(ino, os.O_RDWR))


async def go_through(filesystem: Filesystem) -> list[int]:
    """Write into three chunks, overwrite, truncate, grow, close and read; returns the errors heard on the way."""
    dice, program = random.Random(1), await started(filesystem)
    for _ in range(2):
        for at in (0, CHUNK_SIZE_BYTES - PIECE_BYTES // 2, 2 * CHUNK_SIZE_BYTES - 10, 2 * CHUNK_SIZE_BYTES + PIECE_BYTES):
            await program.write(at, dice.randbytes(PIECE_BYTES))
        await program.settle()
    await program.truncate(CHUNK_SIZE_BYTES + 1000)
    await program.write(CHUNK_SIZE_BYTES + 20_000, dice.randbytes(PIECE_BYTES))
    await program.settle()
    await filesystem.data.flush(program.fh)
    await filesystem.release(program.fh)
    program.fh = await filesystem.open(program.ino, os.O_RDWR)
    assert (await filesystem.attributes(program.ino)).size == len(program.content)
    assert program.is_content(await program.read())
    await program.write(CHUNK_SIZE_BYTES + 5000, b"asks for the length")
    await program.settle()
    return program.errors


async def rewrite(program: Program, size: int) -> None:
    """Write all of the file again, so that nothing of it is missing when the cluster is checked."""
    for at in range(0, size, MIB):
        await program.write(at, b"again" * (MIB // 5))
    await program.settle()


async def until_met(fault: Fault) -> None:
    await fault.met.wait()
    await trio.testing.wait_all_tasks_blocked(0.01)

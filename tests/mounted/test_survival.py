"""What is there after the mount daemon is killed or unmounted, and to a stranger."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from tests.suite.syscalls import eventually, fails, let_the_clock_tick, opened, write
from tests.suite.testbed import STATE, Testbed, run

MIB = 1 << 20
CHUNK_BYTES = 8 * MIB
SLACK_BYTES = 96 * MIB
"""What free space may differ by: chunks that the killed mount had begun, and the figures' age."""
WORKERS = {"gpu1", "gpu2"}
# Contents are b"x" * n, never bytes(n): from memory that nobody has touched yet the kernel writes to FUSE page by page.

STRANGER = """
import os, socket, struct, sys
HEAD = struct.Struct(">II")
address = (sys.argv[1], int(sys.argv[2]))
for garbage in (b"GET / HTTP/1.1\\r\\n\\r\\n", HEAD.pack(100, 0) + os.urandom(100), HEAD.pack(1 << 31, 1 << 31)):
    with socket.create_connection(address, timeout=10) as sock:
        challenge = sock.recv(HEAD.unpack(sock.recv(8, socket.MSG_WAITALL))[0], socket.MSG_WAITALL)
        assert b"gridfs/1" in challenge, challenge
        said = b""
        try:
            sock.sendall(garbage)
            while part := sock.recv(1 << 16):
                said += part
        except ConnectionError:
            pass
        assert said == b"", said
        print("closed", flush=True)
"""
"""Gets the challenge, answers with garbage, and must be told nothing more; a connection left open is a timeout."""


def daemon_pid(bed: Testbed) -> int:
    """The process that serves the testbed's mount, as its pid file says; checked against its command line."""
    home = Path(json.loads(STATE.read_text())["home"])
    name = f"{quote(str(bed.mountpoint), safe='')}.json"
    pid = int((home / "mounts" / name).with_suffix(".pid").read_text())
    assert os.fsencode(name) in Path(f"/proc/{pid}/cmdline").read_bytes()
    return pid


def has_ended(pid: int) -> bool:
    """Whether that process is gone, or waits only for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def free_bytes(place: Path) -> int:
    """What may still be written."""
    figures = os.statvfs(place)
    return figures.f_bavail * figures.f_frsize


def digest(path: Path) -> str:
    """SHA-256, by the program."""
    return run("sha256sum", path, timeout_s=120).stdout.split()[0]


def sha(content: bytes) -> str:
    """SHA-256 of bytes that we have."""
    return hashlib.sha256(content).hexdigest()


def fsync_directory(path: Path) -> None:
    """Make every op so far durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def keep_files(root: Path) -> dict[str, str]:
    """Make files in all the ways that promise durability; their names, and the hashes they must have from now on."""
    dice = random.Random(21)
    kept = {}
    for number, size in enumerate((0, 1, 5000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 20 * MIB)):
        content = dice.randbytes(size)
        kept[write(root / f"closed{number}", content).name] = sha(content)
    write(root / "replaced", dice.randbytes(20 * MIB))
    content = dice.randbytes(3 * MIB)
    write(root / "replacement", content).rename(root / "replaced")
    kept["replaced"] = sha(content)
    content = dice.randbytes(20 * MIB)
    os.truncate(write(root / "truncated", content), 9 * MIB + 5)
    kept["truncated"] = sha(content[: 9 * MIB + 5])
    (root / "directory").mkdir()
    kept[f"directory/{write(root / 'directory/inner', content).name}"] = sha(content)
    fsync_directory(root)
    return kept


def test_what_was_fsynced_survives_kill_9_of_the_mount(bed: Testbed, root: Path) -> None:
    """Byte for byte, killed in the middle of a write; the space of what was removed is free, and the mount works again."""
    before = free_bytes(root)
    write(root / "removed", b"r" * (256 * MIB)).unlink()
    kept = keep_files(root)
    parts = [random.Random(22).randbytes(MIB + 1) for _ in range(3)]
    with opened(root / "untold", os.O_CREAT | os.O_WRONLY):  # created and never fsynced: no promise, and no harm
        pass
    appended = os.open(root / "appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for part in parts:
        os.write(appended, part)
        os.fsync(appended)
    kept["appended"] = sha(b"".join(parts))
    pid, last = daemon_pid(bed), os.open(root / "last", os.O_CREAT | os.O_WRONLY, 0o644)
    unfinished = root / "unfinished"
    with subprocess.Popen(["dd", "if=/dev/zero", f"of={unfinished}", "bs=1M"], stderr=subprocess.PIPE) as writer:
        eventually(lambda: unfinished.exists() and unfinished.stat().st_size > 16 * MIB, "the writer is under way")
        os.write(last, parts[0])
        os.fsync(last)
        os.kill(pid, signal.SIGKILL)  # microseconds later
        _, complaint = writer.communicate(timeout=20)
        assert writer.returncode != 0, "the writer was not told"
    kept["last"] = sha(parts[0])
    assert b"Transport endpoint" in complaint or b"Software caused" in complaint or b"Input/output" in complaint, complaint
    with fails(errno.ENOTCONN):
        os.listdir(root)
    for fd in (appended, last):
        with suppress(OSError):  # it says ENOTCONN, and closes all the same
            os.close(fd)
    run("umount", "-l", bed.mountpoint)
    bed.gridfs("mount", bed.mountpoint)
    assert daemon_pid(bed) != pid

    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert kept.keys() <= there <= kept.keys() | {"untold", "unfinished"}
    assert {name: digest(root / name) for name in kept} == kept
    with suppress(FileNotFoundError):
        assert not any(unfinished.read_bytes()), "only zeros were written to it"
        unfinished.unlink()
    bytes_kept = sum((root / name).stat().st_size for name in kept)
    eventually(lambda: free_bytes(root) > before - bytes_kept - SLACK_BYTES, "the space of removed files is back")

    assert write(root / "closed2", parts[1]).read_bytes() == parts[1]
    with (root / "appended").open("ab") as file:
        file.write(parts[2])
    assert digest(root / "appended") == sha(b"".join((*parts, parts[2])))
    assert bed.status()["healthy"]


def test_a_clean_unmount_keeps_everything(bed: Testbed, root: Path) -> None:
    """Bytes, modes, owners, times to the nanosecond, extended attributes, links and inode numbers."""
    content = random.Random(23).randbytes(5 * MIB)
    file, directory = write(root / "file", content), root / "directory"
    directory.mkdir(0o710)
    os.link(file, directory / "hard")
    (root / "link").symlink_to("directory/hard")
    os.mkfifo(root / "fifo", 0o600)
    os.setxattr(file, "user.colour", b"blue")
    os.setxattr(directory, "trusted.owner", b"\0\1")
    os.chown(file, 1234, 5678)
    file.chmod(0o4751)
    let_the_clock_tick(root)
    os.utime(file, ns=(10**18 + 1, 10**18 + 2))
    os.utime(root / "link", ns=(10**18 + 3, 10**18 + 4), follow_symlinks=False)

    def facts() -> dict[str, tuple[object, ...]]:
        """Everything that stat(2) tells and that may not change, and the attributes."""
        found: dict[str, tuple[object, ...]] = {}
        for path in (root, *sorted(root.rglob("*"))):
            stat = os.lstat(path)
            attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in _names(path)}
            found[str(path)] = (
                *(stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_size, stat.st_ino, stat.st_blocks),
                *(stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns, attributes),
            )
        return found

    for path in (root, directory):  # a listing in the very tick of the last change would be followed by one that moves atime
        eventually(lambda path=path: bool(os.listdir(path)) and _is_read(path), f"{path.name} has been read")  # type: ignore[misc]
    before, pid = facts(), daemon_pid(bed)
    assert len(before) == 6
    bed.gridfs("umount", bed.mountpoint)
    ended, bare = has_ended(pid), not root.exists()
    bed.gridfs("mount", bed.mountpoint)
    assert (ended, bare) == (True, True)
    assert facts() == before
    assert (root / "link").read_bytes() == content
    assert os.getxattr(file, "user.colour") == b"blue"


def _is_read(path: Path) -> bool:
    """Whether it has been read since it changed: another reading does not move its atime (relatime)."""
    return os.stat(path).st_atime_ns > os.stat(path).st_ctime_ns


def _names(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def test_the_layout_names_the_workers_that_hold_the_chunks(root: Path) -> None:
    """The counts add up; the attribute is not listed, and it and its like cannot be set or removed."""
    size = 12 * CHUNK_BYTES + 1
    file = write(root / "file", b"l" * size)
    layout = json.loads(run("getfattr", "--only-values", "-n", "user.gridfs.layout", file).stdout)
    assert (layout["chunk_size"], layout["size"], layout["chunks"]) == (CHUNK_BYTES, size, 13)
    assert sum(layout["nodes"].values()) == 13
    assert layout["nodes"].keys() == WORKERS
    assert os.listxattr(file) == []
    for name, code in (("gridfs.layout", errno.EPERM), ("gridfs.other", errno.EOPNOTSUPP)):
        with fails(code):
            os.setxattr(file, f"user.{name}", b"{}")
        with fails(code):
            os.removexattr(file, f"user.{name}")
    with fails(errno.ENODATA):
        os.getxattr(file, "user.gridfs.other")
    with fails(errno.ENODATA):
        os.getxattr(root, "user.gridfs.layout")
    run("cp", "-a", file, root / "copy")
    assert os.listxattr(root / "copy") == []


def test_the_master_holds_no_chunk(bed: Testbed, root: Path) -> None:
    """All chunks are counted, and none of them on the master."""
    write(root / "file", b"m" * (10 * CHUNK_BYTES))
    status = bed.status()
    nodes = {node["host"]: node for node in status["nodes"]}
    assert nodes.keys() == {"gpu-master", *WORKERS}
    master = nodes.pop("gpu-master")
    assert (master["role"], master["chunks"], master["used_bytes"], master["capacity_bytes"]) == ("master", 0, 0, 0)
    assert {node["role"] for node in nodes.values()} == {"worker"}
    assert sum(node["chunks"] for node in nodes.values()) == status["chunks"]
    eventually(lambda: bed.status()["chunks"] >= 10, "the chunks are counted")


def listeners(bed: Testbed, host: str) -> list[tuple[str, int]]:
    """Where the processes of that host's chunk servers listen: those that greet as gridfs does."""
    address = json.loads(bed.on(host, "ip", "-json", "-4", "address", "show", "scope", "global").stdout)
    ip = address[0]["addr_info"][0]["local"]
    found = []
    for line in bed.on(host, "ss", "-Hltn").stdout.splitlines():
        at, _, port = line.split()[3].rpartition(":")
        if at == ip:
            found.append((ip, int(port)))
    return found


GREETS = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as sock:
    sock.settimeout(1)
    try:
        print(b"gridfs/1" in sock.recv(100))
    except OSError:
        print(False)
"""


def test_a_stranger_on_another_host_gets_the_challenge_and_nothing_else(bed: Testbed, root: Path) -> None:
    """From the network of gpu2 to the chunk server of gpu1, without the secret."""
    content = random.Random(24).randbytes(2 * CHUNK_BYTES)
    file = write(root / "file", content)
    candidates = listeners(bed, "gpu1")
    servers = [at for at in candidates if bed.on("gpu2", "python", "-c", GREETS, *map(str, at)).stdout == "True\n"]
    assert servers, f"no chunk server found on gpu1 among {candidates}"
    for at in servers:
        assert bed.on("gpu2", "python", "-c", STRANGER, *map(str, at)).stdout == "closed\n" * 3
    with opened(file, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert file.read_bytes() == content


def numbered(block: bytearray, number: int) -> bytearray:
    """The block with its number in front: no two of the file are alike."""
    block[:8] = number.to_bytes(8, "little")
    return block

"""The command `gridfs` in a person's hands: a real local cluster, what goes wrong with it, and what is said then.

The tests that share one filesystem run in the order of this file: the later ones break it more and more.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.local_filesystem import BIN, LocalFilesystem, forget_cached, layout, own_filesystem, refused, running, until

COMMANDS = ("up", "mount", "umount", "status", "fsck", "scrub", "meta", "offload", "jobs", "down")
OTHER_USER = ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups")
PROMPTLY_S = 10.0
START_NODES = """
from gridfs import cluster
from gridfs.cli import filesystem
cluster.start_nodes(filesystem.local_plans(1, 256 << 20))
"""


@pytest.fixture
def empty() -> Iterator[LocalFilesystem]:
    """No filesystem is up."""
    with own_filesystem() as filesystem:
        yield filesystem


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFilesystem]:
    """Two workers of 512 MiB, shared by the tests of this file."""
    with own_filesystem() as filesystem:
        filesystem.do("up", "--workers", "2", "--memory", "512MiB")
        yield filesystem


@pytest.fixture
def mounted(local: LocalFilesystem) -> LocalFilesystem:
    """The shared one, mounted."""
    local.mount()
    return local


@pytest.fixture
def unmounted(local: LocalFilesystem) -> LocalFilesystem:
    """The shared one, not mounted."""
    if local.mounted:
        local.do("umount", local.mountpoint)
    return local


# -- without a filesystem --------------------------------------------------------------------------------------------


def test_every_command_explains_itself_with_an_example(empty: LocalFilesystem) -> None:
    for arguments in ((), *((command,) for command in COMMANDS)):
        help_text = empty.do(*arguments, "--help")
        assert f"Example: {' '.join(('gridfs', *arguments))}" in help_text or arguments == ("down",)
        assert "Example: " in help_text
        assert all(len(line) <= 80 for line in help_text.splitlines())
        assert "..." not in help_text.replace("[ARGS]...", "")


def test_without_a_filesystem_commands_say_how_to_get_one(empty: LocalFilesystem) -> None:
    for arguments in (("status",), ("mount", empty.mountpoint), ("down",), ("down", "--force")):
        refused(empty.gridfs(*arguments), "no filesystem is up here", "run gridfs up")
    refused(empty.gridfs("umount", empty.mountpoint), f"gridfs is not mounted at {empty.mountpoint}")
    assert not empty.home.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--memory", "much"),
        ("up", "--memory", "0"),
        ("up", "--workers", "0"),
        ("up", "--workers", "2", "--address", "127.0.0.1:1"),
        ("mount",),
        ("frobnicate",),
    ],
)
def test_wrong_use_is_a_usage_error(empty: LocalFilesystem, arguments: tuple[str, ...]) -> None:
    done = empty.gridfs(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: gridfs")
    assert "Error: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "Connection refused"), ("nonsense", "HOST:PORT"), ("127.0.0.1:port", "HOST:PORT")],
)
def test_a_wrong_address_is_named(empty: LocalFilesystem, address: str, words: str) -> None:
    refused(empty.gridfs("up", "--address", address), address, words)
    assert not (empty.home / "cluster.json").exists()


def test_up_says_what_stands_in_its_way(empty: LocalFilesystem) -> None:
    refused(empty.gridfs("up", "--memory", "500TiB"), "is free", "choose less with --workers or --memory")
    refused(empty.gridfs("status", environment={"GRIDFS_LOG": "loud"}), "GRIDFS_LOG=loud", "debug, info, warning or error")
    refused(empty.gridfs("up", environment={"GRIDFS_HOME": "/proc/nowhere"}), "/proc/nowhere", "set GRIDFS_HOME")
    refused(empty.gridfs("status", environment={"GRIDFS_HOME": "/proc/version"}), "/proc/version", "set GRIDFS_HOME")


def test_up_by_another_user_than_root_says_so(empty: LocalFilesystem) -> None:
    if subprocess.run([*OTHER_USER, sys.executable, "-c", "import click"], capture_output=True, check=False).returncode:
        pytest.skip("the interpreter is out of reach for other users")
    refused(empty.gridfs("up", under=OTHER_USER), "needs root", "run gridfs up as root")


# -- up, whole -------------------------------------------------------------------------------------------------------


def test_up_twice_is_refused(local: LocalFilesystem) -> None:
    refused(local.gridfs("up"), "already up", "gridfs status", "gridfs down")
    refused(local.gridfs("up", "--address", "127.0.0.1:1"), "already up")


def test_status_tells_nodes_capacity_and_health(local: LocalFilesystem) -> None:
    status = local.status()
    assert status["healthy"]
    assert status["capacity_bytes"] == 2 * 512 << 20
    assert status["mounts"] == []
    assert {node["host"]: node["role"] for node in status["nodes"]} == {
        "worker1": "worker",
        "worker2": "worker",
        "master": "master",
    }
    page = local.do("status")
    assert "worker1" in page
    assert "healthy" in page
    assert "run gridfs mount" in page


def test_verbose_logs_to_standard_error(local: LocalFilesystem) -> None:
    for done in (local.gridfs("-v", "status"), local.gridfs("status", environment={"GRIDFS_LOG": "debug"})):
        assert done.returncode == 0
        assert "DEBUG gridfs" in done.stderr


def test_secrets_are_private_and_on_no_command_line(mounted: LocalFilesystem) -> None:
    secrets = {name: (mounted.home / name).read_bytes() for name in ("secret", "token")}
    private = [mounted.home / "cluster.json", *(mounted.home / name for name in secrets), *(mounted.home / "mounts").iterdir()]
    for path in private:
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert mounted.home.stat().st_mode & 0o777 == 0o700
    assert running(secrets["token"].decode()) == []
    assert running(secrets["secret"].hex()) == []


def test_a_home_of_another_user_is_not_opened(local: LocalFilesystem) -> None:
    if subprocess.run([*OTHER_USER, sys.executable, "-c", "import click"], capture_output=True, check=False).returncode:
        pytest.skip("the interpreter is out of reach for other users")
    for arguments in (("status",), ("down",), ("umount", local.mountpoint), ("mount", local.mountpoint)):
        refused(local.gridfs(*arguments, under=OTHER_USER), str(local.home), "root")


# -- mount and umount ------------------------------------------------------------------------------------------------


def test_mount_refuses_what_is_no_free_directory(unmounted: LocalFilesystem, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(unmounted.gridfs("mount", "/proc"), "/proc has a file system of type proc", "take another directory")
    refused(unmounted.gridfs("mount", tmp_path / "missing"), f"run mkdir -p {tmp_path}/missing")
    refused(unmounted.gridfs("mount", tmp_path / "file"), "is not a directory")
    refused(unmounted.gridfs("mount", unmounted.mountpoint, "-o", "ro,bogus"), "'bogus' is not known")
    refused(unmounted.gridfs("mount", unmounted.mountpoint, "--memory", "32MiB"), "memory of 32.0 MiB is too little")
    assert not unmounted.mounted
    assert unmounted.status()["mounts"] == []


def test_mount_without_a_fuse_device_says_so(unmounted: LocalFilesystem, tmp_path: Path) -> None:
    """No device, and one that may not be opened: in a mount namespace of its own, where /dev is another one."""
    (tmp_path / "dev").mkdir()
    hide = 'mount --make-rprivate / && mount --rbind /dev "$0/dev" && mount -t tmpfs none /dev && for name in null urandom; '
    hide += 'do touch "/dev/$name" && mount --bind "$0/dev/$name" "/dev/$name"; done; '
    for device, words in ((":", "there is no /dev/fuse"), ("mknod /dev/fuse c 0 0", "/dev/fuse cannot be opened")):
        under = ("unshare", "--mount", "sh", "-c", f'{hide}{device} && exec "$@"', str(tmp_path))
        refused(unmounted.gridfs("mount", unmounted.mountpoint, under=under), words, "modprobe fuse")


def test_it_is_mounted_at_a_second_place_and_listed_there(mounted: LocalFilesystem, tmp_path: Path) -> None:
    point = mounted.mountpoint
    mounted.do("mount", tmp_path)
    (tmp_path / "shared").write_text("seen")
    assert (point / "shared").read_text() == "seen"
    assert {mount["mountpoint"] for mount in mounted.status()["mounts"]} == {str(point), str(tmp_path)}
    assert mounted.do("umount", tmp_path) == f"{tmp_path} is unmounted\n"
    (point / "shared").unlink()


def test_a_mount_is_not_made_twice_in_one_place_and_not_taken_from_its_users(mounted: LocalFilesystem) -> None:
    point = mounted.mountpoint
    refused(mounted.gridfs("mount", point), f"gridfs is mounted at {point} already")
    refused(mounted.gridfs("umount", "/proc"), "gridfs is not mounted at /proc")
    refused(mounted.gridfs("down"), f"still mounted at {point}", f"run gridfs umount {point}", "--force")
    with subprocess.Popen(["sleep", "60"], cwd=point) as user:
        try:
            refused(mounted.gridfs("umount", point), f"in use by sleep ({user.pid})")
        finally:
            user.kill()
    assert [mount["state"] for mount in mounted.status()["mounts"]] == ["alive"]
    (point / "file").write_text("kept")
    assert mounted.do("umount", point) == f"{point} is unmounted\n"
    assert os.listdir(point) == []
    mounted.do("mount", point)
    assert (point / "file").read_text() == "kept"


def test_a_mount_in_the_foreground_ends_with_its_umount(unmounted: LocalFilesystem) -> None:
    environment = {**os.environ, "GRIDFS_HOME": str(unmounted.home)}
    command = [str(BIN / "gridfs"), "mount", "-f", str(unmounted.mountpoint)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as daemon:
        until(lambda: unmounted.mounted)
        unmounted.do("umount", unmounted.mountpoint)
        _, log = daemon.communicate(timeout=PROMPTLY_S)
    assert daemon.returncode == 0
    assert "attached" in log


# -- what dies -------------------------------------------------------------------------------------------------------


def test_a_killed_mount_is_called_dead_and_mounted_again(mounted: LocalFilesystem) -> None:
    point = mounted.mountpoint
    path = mounted.file_on("worker1")
    content = path.read_bytes()
    os.kill(mounted.status()["mounts"][0]["pid"], signal.SIGKILL)
    until(lambda: not running(f"{point}.json"))
    status = mounted.status()
    assert [mount["state"] for mount in status["mounts"]] == ["dead"]
    assert not status["healthy"]
    refused(mounted.gridfs("mount", point), "is dead", f"run gridfs umount {point}")
    assert "was dead" in mounted.do("umount", point)
    mounted.do("mount", point)
    assert path.read_bytes() == content


def test_a_mount_goes_on_when_the_inode_table_comes_back(mounted: LocalFilesystem) -> None:
    path = mounted.mountpoint / "across"
    path.write_text("before")
    mounted.replace_actor("master", "InodeTable")
    path.write_text("after")
    forget_cached(path)
    assert mounted.status()["problems"] == []
    mounted.do("umount", mounted.mountpoint)
    mounted.do("mount", mounted.mountpoint)
    assert path.read_text() == "after"


def test_the_scheduler_comes_back(mounted: LocalFilesystem) -> None:
    mounted.replace_actor("master", "Daemon")
    assert mounted.status()["problems"] == []
    assert len(layout(mounted.file_on("worker2"))["nodes"]) == 1


def test_a_chunk_server_is_replaced_and_its_loss_is_told(mounted: LocalFilesystem) -> None:
    path = mounted.file_on("worker1")
    mounted.replace_actor("worker1", "ChunkServer")
    with pytest.raises(OSError) as failure:
        path.read_bytes()
    assert failure.value.errno == errno.EIO
    assert mounted.file_on("worker1").stat().st_size == 8 << 20
    done = mounted.gridfs("status")
    assert done.returncode == 1
    assert "the chunk server on worker1 died with" in done.stdout
    path.unlink()


def test_a_dead_worker_fails_its_files_promptly_and_gets_no_more(mounted: LocalFilesystem) -> None:
    path, other = mounted.file_on("worker1"), mounted.file_on("worker2")
    server = mounted.actor("worker1", "ChunkServer")
    os.kill(mounted.node("worker1"), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{server}").exists())  # its processes follow it
    began_s = time.monotonic()
    with pytest.raises(OSError) as failure:
        path.read_bytes()
    assert failure.value.errno == errno.EIO
    fresh = mounted.mountpoint / "fresh"
    fresh.write_bytes(bytes(range(256)) * (128 << 10))
    forget_cached(fresh)
    assert time.monotonic() - began_s < PROMPTLY_S
    assert layout(fresh)["nodes"] == {"worker2": 4}
    assert fresh.read_bytes() == bytes(range(256)) * (128 << 10)
    assert other.stat().st_size == len(other.read_bytes())
    until(lambda: any(node["level"] == "lost" for node in mounted.status()["nodes"]))
    done = mounted.gridfs("status")
    assert done.returncode == 1
    assert "worker1 has died with" in done.stdout


def test_down_by_force_leaves_nothing(mounted: LocalFilesystem) -> None:
    temp_dir, point = mounted.record["temp_dir"], mounted.mountpoint
    with subprocess.Popen(["sleep", "60"], cwd=point) as user:
        try:
            refused(mounted.gridfs("down"), "still mounted")
            assert mounted.do("down", "--force") == "down\n"
        finally:
            user.kill()
    assert not mounted.mounted
    assert running(temp_dir) == []
    assert running(str(mounted.home)) == []
    assert not Path(temp_dir).exists()
    assert sorted(os.listdir(mounted.home)) == ["lock", "log", "mounts"]
    assert os.listdir(mounted.home / "mounts") == []


def test_a_dead_master_is_named_and_cleaned_up(empty: LocalFilesystem) -> None:
    empty.do("up", "--workers", "1", "--memory", "256MiB")
    empty.mount()
    os.kill(empty.node("master"), signal.SIGKILL)
    began_s = time.monotonic()
    refused(empty.gridfs("status"), "its master has died", "run gridfs down")
    refused(empty.gridfs("up"), "has died", "run gridfs down")
    assert "its filesystem had died" in empty.do("umount", empty.mountpoint)
    assert empty.do("down") == "down\n"
    assert time.monotonic() - began_s < PROMPTLY_S
    refused(empty.gridfs("status"), "run gridfs up")


def test_a_cluster_that_exists_is_used_and_left_alone(empty: LocalFilesystem) -> None:
    with own_filesystem() as nodes:
        environment = {**os.environ, "GRIDFS_HOME": str(nodes.home)}
        subprocess.run([sys.executable, "-c", START_NODES], env=environment, check=True, capture_output=True, timeout=60)
        address, token = nodes.record["address"], str(nodes.home / "token")
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
        refused(nodes.gridfs("status"), "its filesystem is gone")
        refused(
            empty.gridfs("up", "--address", address, "--memory", "1GiB", environment=access), "worker1", "less with --memory"
        )
        empty.do("up", "--address", address, environment=access)
        assert empty.gridfs("status", environment=access).returncode == 0
        elsewhere = {**access, "GRIDFS_HOME": f"{empty.home}/other"}
        refused(empty.gridfs("up", "--address", address, environment=elsewhere), "has a filesystem already")
        assert empty.do("down", environment=access) == "down\n"
        assert nodes.actor("worker1", "ChunkServer") is None
        assert len(running(f"{nodes.record['temp_dir']}/worker1")) > 0
        assert nodes.do("down") == "down\n"

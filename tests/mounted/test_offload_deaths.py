"""What becomes of jobs when a part of a real filesystem is killed under them."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

from tests.mounted.jobs import Request, finished, left, local, runs_on, status, submitted
from tests.suite.syscalls import eventually, fails
from tests.suite.testbed import Testbed, run

MASTER = "gpu-master"


def sleeping(duration_s: int, **options: bool | str) -> Request:
    """A command that says when it has slept."""
    return {"run": ["sh", "-c", f"sleep {duration_s}; echo slept"], **options}


def test_a_job_ends_without_the_mount_and_is_there_after_the_next(bed: Testbed, root: Path, file: Path) -> None:
    job = submitted(file, sleeping(2, output="out"))
    runs_on(bed, job)
    (mount,) = bed.status()["mounts"]
    os.kill(mount["pid"], signal.SIGKILL)
    with fails(errno.ENOTCONN):
        left(bed, job, "status")
    run("umount", "-l", bed.mountpoint)
    bed.gridfs("mount", bed.mountpoint)
    told = finished(bed, job)
    assert (told["state"], told["attempts"]) == ("done", 1)
    assert (root / "out").read_text() == "slept\n"


def test_jobs_and_their_numbers_survive_the_scheduler(bed: Testbed, file: Path) -> None:
    """What ran is begun anew if it may be repeated, and else failed with the reason."""
    ended = finished(bed, submitted(file, b"sha256"))
    repeated, other = (submitted(file, sleeping(3, idempotent=idempotent)) for idempotent in (True, False))
    for job in (repeated, other):
        runs_on(bed, job)
    local(bed).replace_actor(MASTER, "Daemon")
    eventually(lambda: status(bed, ended["id"]) == ended, "what had ended is there")
    told = finished(bed, repeated)
    assert (told["state"], told["attempts"], left(bed, repeated, "stdout")) == ("done", 2, b"slept\n")
    told = finished(bed, other)
    assert (told["state"], told["attempts"]) == ("failed", 1)
    assert "restarted" in told["error"]
    assert submitted(file, b"wc") > other


def test_what_a_runner_was_doing_is_done_again_or_fails(bed: Testbed, root: Path, file: Path) -> None:
    def after_a_kill(idempotent: bool) -> dict[str, Any]:
        job = submitted(file, sleeping(3, idempotent=idempotent, output=f"{idempotent}"))
        local(bed).replace_actor(runs_on(bed, job), "Runner")
        return finished(bed, job)

    told = after_a_kill(idempotent=True)
    assert (told["state"], told["attempts"]) == ("done", 2)
    told = after_a_kill(idempotent=False)
    assert (told["state"], told["attempts"]) == ("failed", 1)
    assert "was lost while it worked" in told["error"]
    assert (root / "True").read_text() == "slept\n"
    eventually(lambda: sorted(os.listdir(root)) == ["True", "file"], "nothing is left of the output that will not be")


def test_finished_jobs_are_told_of_without_the_inode_table(bed: Testbed, file: Path) -> None:
    job = submitted(file, b"sha256")
    ended = finished(bed, job)
    eventually(lambda: bed.gridfs("fsck", check=False).returncode == 0, "no chunk of an earlier test waits to be dropped")
    table = local(bed).actor(MASTER, "InodeTable")
    assert table is not None
    going_on = submitted(file, sleeping(2))
    runs_on(bed, going_on)
    os.kill(table, signal.SIGKILL)
    assert status(bed, job) == ended
    eventually(lambda: local(bed).actor(MASTER, "InodeTable") not in (None, table), "there is another table")
    assert status(bed, job) == ended
    told = finished(bed, going_on)
    assert (told["state"], told["attempts"]) == ("done", 1)
    assert finished(bed, submitted(file, b"sha256"))["result"] == ended["result"]

"""The one testbed of a test session: three hosts, real Ray nodes, the filesystem mounted.

It is brought up by the first test that asks and taken down at the end of the session. `tests/suite` and `tests/mounted`
share it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
WORKERS = 2
MEMORY = "1GiB"
UP_S = 180.0
DOWN_S = 90.0
COMMAND_S = 90.0
STATE = Path("/run/gridfs-testbed.json")

_undo = contextlib.ExitStack()
"""What takes the testbed down again."""


def run(*command: str | Path, check: bool = True, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed. Raises AssertionError with its output when it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout_s, check=False)
    if check:
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@dataclass(frozen=True, slots=True)
class Testbed:
    """A testbed that is up, with the filesystem mounted at `mountpoint` from `gpu-master`."""

    mountpoint: Path
    __test__ = False

    def on(self, host: str, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on a host of the testbed."""
        return run(PROJECT / "tools/testbed", "exec", host, *command, check=check)

    def gridfs(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the gridfs command on the master."""
        return self.on("gpu-master", PROJECT / ".venv/bin/gridfs", *arguments, check=check)

    def status(self) -> dict[str, Any]:
        """What `gridfs status --json` says."""
        status: dict[str, Any] = json.loads(self.gridfs("status", "--json").stdout)
        return status


@functools.cache
def testbed() -> Testbed:
    """The session's testbed; the first call brings it up. Raises AssertionError when another one is up.

    One that a session left which was killed is replaced.
    """
    atexit.register(down)
    mountpoint = Path(tempfile.mkdtemp(prefix="gridfs-mounted-"))
    mountpoint.chmod(0o755)
    _undo.callback(testbed.cache_clear)
    _undo.callback(mountpoint.rmdir)
    _undo.callback(run, PROJECT / "tools/testbed", "down", timeout_s=DOWN_S)
    run(
        *(PROJECT / "tools/testbed", "up", "--workers", str(WORKERS), "--memory", MEMORY),
        *("--mountpoint", mountpoint, "--owner", str(os.getpid())),
        timeout_s=UP_S,
    )
    return Testbed(mountpoint)


def down() -> None:
    """Take the session's testbed down, if it was brought up. Leaves nothing behind, also after a failure half way."""
    atexit.unregister(down)
    _undo.close()


def given_directory() -> Path | None:
    """The directory that the suite is to be run in instead of a testbed."""
    given = os.environ.get("GRIDFS_SUITE_DIR")
    return Path(given) if given else None

"""The errors gridfs raises on purpose.

Two families. `FilesystemError` carries an errno and ends as the result of a system call. `GridfsError` carries one
sentence for a person and ends as the last line a command prints. Anything else that is raised is a bug: the mount turns
it into EIO with its traceback in the log (`mount.operations`), the CLI into an exit status of 70.
"""

import os


class FilesystemError(OSError):
    """A filesystem operation failed with `errno`, as POSIX names it; `detail` is for the log, never for the program."""

    def __init__(self, errno: int, detail: str = "") -> None:
        super().__init__(errno, detail or os.strerror(errno))


class GridfsError(Exception):
    """Something a person must hear: one sentence that says what is wrong and what to do."""


class ConnectionLost(Exception):
    """A stream ended, timed out or was refused; requests under way on it may or may not have taken effect."""


class AuthenticationFailed(ConnectionLost):
    """The other end does not hold the filesystem's secret, or the epoch is fenced."""

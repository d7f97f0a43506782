"""mount.gridfs: serves one mountpoint. `gridfs mount` finds the filesystem and then becomes this program."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from gridfs import config, logs
from gridfs.errors import GridfsError
from gridfs.stream.lookout import looking_out
from gridfs.types import Address, Endpoints
from mount.options import Options, parse_options
from mount.session import serve


def main() -> None:
    """Parse, detach from the terminal unless told not to, serve. Exit status 1 and one sentence on failure."""
    parser = argparse.ArgumentParser(prog="mount.gridfs", description=__doc__)
    parser.add_argument("mountpoint")
    parser.add_argument("--handoff", type=Path, required=True, help="file with the endpoints, written by 'gridfs mount'")
    parser.add_argument(
        "-o",
        dest="options",
        default="",
        help="mount options, and memory=SIZE, write-window=SIZE, replicas=N; separated by commas",
    )
    parser.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("-v", dest="verbose", action="store_true", help="log more")
    arguments = parser.parse_args()
    try:
        options = parse_options(arguments.options)
        endpoints = read_handoff(arguments.handoff)
        run = _run_in_foreground if arguments.foreground else _run_in_background
        run(os.path.abspath(arguments.mountpoint), endpoints, options, arguments)
    except GridfsError as error:
        arguments.handoff.unlink(missing_ok=True)  # it holds the secret, and nobody needs it any more
        sys.exit(f"gridfs: {error}")


def read_handoff(path: Path) -> Endpoints:
    """The endpoints in a handoff file. Raises GridfsError when it is not one."""
    try:
        content = json.loads(path.read_bytes())
        return Endpoints(Address(*content["inode_table"]), bytes.fromhex(content["secret"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GridfsError(f"{path} is no handoff file ({error}): run 'gridfs mount'") from error


def _run_in_foreground(mountpoint: str, endpoints: Endpoints, options: Options, arguments: argparse.Namespace) -> None:
    logs.start("debug" if arguments.verbose else None)
    _serve(mountpoint, endpoints, options, arguments.handoff, lambda: None)


def _run_in_background(mountpoint: str, endpoints: Endpoints, options: Options, arguments: argparse.Namespace) -> None:
    """Return once the daemon has mounted; raise GridfsError with what it says if it cannot."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            verdict = pipe.read()
        if verdict != "mounted":
            raise GridfsError(verdict or f"the mount daemon ended: see {_log_path(arguments)}")
        return
    os.close(reading)
    os.setsid()
    verdict = ""
    try:
        _redirect_to_log(arguments)
        _serve(mountpoint, endpoints, options, arguments.handoff, lambda: _tell(writing, "mounted"))
    except GridfsError as error:
        verdict = str(error)
    except BaseException as error:
        verdict = f"the mount daemon failed ({type(error).__name__}): see {_log_path(arguments)}"
        raise
    finally:
        if verdict:
            _tell(writing, verdict)
    sys.exit(1 if verdict else 0)


def _tell(pipe: int, verdict: str) -> None:
    """Tell the waiting parent; it is gone if it has been told before."""
    try:
        os.write(pipe, verdict.encode())
        os.close(pipe)
    except OSError:
        pass


def _log_path(arguments: argparse.Namespace) -> Path:
    return config.home() / "log" / f"mount-{arguments.handoff.stem}.log"


def _redirect_to_log(arguments: argparse.Namespace) -> None:
    path = _log_path(arguments)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    os.chdir("/")
    logs.start("debug" if arguments.verbose else None)


def _serve(mountpoint: str, endpoints: Endpoints, options: Options, handoff: Path, tell: Callable[[], None]) -> None:
    """Serve, with the daemon's process id in a file beside the handoff for as long as it is mounted."""
    pid_file = handoff.with_suffix(".pid").absolute()

    def mounted() -> None:
        config.write_private(pid_file, f"{os.getpid()}\n".encode())
        tell()

    async def looking_for_requests() -> None:
        with looking_out():
            await serve(mountpoint, endpoints, options, mounted)

    try:
        trio.run(looking_for_requests)
    except* GridfsError as errors:
        raise GridfsError(str(errors.exceptions[0])) from None
    finally:
        if _read(pid_file) == f"{os.getpid()}\n":  # a later mount at the same place may have put its own there
            pid_file.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main()

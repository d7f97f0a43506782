"""Where log lines go. $GRIDFS_LOG names the level for every process of gridfs: debug, info (the default), warning, error."""

from __future__ import annotations

import logging
import os
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOGGERS = ("gridfs", "mount", "scheduler")


def start(level: str | None = None, path: Path | None = None) -> None:
    """Send this process's log to `path`, or to standard error; may be called again. Raises ValueError for a bad level."""
    chosen = (level or os.environ.get("GRIDFS_LOG") or "info").upper()
    for name in LOGGERS:
        logging.getLogger(name).setLevel(chosen)  # raises before anything has changed
    handler = logging.FileHandler(path) if path else logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
        logger.propagate = False

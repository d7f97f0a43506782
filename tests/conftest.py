"""Rules for every test: its level, what it may log, what the machine must have, and what the session may leave behind."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridfs.logs import LOGGERS
from tests.leftovers import Leftovers
from tests.suite import testbed

LEVELS = {"unit": "unit", "vfs": "vfs", "cluster": "cluster", "mounted": "mounted", "suite": "mounted"}
"""Folder -> level, in the order in which they run: what is quick and says most comes first."""
NEEDS = {"unit": (), "vfs": (), "cluster": ("root",), "mounted": ("root", "/dev/fuse")}

pytest.register_assert_rewrite("tests.calls")  # cases that vfs and suite share: their assertions tell what they compared

_leftovers = pytest.StashKey[Leftovers]()
_left = pytest.StashKey[list[str]]()
_passed = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def bed() -> Iterator[testbed.Testbed]:
    """The testbed, with the filesystem mounted. In the end `gridfs fsck` must find nothing wrong."""
    if testbed.given_directory():
        pytest.skip("GRIDFS_SUITE_DIR is set: there is no testbed")
    bed = testbed.testbed()
    yield bed
    checked = bed.gridfs("fsck", check=False)
    testbed.down()
    assert checked.returncode == 0, f"gridfs fsck after the tests:\n{checked.stdout}{checked.stderr}"


# -- levels ----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its level, and sort by it."""
    for item in items:
        item.add_marker(LEVELS[_folder(item)])
    order = list(LEVELS)
    items.sort(key=lambda item: order.index(_folder(item)))


def _folder(item: pytest.Item) -> str:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if folder not in LEVELS:
        raise pytest.UsageError(f"{item.path} is in no level's folder: tests/ has {', '.join(LEVELS)}")
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without what its level needs a test is skipped; or it fails, if GRIDFS_TEST_STRICT is set."""
    if _folder(item) == "suite" and testbed.given_directory():
        return
    here = {"root": os.geteuid() == 0, "/dev/fuse": os.access("/dev/fuse", os.R_OK | os.W_OK)}
    missing = [need for need in NEEDS[LEVELS[_folder(item)]] if not here[need]]
    if missing:
        reason = f"needs {' and '.join(missing)}"
        if os.environ.get("GRIDFS_TEST_STRICT"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


# -- logs ------------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Remember whether the test itself passed."""
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.fixture(autouse=True)
def unexpected_log_fails(request: pytest.FixtureRequest) -> Iterator[None]:
    """A passing test that logs a warning, an error or a traceback which it does not expect fails after all.

    `expected_log(pattern)` lets records through whose message matches, and one must come; without a pattern, any record.
    The loggers are left as they were found.
    """
    with Recorder() as records:
        yield
    if not request.node.stash.get(_passed, False):
        return
    expected = {(mark.args or ("",))[0]: False for mark in request.node.iter_markers("expected_log")}
    unexpected = []
    for record in records:
        matching = [pattern for pattern in expected if re.search(pattern, record.getMessage())]
        expected.update(dict.fromkeys(matching, True))
        if not matching:
            unexpected.append(f"unexpected log: {record.levelname} {record.name}: {_text(record)}")
    missing = [f"no log record matched {pattern!r}" for pattern, seen in expected.items() if not seen]
    if unexpected or missing:
        pytest.fail("\n".join(unexpected + missing), pytrace=False)


class Recorder:
    """Collects records of level WARNING and above of our loggers, as they are made.

    Not by a handler: `gridfs.logs.start` replaces the loggers' handlers and stops what would propagate.
    """

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []
        self._factory = logging.getLogRecordFactory()
        self._loggers = [logging.getLogger(name) for name in LOGGERS]
        self._found = [(logger.level, logger.propagate, logger.handlers[:]) for logger in self._loggers]

    def __enter__(self) -> list[logging.LogRecord]:
        logging.setLogRecordFactory(self._make)
        return self.records

    def _make(self, *arguments: Any, **options: Any) -> logging.LogRecord:
        record = self._factory(*arguments, **options)
        if record.levelno >= logging.WARNING and record.name.partition(".")[0] in LOGGERS:
            self.records.append(record)
        return record

    def __exit__(self, *raised: object) -> None:
        logging.setLogRecordFactory(self._factory)
        for logger, (level, propagate, handlers) in zip(self._loggers, self._found, strict=True):
            for handler in logger.handlers[:]:
                if handler not in handlers:
                    logger.removeHandler(handler)
                    handler.close()
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers


def _text(record: logging.LogRecord) -> str:
    return logging.Formatter().format(record)


# -- what is left behind ---------------------------------------------------------------------------------------------


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what is on the machine."""
    session.stash[_leftovers] = Leftovers()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take the testbed down, after all fixtures; the session fails if anything is left then."""
    testbed.down()
    levels = {LEVELS[_folder(item)] for item in session.items}
    left = session.stash[_left] = session.stash[_leftovers].find(levels)
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left behind."""
    session = terminalreporter._session
    left = session.stash.get(_left, []) if session else []
    if left:
        terminalreporter.section("left behind by this session", red=True, bold=True)
        for line in left:
            terminalreporter.line(line)

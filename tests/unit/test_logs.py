"""Where log lines go."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest

from gridfs import logs


@pytest.fixture(autouse=True)
def _no_level_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIDFS_LOG", raising=False)


def test_a_line_has_time_level_logger_and_message(tmp_path: Path) -> None:
    logs.start(path=tmp_path / "log")
    for name in logs.LOGGERS:
        logging.getLogger(f"{name}.some.module").info("chunk %d", 7)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [f"INFO {name}.some.module: chunk 7" for name in logs.LOGGERS]


def test_other_libraries_are_left_alone(tmp_path: Path) -> None:
    logs.start("debug", tmp_path / "log")
    logging.getLogger("trio").info("hello")
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize(
    ("argument", "environment", "level"),
    [
        *((None, None, "INFO"), ("debug", None, "DEBUG"), ("Error", "debug", "ERROR"), (None, "warning", "WARNING")),
        *((None, "", "INFO"), (None, "WARNING", "WARNING")),
    ],
)
def test_the_level_is_the_argument_else_the_environments_else_info(
    argument: str | None, environment: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("GRIDFS_LOG", environment)
    logs.start(argument)
    assert {logging.getLogger(name).getEffectiveLevel() for name in logs.LOGGERS} == {logging.getLevelName(level)}


def test_a_level_that_does_not_exist_is_an_error_and_leaves_the_log_as_it_is(tmp_path: Path) -> None:
    logs.start("info", tmp_path / "log")
    with pytest.raises(ValueError, match="CHATTY"):
        logs.start("chatty", tmp_path / "other")
    gc.collect()  # a file that is left open would tell now
    logging.getLogger("gridfs").info("still here")
    assert "still here" in (tmp_path / "log").read_text()


def test_starting_again_sends_every_line_to_the_new_place_only(tmp_path: Path) -> None:
    logs.start(path=tmp_path / "one")
    logs.start(path=tmp_path / "two")
    gc.collect()
    logging.getLogger("gridfs.vfs").info("once")
    assert (tmp_path / "one").read_text() == ""
    assert (tmp_path / "two").read_text().count("once") == 1


def test_lines_go_to_standard_error_by_default_and_not_to_the_root_logger_as_well(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logs.start()
    logging.getLogger("mount").info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert caplog.records == []

"""Sizes as people write them, and where gridfs keeps its files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gridfs.config import GIB, KIB, MIB, format_size, home, parse_size, write_private

# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        *(("0", 0), ("4096", 4096), ("4096B", 4096), ("512M", 512 * MIB), ("3GiB", 3 * GIB), ("3 GiB", 3 * GIB)),
        *(("1.5g", 3 * GIB // 2), ("0.5k", 512), (" 2 tb ", 2048 * GIB), ("1kib", KIB), ("9007199254740993", 2**53 + 1)),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "+1", "1.2.3", "1e3", "0x10", "3 GiB free", "1PiB", "3iB", "1_000", "."])
def test_what_is_no_size_is_told_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: write a number and a unit, such as"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (MIB, "1.0 MiB"), (3 * GIB, "3.0 GiB")),
        *((MIB - 1, "1.0 MiB"), (GIB - 1, "1.0 GiB"), (1024 * GIB, "1.0 TiB"), (5 << 50, "5120.0 TiB"), (-2048, "-2.0 KiB")),
    ],
)
def test_a_size_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 1 << 60))
def test_what_is_formatted_can_be_parsed_and_is_close(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.05)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uid", "expected"), [(0, "/var/lib/gridfs"), (1000, "/somewhere/.local/state/gridfs")])
def test_home_depends_on_who_runs(uid: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIDFS_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert home() == Path(expected)


def test_home_can_be_chosen_and_is_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRIDFS_HOME", str(tmp_path / "chosen"))
    assert home() == tmp_path / "chosen"
    assert not home().exists()
    monkeypatch.setenv("GRIDFS_HOME", "")
    assert home().is_absolute()


@pytest.fixture
def permissive_umask() -> object:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.mark.usefixtures("permissive_umask")
def test_a_private_file_is_for_its_owner_only_and_so_are_the_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "secret"
    write_private(path, b"\x00\xffsecret")
    assert path.read_bytes() == b"\x00\xffsecret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.usefixtures("permissive_umask")
def test_a_private_file_replaces_what_was_there_and_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"longer than what replaces it")
    path.chmod(0o644)
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_a_private_file_that_cannot_be_put_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError):
        write_private(path, b"new")
    assert os.listdir(tmp_path) == ["folder"]

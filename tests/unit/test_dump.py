"""A dump that was cut, changed or made up is refused, with a sentence that says where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from gridfs.errors import GridfsError
from gridfs.meta.dump import dump, load
from tests.unit.tables import SYMLINK, Steps


def make() -> list[bytes]:
    steps = Steps()
    directory = steps.mkdir(b"d")
    file = steps.make(b"f", directory)
    steps.do("place", file, 0, ("one",))
    steps.do("extend", 7, file, 5)
    steps.do("set_xattr", file, b"user.a", b"\xff", 0)
    steps.make(b"s", mode=SYMLINK)
    return list(dump(steps.table, 99))


def summed(lines: list[bytes]) -> list[bytes]:
    """The lines with a checksum that fits."""
    digest = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    return [*lines[:-1], json.dumps({"sha256": digest}).encode() + b"\n"]


def edited(number: int, **fields: Any) -> list[bytes]:
    """The dump with fields of one row replaced, or removed if None, and a checksum that fits."""
    lines = make()
    changed = {**json.loads(lines[number]), **fields}
    lines[number] = json.dumps({name: value for name, value in changed.items() if value is not None}).encode() + b"\n"
    return summed(lines)


HEADER, ROOT, DIRECTORY, FILE, LINK, NAME_D, NAME_F, NAME_S, CHUNK, LAST = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9


def test_the_lines_are_where_this_file_thinks() -> None:
    rows = [json.loads(line) for line in make()]
    assert [row.get("row") for row in rows] == [None, *["inode"] * 4, *["name"] * 3, "chunk", None]
    assert (rows[NAME_F]["name"], rows[LINK]["target"]) == ("s", "target")
    assert load(make()).check() == []


def test_a_changed_digit_is_found_by_the_checksum() -> None:
    lines = make()
    lines[FILE] = lines[FILE].replace(b'"size":5', b'"size":6')
    with pytest.raises(GridfsError, match="line 10 of the dump is another checksum"):
        load(lines)


def test_every_cut_is_found() -> None:
    whole = b"".join(make())
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(GridfsError, match="nothing was loaded"):
            load(whole[:length].splitlines(keepends=True))


def test_every_line_that_is_missing_or_doubled_is_found() -> None:
    for number in range(LAST):
        lines = make()
        for changed in (lines[:number] + lines[number + 1 :], lines[: number + 1] + lines[number:]):
            with pytest.raises(GridfsError, match="nothing was loaded"):
                load(summed(changed))


CASES: list[tuple[str, Callable[[], list[bytes]], str]] = [
    ("no dump", lambda: [b"hello\n"], "line 1 of the dump is no JSON"),
    ("a list", lambda: [b"[]\n"], "line 1 of the dump is no JSON object"),
    ("other JSON", lambda: [b'{"a": 1}\n'], "is not the header of a dump of gridfs"),
    ("newer", lambda: edited(HEADER, version=2), "says version 2, this gridfs reads 1"),
    ("no number", lambda: edited(FILE, size="5"), "line 4 of the dump has no number size"),
    ("true", lambda: edited(FILE, nlink=True), "has no number nlink"),
    ("large", lambda: edited(FILE, size=1 << 63), "has no number size"),
    ("field missing", lambda: edited(FILE, ctime_ns=None), "has no number ctime_ns"),
    ("inode 0", lambda: edited(FILE, ino=0), "has inode 0"),
    ("no type", lambda: edited(FILE, mode=0o644), "has mode 644"),
    ("odd mode", lambda: edited(FILE, mode=1 << 20), "has mode"),
    ("bad name", lambda: edited(NAME_D, name="a/b"), "which is no name"),
    ("dot", lambda: edited(NAME_D, name=".."), "which is no name"),
    ("long name", lambda: edited(NAME_D, name="x" * 256), "which is no name"),
    ("name of a number", lambda: edited(NAME_D, name=7), "neither text nor base64"),
    ("bad base64", lambda: edited(NAME_D, name={"base64": "?"}), "text that stands for no bytes"),
    ("lone surrogate", lambda: edited(NAME_D, name="\udcff"), "text that stands for no bytes"),
    ("name in a file", lambda: edited(NAME_D, parent=3), "which is no directory"),
    ("name of nobody", lambda: edited(NAME_D, ino=77), "inode 77, which does not exist"),
    ("chunk of nobody", lambda: edited(CHUNK, ino=77), "inode 77, which does not exist"),
    ("no servers", lambda: edited(CHUNK, servers=[]), "no list of servers"),
    ("negative index", lambda: edited(CHUNK, index=-1), "no chunk"),
    ("xattrs", lambda: edited(FILE, xattrs=[["user.a"]]), "no list of attributes"),
    ("unknown row", lambda: edited(CHUNK, row="lock"), "is no inode, name, chunk or checksum"),
    ("unsound", lambda: edited(FILE, nlink=3), "no sound table, inode 3 has nlink 3"),
    ("count", lambda: edited(HEADER, names=9), "should have 9 names and has 3"),
    ("next number", lambda: edited(HEADER, next_ino=3), "not below the next number"),
    ("more", lambda: [*make(), b"{}\n"], "line 11 of the dump comes after the last one"),
    ("nothing", list, "ends after 0 lines"),
]


@pytest.mark.parametrize(("lines", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_is_refused(lines: Callable[[], list[bytes]], sentence: str) -> None:
    with pytest.raises(GridfsError) as raised:
        load(lines())
    assert sentence in str(raised.value)
    assert str(raised.value).endswith(": nothing was loaded")

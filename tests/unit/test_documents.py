"""docs/SEMANTICS.md names the tests of its promises: they have to exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
_BRACKETS = re.compile(r"\[([a-z]+/[^\]\[]*)\]")
_NEXT_FILE = re.compile(r";\s*|,\s*(?=[a-z]+/)")


def references(text: str) -> Iterator[tuple[str, str]]:
    """(file below tests/, name in it or "") of every reference in brackets."""
    for match in _BRACKETS.finditer(text):
        for part in _NEXT_FILE.split(" ".join(match[1].split())):
            file, _, names = part.partition(":")
            for name in names.split(",") or [""]:
                yield file.strip(), name.strip()


def missing(file: str, name: str) -> bool:
    """Whether there is no such file, or nothing of that name is defined in it; `test_` is left out in the document."""
    path = PROJECT / "tests" / file
    return not path.is_file() or re.search(rf"(def (test_)?|class ){name}", path.read_text()) is None


def test_every_test_that_the_semantics_name_exists() -> None:
    named = set(references((PROJECT / "docs/SEMANTICS.md").read_text()))
    assert len(named) > 50
    assert sorted(reference for reference in named if missing(*reference)) == []

"""The words after a function's name. Everything here raises ValueError with a sentence when they are wrong."""

from __future__ import annotations

import getopt
from collections.abc import Sequence
from typing import Any


def parse(name: str, arguments: Sequence[Any], options: str, least: int = 0, most: int = 0) -> tuple[dict[str, str], list[str]]:
    """The options given, by their letter, and the other words, of which there are `least` to `most`.

    `options` is as getopt(3) has it; options and words may be mixed, and "--" ends the options.
    """
    for argument in arguments:
        if not isinstance(argument, str | int) or isinstance(argument, bool):
            message = f"the arguments of {name} are texts and whole numbers, and {argument!r:.100} is neither"
            raise ValueError(message)  # noqa: TRY004 - as all else that is wrong with what a person wrote
    try:
        given, words = getopt.gnu_getopt([str(argument) for argument in arguments], options)
    except getopt.GetoptError as error:
        raise ValueError(f"{name}: {error}") from error
    if not least <= len(words) <= most:
        wanted = "none" if not most else str(most) if least == most else f"{least} to {most}"
        raise ValueError(f"{name} takes {wanted} beside its options, and was given {len(words)}")
    return {option[1:]: value for option, value in given}, words


def whole_number(text: str, what: str, least: int, most: int) -> int:
    """The number that `text` says."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and least <= int(text) <= most):
        raise ValueError(f"{what} is a whole number from {least} to {most}, and not {text!r:.100}")
    return int(text)

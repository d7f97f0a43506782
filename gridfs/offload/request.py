"""What people write into `user.offload`, and what it asks for: a built-in function in plain words, or a JSON object.

Whatever is written there, by whoever may: the answer is a `Request`, or EINVAL with one sentence that says why.
"""

from __future__ import annotations

import errno
import json
import math
import re
import shlex
from collections.abc import Callable
from typing import Any

from gridfs.config import PATH_MAX_BYTES, XATTR_SIZE_MAX_BYTES, parse_size
from gridfs.errors import FilesystemError
from gridfs.offload import registry
from gridfs.offload.job import MEMORY_BYTES, TIMEOUT_S, Request

_KINDS = ("function", "python", "run")
_KEYS = {*_KINDS, "args", "output", "overwrite", "shell", "timeout_s", "memory", "idempotent", "split"}
_CALLABLE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What JSON can escape, and neither UTF-8 nor a command line can hold."""
_NUMBER_MAX = 1 << 63
_DEPTH_MAX = 32
"""Lists and objects within each other: what carries a request on has a limit of its own, far above."""
_SHOWN = 60
"""So much of what somebody wrote is said again in a sentence."""


def parse(value: bytes) -> Request:
    """The request that `value` makes. Raises EINVAL with a sentence as its detail; never anything else."""
    try:
        text = _decoded(value)
        return _from_object(_loaded(text)) if text.startswith("{") else _from_text(text)
    except ValueError as error:
        raise FilesystemError(errno.EINVAL, str(error)) from None


def _decoded(value: bytes) -> str:
    if len(value) > XATTR_SIZE_MAX_BYTES:
        raise ValueError(f"the request has more than {XATTR_SIZE_MAX_BYTES} bytes")
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("the request is not UTF-8 text") from None
    if "\0" in text:
        raise ValueError("the request has a zero byte in it")
    if not text:
        raise ValueError("the request is empty: write a function such as sha256, or a JSON object")
    return text


def _from_text(text: str) -> Request:
    words = _split(text)
    return _function(words[0], words[1:], {})


def _split(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{_shown(text)} cannot be split into words: {error}") from None
    if not words or not words[0]:
        raise ValueError("there is no word that says what to do")
    return words


# -- JSON ------------------------------------------------------------------------------------------------------------


def _loaded(text: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
        )
    except RecursionError:
        raise ValueError(f"the JSON is nested more than {_DEPTH_MAX} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the JSON is not valid: {error}") from None
    _refuse_odd(content, 0)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"{_shown(twice)} is said twice")
    return content


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_shown(text)} is too large a number")
    return number


def _integer(text: str) -> int:
    if len(text) > len(str(_NUMBER_MAX)) or not -_NUMBER_MAX <= int(text) < _NUMBER_MAX:
        raise ValueError(f"{_shown(text)} is too large a number")
    return int(text)


def _refuse_odd(value: Any, depth: int) -> None:
    """Refuse what a stream, a command line or a path could not carry."""
    if depth > _DEPTH_MAX:
        raise ValueError(f"the JSON is nested more than {_DEPTH_MAX} deep")
    if isinstance(value, str) and _NO_CHARACTER.search(value):
        raise ValueError(f"{_shown(value)} has a character that is none")
    if isinstance(value, dict):
        _refuse_odd(list(value), depth)
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _refuse_odd(part, depth + 1)


def _from_object(content: dict[str, Any]) -> Request:
    unknown = sorted(set(content) - _KEYS)
    if unknown:
        raise ValueError(f"{_shown(unknown[0])} is not known: a request has {', '.join(sorted(_KEYS))}")
    kinds = [kind for kind in _KINDS if kind in content]
    if len(kinds) != 1:
        raise ValueError(f"a request has one of {', '.join(_KINDS)}, and this one has {' and '.join(kinds) or 'none of them'}")
    options = _options(content)
    return _BUILDERS[kinds[0]](content, options)


def _options(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of the `Request` that do not depend on its kind."""
    output = _of_type(content, "output", str, "")
    if "output" in content and (not output or len(output.encode()) >= PATH_MAX_BYTES):
        raise ValueError("output is no path")
    options = {
        "output": output,
        "overwrite": _of_type(content, "overwrite", bool, False),
        "timeout_s": _timeout_s(content),
        "memory_bytes": _memory_bytes(content),
        "idempotent": _of_type(content, "idempotent", bool, False),
    }
    if options["overwrite"] and not output:
        raise ValueError("overwrite goes with an output")
    return options


def _of_type(content: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = content.get(key, default)
    if type(value) is not kind:  # a bool is an int, and is not meant by one
        raise ValueError(f"{key} is {_shown(value)}, which is no {_TYPES[kind]}")
    return value


_TYPES = {str: "text", bool: "true or false", list: "list"}


def _timeout_s(content: dict[str, Any]) -> float:
    value = content.get("timeout_s", TIMEOUT_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"timeout_s is {_shown(value)}, which is no number of seconds")
    return float(value)


def _memory_bytes(content: dict[str, Any]) -> int:
    value = content.get("memory", MEMORY_BYTES)
    size_bytes = parse_size(value) if isinstance(value, str) and len(value) <= _SHOWN else value
    if type(size_bytes) is not int or not 0 < size_bytes < _NUMBER_MAX:
        raise ValueError(f"memory is {_shown(value)}, which is no size")
    return size_bytes


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# -- kinds -----------------------------------------------------------------------------------------------------------


def _built_in(content: dict[str, Any], options: dict[str, Any]) -> Request:
    words = _split(_of_type(content, "function", str, ""))
    return _function(words[0], [*words[1:], *_arguments(content)], options, content)


def _function(name: str, arguments: list[Any], options: dict[str, Any], content: dict[str, Any] | None = None) -> Request:
    _refuse(content or {}, "shell", "run")
    _refuse(content or {}, "split", "python")
    if name not in registry.NAMES:
        known = ", ".join(sorted(registry.NAMES))
        raise ValueError(f"{_shown(name)} is no function: there are {known}; a command is written as JSON, with run")
    registry.make(name, arguments)
    return Request("function", name, tuple(arguments), **options)


def _python(content: dict[str, Any], options: dict[str, Any]) -> Request:
    _refuse(content, "shell", "run")
    name = _of_type(content, "python", str, "")
    if not _CALLABLE.fullmatch(name):
        raise ValueError(f"{_shown(name)} is no Python function: write module:function")
    return Request("python", name, tuple(_arguments(content)), **options, split=_of_type(content, "split", bool, False))


def _command(content: dict[str, Any], options: dict[str, Any]) -> Request:
    if "args" in content:
        raise ValueError("args goes with function and python: a command has its words in run")
    _refuse(content, "split", "python")
    run, shell = content["run"], _of_type(content, "shell", bool, False)
    if shell:
        text = _of_type(content, "run", str, "").strip()
        if not text:
            raise ValueError("run is empty")
        return Request("command", text.splitlines()[0], (text,), **options, shell=shell)
    words = run if isinstance(run, list) else _split(_of_type(content, "run", str, ""))
    if not words or not words[0] or not all(isinstance(word, str) for word in words):
        raise ValueError(f"run is {_shown(run)}, which is neither text nor a list of words")
    return Request("command", words[0], tuple(words), **options)


def _arguments(content: dict[str, Any]) -> list[Any]:
    arguments: list[Any] = _of_type(content, "args", list, [])
    return arguments


def _refuse(content: dict[str, Any], key: str, kind: str) -> None:
    if key in content:
        raise ValueError(f"{key} goes with {kind}")


_BUILDERS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Request]] = {
    "function": _built_in,
    "python": _python,
    "run": _command,
}

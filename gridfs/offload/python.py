"""Python functions of other people's modules, as jobs call them, in a child process.

`module:function` is called as `function(chunks, context)`. `chunks` iterates over the file's bytes in order, as memoryviews
that are valid until the next one is asked for. Or it is an object with `map(chunk, context)` and `reduce(partials, context)`:
then the result is that of `reduce`, given what `map` has made of each chunk, in the order of the file; partials are what
msgpack carries. Such a pair can run on several nodes: `map_run` on each over some adjacent chunks, then `reduce` on one.

A result is bytes, or an iterable of bytes, or what JSON carries; of a list or tuple the elements say which. It crosses to the
parent as pieces, the first of which says what kind it is.

Modules are imported in the child, as the submitter, each time: a module that has changed is the new one for the next job. The
child has the service's memory; so the modules that may be named, which the caller checks, must be trusted not to look into it.
"""

from __future__ import annotations

import importlib
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce as fold
from typing import Any

import msgpack

from gridfs.config import MIB
from gridfs.errors import GridfsError
from gridfs.offload.pipes import Buffer

_NAME = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_BYTES, _JSON = b"bytes", b"json"
_BUFFERS = (bytes, bytearray, memoryview)

Write = Callable[[Buffer], None]


@dataclass(frozen=True, slots=True)
class Context:
    """What a function is told about its job."""

    job: int
    args: tuple[Any, ...]
    """What the request has named as "args"."""
    name: str
    """The file's name, and its size in bytes."""
    size: int
    node: str
    """The host that it runs on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a function has returned: bytes in `stream`, or, if that is None, `value`."""

    value: Any
    stream: Iterator[bytes] | None


def module_of(name: str) -> str:
    """The module of "module:function". ValueError, with a sentence, if it is nothing like that."""
    if not (match := _NAME.fullmatch(name)):
        raise ValueError(f"{name!r} is not of the form module:function")
    return match[1]


def outcome(pieces: Iterator[bytes]) -> Outcome:
    """In the parent: what the pieces of `call` or `reduce` say. A child that failed has none: then `value` is None."""
    kind = next(pieces, None)
    if kind == _BYTES:
        return Outcome(None, pieces)
    text = b"".join(pieces)
    return Outcome(json.loads(text) if text else None, None)


# -- in the child --------------------------------------------------------------------------------------------------------


def call(name: str, chunks: Iterator[memoryview], context: Context, write: Write) -> None:
    """Write the result of `name` over all chunks.

    Like the three below it raises GridfsError with one sentence for whatever goes wrong in the function, with the traceback on
    standard error, and when there is no such function; but MemoryError for itself.
    """
    with _Told(name):
        function = _find(name)
        if _is_pair(function):
            result = function.reduce((function.map(chunk, context) for chunk in chunks), context)
        else:
            result = function(chunks, context)
        _write_result(result, write)


def call_pair(name: str, chunks: Iterator[memoryview], context: Context, write: Write) -> None:
    """Write what `map_run` and `reduce` make of all chunks: here, but the same as on several nodes, and of a pair only."""
    with _Told(name):
        pair = _find_pair(name)
        _write_result(_reduced(pair, _mapped(pair, chunks, context), context), write)


def map_run(name: str, chunks: Iterator[memoryview], context: Context, write: Write) -> None:
    """Write the partials of some adjacent chunks, a piece each. What they must be given to is `reduce`."""
    with _Told(name):
        for partial in _mapped(_find_pair(name), chunks, context):
            write(partial)


def reduce(name: str, partials: Iterable[bytes], context: Context, write: Write) -> None:
    """Write the result over all pieces of `map_run`, in order."""
    with _Told(name):
        _write_result(_reduced(_find_pair(name), partials, context), write)


class _Told:
    """Makes what is raised within a sentence."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (GridfsError, MemoryError)):
            return
        traceback.print_exception(error)
        raise GridfsError(f"{self._name} failed: {type(error).__name__}: {error}") from error


def _find(name: str) -> Any:
    module, path = module_of(name), name.partition(":")[2]
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise GridfsError(f"there is no module {module} on this node") from None
        raise
    try:
        function = fold(getattr, path.split("."), loaded)
    except AttributeError:
        raise GridfsError(f"the module {module} has no {path}") from None
    home = getattr(function, "__module__", None) or module
    if home.partition(".")[0] != module.partition(".")[0]:
        raise GridfsError(f"{name} is {home}'s, which the module {module} only uses")
    if not callable(function) and not _is_pair(function):
        raise GridfsError(f"{name} is no function")
    return function


def _find_pair(name: str) -> Any:
    pair = _find(name)
    if not _is_pair(pair):
        raise GridfsError(f"{name} has no map and reduce, so it cannot be split")
    return pair


def _is_pair(function: Any) -> bool:
    return callable(getattr(function, "map", None)) and callable(getattr(function, "reduce", None))


def _mapped(pair: Any, chunks: Iterator[memoryview], context: Context) -> Iterator[bytes]:
    return (msgpack.packb(pair.map(chunk, context)) for chunk in chunks)


def _reduced(pair: Any, partials: Iterable[bytes], context: Context) -> Any:
    return pair.reduce((msgpack.unpackb(partial, strict_map_key=False) for partial in partials), context)


def _write_result(result: Any, write: Write) -> None:
    if isinstance(result, _BUFFERS):
        _write_bytes([result], write)
    elif isinstance(result, (str, int, float, dict, type(None))) or _is_list_of_values(result):
        text = json.dumps(result, allow_nan=False).encode()
        write(_JSON)
        _write_blocks(text, write)
    elif isinstance(result, Iterable):
        _write_bytes(result, write)
    else:
        raise TypeError(f"the result is of type {type(result).__name__}, neither bytes nor what JSON carries")


def _is_list_of_values(result: Any) -> bool:
    return isinstance(result, (list, tuple)) and not (result and all(isinstance(item, _BUFFERS) for item in result))


def _write_bytes(pieces: Iterable[Any], write: Write) -> None:
    write(_BYTES)
    for piece in pieces:
        if not isinstance(piece, _BUFFERS):
            raise TypeError(f"one piece of the result is of type {type(piece).__name__}, not bytes")
        _write_blocks(piece, write)


def _write_blocks(data: Buffer, write: Write) -> None:
    view = memoryview(data).cast("B")
    for start in range(0, len(view), MIB):
        write(view[start : start + MIB])

"""What the scheduler has to know of the work of a job: whether it can be split, and how results come together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gridfs.offload import registry
from gridfs.offload.job import Request
from gridfs.offload.work import unpack_partial

COMPRESSING = ("gzip", "zstd")
"""Their partial results are about as large as what they are made of."""
COMPRESSED_MAX_BYTES = 64 << 20
"""Of an input whose parts are compressed apart: what comes of them passes through the scheduler."""


class Functions(Protocol):
    """What a `Dispatcher` asks of functions; a test may play it."""

    def check(self, request: Request) -> None:
        """Raise ValueError with a sentence if there is no such function, or not with these arguments."""

    def splits(self, request: Request, size: int) -> bool:
        """Whether nodes may work on parts of an input of that size, each for itself."""

    def reduce(self, request: Request, partials: Sequence[bytes]) -> Any:
        """The value that the packed partials of all runs make, in the order of the file.

        None if a node is to make it: when it is a stream, or when that takes somebody's module, which never comes in here.
        """


class BuiltIn:
    """The functions of the registry, and Python functions that are asked for as `split`; nothing else splits."""

    def check(self, request: Request) -> None:
        """See `Functions`."""
        if request.kind == "function":
            registry.make(request.name, request.arguments)

    def splits(self, request: Request, size: int) -> bool:
        """See `Functions`."""
        if request.kind == "python":
            return request.split
        if request.kind != "function" or (request.name in COMPRESSING and size > COMPRESSED_MAX_BYTES):
            return False
        return registry.make(request.name, request.arguments).splits

    def reduce(self, request: Request, partials: Sequence[bytes]) -> Any:
        """See `Functions`."""
        if request.kind == "python":
            return None
        function = registry.make(request.name, request.arguments)
        if function.streams:
            return None
        return function.reduce(iter(unpack_partial(partial)) for partial in partials)

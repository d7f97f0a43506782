"""What a built-in function is to those who run it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class Function(Protocol):
    """One built-in function with its arguments. It does no I/O of its own, and keeps nothing from one call to the next.

    What is wrong with the data, or with the node, is a ValueError with a sentence for a person.
    """

    @property
    def splits(self) -> bool:
        """True: `map` may run on every node over that node's runs. False: one `map` must see the whole file, in order."""

    @property
    def streams(self) -> bool:
        """True: `reduce` gives bytes. False: it gives a value that JSON carries."""

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """The partial result of one run, in one or more pieces; where one ends and the next begins does not matter.

        A run is a range of adjacent bytes that begins and ends where chunks do, `offset` bytes from the file's beginning.
        `first` and `last`: it begins, or ends, where the file does. A view is not used after the next one was asked for.
        """

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Any:
        """The result, out of the partial results of all runs, in the order of the file. A file without bytes may have none.

        It is the same however the file was split into runs; of what compresses, what it decompresses to.
        """

"""Sealed chunks as Ray objects in this node's object store."""

from __future__ import annotations

import pickle
from typing import Any, Protocol

import ray


class Objects(Protocol):
    """Immutable byte objects, kept while a ref to them is held."""

    def put(self, content: memoryview) -> tuple[Any, memoryview]:
        """Copy `content` into an object; returns its ref and a read-only view of it. May block; any thread may call it.

        Raises MemoryError when the store has no room for it now.
        """


class RayObjects:
    """Objects of the Ray node that this process runs on. They live as long as this process holds their refs."""

    def put(self, content: memoryview) -> tuple[Any, memoryview]:
        """See `Objects.put`. The view is zero-copy: it is the object's memory in the store, and pins it there."""
        try:
            ref = ray.put(pickle.PickleBuffer(content))
        except ray.exceptions.ObjectStoreFullError as error:
            raise MemoryError("the node's object store is full") from error
        return ref, memoryview(ray.get(ref))

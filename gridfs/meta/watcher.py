"""Who has to know when a replica changes by itself."""

from __future__ import annotations

from typing import Protocol

from gridfs.meta.table import Changes


class Watcher(Protocol):
    """Who has to know when the replica changes by itself. Nothing is answered to other mounts before these return."""

    async def changed(self, changed: Changes) -> None:
        """Rows have been changed by others."""

    async def joined(self) -> None:
        """Another mount is about to attach: from now on nothing may be relied on that was not asked for just now."""

    def reloaded(self) -> None:
        """The replica is another one: anything may have changed."""

    def restarted(self) -> None:
        """The server has restarted, and forgotten which orphans are not held here."""

    def is_clean(self) -> bool:
        """True while nothing was written that is not safe: then a fenced mount may begin anew."""

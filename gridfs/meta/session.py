"""A mount's session with the inode table, as the server keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import trio

from gridfs.meta.rows import Page
from gridfs.meta.table import Changes
from gridfs.stream.endpoint import Peer
from gridfs.stream.handshake import Identity


class Session:
    """One attached mount, connected or not.

    `seq` counts the ops it has had applied, and `results` are those of its newest batch, kept for the case that the reply
    was lost. `own` and `foreign` name the rows, changed by itself and by others, that its replica has not been sent; `sent_own`
    and `sent_foreign` those in the newest reply, which it has not said it has got.
    """

    def __init__(self, identity: Identity, epoch: int, now_s: float, seq: int = 0, results: list[Any] | None = None) -> None:
        self.identity, self.epoch = identity, epoch
        self.started_s = self.heard_s = now_s
        self.active_s = now_s
        """When it last served a program."""
        self.peers: dict[str, Peer] = {}
        """Its connections: `ops` carries requests, `follow` brings news."""
        self.ended_s: float | None = None
        """When its last connection ended; None while it has one, and while it may not know that the server restarted."""
        self.seq, self.saved_seq = seq, seq
        self.results: list[Any] = results or []
        self.number = -1
        """Its replica has all ops up to this one; -1 until it follows."""
        self.base = 0
        """The number of the newest snapshot made for it."""
        self.own, self.foreign, self.sent_own, self.sent_foreign = Changes(), Changes(), Changes(), Changes()
        self.reply = 0
        self.snapshot: Iterator[Page] = iter(())
        self.news = trio.Event()

    @property
    def id(self) -> str:
        """Its identity, unique for ever."""
        identifier: str = self.identity["id"]
        return identifier

    @property
    def pending(self) -> bool:
        """True while there are rows that it has not been sent."""
        return bool(self.own or self.foreign)

    def heard(self, reply: int) -> None:
        """It has got the newest reply, or says that it has not: then its rows are sent again."""
        if reply != self.reply:
            self.own.merge(self.sent_own)
            self.foreign.merge(self.sent_foreign)
        self.sent_own, self.sent_foreign = Changes(), Changes()

    def forget_changes(self) -> None:
        """A snapshot will have everything that was changed so far."""
        for changes in (self.own, self.foreign, self.sent_own, self.sent_foreign):
            changes.clear()

    def wake(self) -> None:
        """There is news for it."""
        news, self.news = self.news, trio.Event()
        news.set()

    def pack(self) -> list[Any]:
        """What the store keeps of it."""
        return [self.identity, self.epoch, self.seq, self.results]

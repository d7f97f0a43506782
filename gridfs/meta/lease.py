"""The write lease: who may apply ops on its own replica, and the turns by which that right moves.

Pure: it knows sessions by their ids and reads no clock. A *turn* is one change of what sessions may do; each session
says which turn it has adopted, and no right is given before those who lose it have said so.
"""

from __future__ import annotations

from enum import Enum

LEASE, SHARED, DARK = "lease", "shared", "dark"
"""What a session may do. lease: apply ops on its replica and send them on. shared: read its replica, and have ops applied by
the server. dark: nothing, before it has asked to share: its replica may be old."""


class Phase(Enum):
    """Where the lease is."""

    SHARED = "shared"
    GRANTING = "granting"
    """The others are being told to go dark."""
    LEASED = "leased"
    RECALLING = "recalling"
    """The holder is being told to stop, and sends what it has applied."""


class Lease:
    """Owned by the server's task; no method awaits. `holder` is set in every phase but SHARED."""

    def __init__(self, holder: str | None = None) -> None:
        self.holder = holder
        self.phase = Phase.LEASED if holder else Phase.SHARED
        self.turn = 1
        self._leased_turn = 1
        self._adopted: dict[str, int | None] = {}
        """None for a session that has not begun to follow: it has no rights yet, and nobody waits for it."""

    def state(self, session: str) -> str:
        """What the session may do once it has adopted the present turn."""
        if self.phase is Phase.SHARED:
            return SHARED
        if session != self.holder:
            return DARK
        return LEASE if self.phase is Phase.LEASED else SHARED

    @property
    def held_by(self) -> str | None:
        """Who may be applying ops of its own: the holder, once no other may."""
        return self.holder if self.phase in (Phase.LEASED, Phase.RECALLING) else None

    def may_execute(self, session: str) -> bool:
        """Whether the server may carry out an op for this session, or must recall the lease first.

        One that is about to get the lease goes on sharing until it has it.
        """
        if self.phase is Phase.SHARED:
            return True
        if session != self.holder or self.phase is Phase.RECALLING:
            return False
        return self.phase is Phase.GRANTING or (self._adopted.get(session) or 0) < self._leased_turn

    def join(self, session: str, follows: bool = False) -> None:
        """A session begins, dark; by the next turn the others know that they are not alone."""
        self._adopted[session] = 0 if follows else None
        self._next_turn()

    def leave(self, session: str) -> None:
        """The session has ended, and its rights with it. The others learn it by a turn: one may be alone now."""
        self._adopted.pop(session, None)
        if session == self.holder:
            self.holder, self.phase = None, Phase.SHARED
        self._next_turn()
        self._advance()

    def adopt(self, session: str, turn: int) -> None:
        """The session has adopted `turn`: it does what its state allows, and nothing more."""
        if session in self._adopted:
            self._adopted[session] = turn
            self._advance()

    def adopted(self, turn: int, but: str) -> bool:
        """True once all sessions but one have adopted `turn` or a later one."""
        return all(newest is None or newest >= turn for session, newest in self._adopted.items() if session != but)

    def recall(self) -> None:
        """Begin to make the phase SHARED, unless that is on its way."""
        if self.phase is Phase.GRANTING:
            self.holder, self.phase = None, Phase.SHARED
            self._next_turn()
        elif self.phase is Phase.LEASED:
            self.phase = Phase.RECALLING
            self._next_turn()

    def grant(self, session: str) -> None:
        """Begin to give the lease to a session. Only in phase SHARED."""
        assert self.phase is Phase.SHARED
        assert session in self._adopted
        self.holder, self.phase = session, Phase.GRANTING
        self._next_turn()
        self._advance()

    def _next_turn(self) -> int:
        self.turn += 1
        return self.turn

    def _advance(self) -> None:
        """Take the step for which an adoption may have been missing."""
        if self.phase is Phase.GRANTING and self.adopted(self.turn, but=self.holder or ""):
            self.phase = Phase.LEASED
            self._leased_turn = self._next_turn()
        elif self.phase is Phase.RECALLING and (self._adopted.get(self.holder or "") or 0) >= self.turn:
            self.holder, self.phase = None, Phase.SHARED
            self._next_turn()

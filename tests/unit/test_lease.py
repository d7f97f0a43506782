"""The write lease: nobody gets a right before those who lose it have said that they know."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gridfs.meta.lease import DARK, LEASE, SHARED, Lease, Phase


def adopt_all(lease: Lease, *sessions: str) -> None:
    """Every session adopts the present turn."""
    for session in sessions:
        lease.adopt(session, lease.turn)


def leased_to_one(*others: str) -> Lease:
    """A lease that "one" holds, and `others` know it."""
    lease = Lease()
    for session in ("one", *others):
        lease.join(session)
        lease.adopt(session, lease.turn)
    lease.grant("one")
    adopt_all(lease, *others)
    adopt_all(lease, "one", *others)
    return lease


def test_without_a_holder_everyone_shares() -> None:
    lease = Lease()
    lease.join("one")
    assert (lease.state("one"), lease.held_by) == (SHARED, None)


def test_a_sole_session_is_granted_the_lease_at_once() -> None:
    lease = Lease()
    lease.join("one", follows=True)
    lease.grant("one")
    assert (lease.state("one"), lease.held_by) == (LEASE, "one")


def test_the_lease_is_not_held_before_the_others_have_gone_dark() -> None:
    lease = Lease()
    lease.join("one", follows=True)
    lease.join("two", follows=True)
    lease.grant("one")
    assert (lease.state("one"), lease.state("two"), lease.held_by) == (SHARED, DARK, None)
    lease.adopt("two", lease.turn)
    assert (lease.state("one"), lease.held_by) == (LEASE, "one")


def test_nobody_waits_for_a_session_that_does_not_follow_yet() -> None:
    lease = leased_to_one()
    lease.join("two")
    lease.adopt("one", lease.turn)
    assert lease.adopted(lease.turn, but="")
    lease.recall()
    lease.adopt("one", lease.turn)
    lease.grant("one")
    assert lease.state("one") == LEASE


def test_a_recalled_lease_is_shared_once_its_holder_has_adopted_that() -> None:
    lease = leased_to_one("two")
    lease.recall()
    assert (lease.phase, lease.state("one"), lease.state("two"), lease.held_by) == (Phase.RECALLING, SHARED, DARK, "one")
    lease.adopt("two", lease.turn)
    assert lease.phase is Phase.RECALLING
    lease.adopt("one", lease.turn)
    assert (lease.state("one"), lease.state("two"), lease.held_by) == (SHARED, SHARED, None)


def test_a_grant_that_is_recalled_before_all_are_dark_never_happens() -> None:
    lease = Lease()
    for session in ("one", "two"):
        lease.join(session, follows=True)
    lease.grant("one")
    granted = lease.turn
    lease.recall()
    lease.adopt("two", granted)
    assert (lease.state("one"), lease.state("two")) == (SHARED, SHARED)


@pytest.mark.parametrize("adopts", [False, True])
def test_who_is_about_to_get_the_lease_has_ops_executed_until_it_knows(adopts: bool) -> None:
    lease = Lease()
    for session in ("one", "two"):
        lease.join(session, follows=True)
    lease.grant("one")
    assert lease.may_execute("one")
    assert not lease.may_execute("two")
    lease.adopt("two", lease.turn)
    if adopts:
        lease.adopt("one", lease.turn)
    assert lease.may_execute("one") is not adopts


@pytest.mark.parametrize("phase", Phase)
def test_the_end_of_the_holder_ends_its_lease(phase: Phase) -> None:
    lease = leased_to_one("two")
    if phase is Phase.LEASED:
        pass
    else:
        lease.recall()
        if phase is not Phase.RECALLING:
            adopt_all(lease, "one")
        if phase is Phase.GRANTING:
            lease.grant("one")
    assert lease.phase is phase
    lease.leave("one")
    assert (lease.phase, lease.state("two")) == (Phase.SHARED, SHARED)


def test_the_end_of_another_is_not_waited_for() -> None:
    lease = Lease()
    for session in ("one", "two"):
        lease.join(session, follows=True)
    lease.grant("one")
    lease.leave("two")
    assert lease.held_by == "one"


def test_a_newcomer_makes_a_turn_that_the_holder_adopts_and_keeps_the_lease() -> None:
    lease = leased_to_one()
    before = lease.turn
    lease.join("two")
    assert lease.turn > before
    assert not lease.adopted(lease.turn, but="two")
    lease.adopt("one", lease.turn)
    assert lease.adopted(lease.turn, but="two")
    assert (lease.state("one"), lease.state("two")) == (LEASE, DARK)


class LeaseMachine(RuleBasedStateMachine):
    """Sessions that adopt late: what they believe may be old, and no two beliefs may contradict each other."""

    sessions = st.sampled_from(("one", "two"))

    def __init__(self) -> None:
        super().__init__()
        self.lease = Lease()
        self.beliefs: dict[str, str] = {}
        self.heard: dict[str, tuple[int, str]] = {}
        for session in ("one", "two"):
            self.join(session)
            self.hear_and_adopt(session)

    @rule(session=sessions)
    def join(self, session: str) -> None:
        if session not in self.beliefs:
            self.lease.join(session)
            self.beliefs[session] = DARK

    @precondition(lambda self: len(self.beliefs) > 1)
    @rule(session=sessions)
    def leave(self, session: str) -> None:
        if self.beliefs.pop(session, None) is not None:
            self.heard.pop(session, None)
            self.lease.leave(session)

    @rule(session=sessions)
    def hear(self, session: str) -> None:
        if session in self.beliefs:
            self.heard[session] = (self.lease.turn, self.lease.state(session))

    @rule(session=sessions)
    def adopt(self, session: str) -> None:
        if session in self.heard:
            turn, self.beliefs[session] = self.heard.pop(session)
            self.lease.adopt(session, turn)

    @rule(session=sessions)
    def hear_and_adopt(self, session: str) -> None:
        self.hear(session)
        self.adopt(session)

    @rule()
    def recall(self) -> None:
        self.lease.recall()

    @precondition(lambda self: self.lease.phase is Phase.SHARED and self.beliefs)
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        self.lease.grant(data.draw(st.sampled_from(sorted(self.beliefs))))

    @invariant()
    def one_with_the_lease_is_the_only_one_who_may_do_anything(self) -> None:
        if LEASE in self.beliefs.values():
            assert sorted(set(self.beliefs.values()) - {DARK}) == [LEASE]
            assert list(self.beliefs.values()).count(LEASE) == 1
            assert self.beliefs.get(self.lease.held_by or "") == LEASE

    @invariant()
    def nothing_is_executed_while_someone_has_the_lease(self) -> None:
        if LEASE in self.beliefs.values():
            assert not any(self.lease.may_execute(session) for session in ("", *self.beliefs))


LeaseMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None, database=None)
TestLease = LeaseMachine.TestCase

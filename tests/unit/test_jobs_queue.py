"""Jobs wait, run and end once, by fair turns, within quotas; and nothing changes that could not be kept."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gridfs.errors import FilesystemError
from gridfs.offload.job import ENDED, Job
from scheduler.jobs.queue import CHUNKS_MAX, Queue, Quotas
from tests.unit.jobs import ALICE, BOB, job, source


class Jobs:
    """A queue, and what it has had kept."""

    def __init__(self, **quotas: int) -> None:
        self.kept: dict[int, Job] = {}
        self.fails = False
        self.queue = Queue(self.keep, replace(Quotas(), **quotas))

    def keep(self, job: Job) -> None:
        if self.fails:
            raise FilesystemError(errno.EIO, "as asked")
        self.kept[job.id] = job

    def submit(self, number: int, uid: int = ALICE) -> None:
        self.queue.admit(number, uid, 1)
        self.queue.submit(job(number, uid))

    def start_next(self) -> int:
        """Start whose turn it is; 0 if there is none."""
        found = next(self.queue.candidates(), None)
        if found is None:
            return 0
        self.queue.start(found.id, ["a"], "", 2000)
        return found.id

    def order(self) -> list[int]:
        """The jobs in the order in which they start when each ends before the next."""
        started = []
        while number := self.start_next():
            started.append(number)
            self.queue.end(number, "done", 3000)
        return started


# -- turns -----------------------------------------------------------------------------------------------------------


def test_the_jobs_of_one_user_start_in_their_order() -> None:
    jobs = Jobs()
    for number in (1, 2, 3):
        jobs.submit(number)
    assert jobs.order() == [1, 2, 3]


def test_users_take_turns_however_many_jobs_one_has() -> None:
    jobs = Jobs()
    for number in range(1, 6):
        jobs.submit(number)
    for number in (6, 7):
        jobs.submit(number, BOB)
    assert jobs.order() == [1, 6, 2, 7, 3, 4, 5]


def test_who_submits_each_job_when_the_last_has_ended_gets_no_more_turns_than_who_waits() -> None:
    jobs, started = Jobs(), []
    for number in range(1, 10):
        jobs.submit(number)
    for number in range(10, 18):
        if not any(waiting.submitter.uid == BOB for waiting in jobs.queue.waiting):
            jobs.submit(number, BOB)
        started.append(jobs.start_next())
        jobs.queue.end(started[-1], "done", 3000)
    assert len([number for number in started if number < 10]) == 4


def test_a_job_that_is_run_again_comes_before_later_ones() -> None:
    jobs = Jobs()
    for number in (1, 2):
        jobs.submit(number)
    jobs.start_next()
    jobs.queue.requeue(1, "its node died")
    assert (jobs.kept[1].state, jobs.kept[1].error) == ("queued", "its node died")
    assert jobs.order() == [1, 2]
    assert jobs.kept[1].attempts == 2


# -- quotas ----------------------------------------------------------------------------------------------------------


def test_the_queue_has_an_end_and_those_being_submitted_count() -> None:
    jobs = Jobs(queue_max=2)
    jobs.submit(1)
    jobs.queue.admit(2, BOB, 1)
    with pytest.raises(FilesystemError, match="queue is full") as raised:
        jobs.queue.admit(3, BOB, 1)
    assert raised.value.errno == errno.EAGAIN
    jobs.queue.withdraw(2)
    jobs.queue.admit(3, BOB, 1)


def test_one_user_cannot_fill_the_queue() -> None:
    jobs = Jobs(queued_per_user_max=2)
    jobs.submit(1)
    jobs.submit(2)
    with pytest.raises(FilesystemError, match="no more are allowed"):
        jobs.queue.admit(3, ALICE, 1)
    jobs.submit(4, BOB)


def test_one_user_may_have_a_thousand_jobs_waiting_and_no_more_unless_somebody_says_so() -> None:
    jobs = Jobs()
    for number in range(1, 1001):
        jobs.submit(number)
    with pytest.raises(FilesystemError) as raised:
        jobs.queue.admit(1001, ALICE, 1)
    assert raised.value.errno == errno.EAGAIN


def test_the_chunks_of_all_jobs_are_bounded_but_one_job_may_have_more() -> None:
    jobs = Jobs()
    jobs.queue.admit(1, ALICE, CHUNKS_MAX + 1)
    with pytest.raises(FilesystemError, match="chunks"):
        jobs.queue.admit(2, ALICE, 1)
    jobs.queue.withdraw(1)
    jobs.queue.admit(2, ALICE, 1)


def test_no_more_run_than_may_of_one_user_and_of_all() -> None:
    jobs = Jobs(running_max=3, running_per_user_max=2)
    for number in range(1, 5):
        jobs.submit(number)
    for number in range(5, 9):
        jobs.submit(number, BOB)
    assert [jobs.start_next() for _ in range(4)] == [1, 5, 2, 0]
    jobs.queue.end(5, "done", 3000)
    assert jobs.start_next() == 6


def test_a_user_with_all_the_jobs_running_that_he_may_holds_up_nobody() -> None:
    jobs = Jobs(running_per_user_max=1)
    for number in (1, 2):
        jobs.submit(number)
    jobs.submit(3, BOB)
    assert [jobs.start_next() for _ in range(3)] == [1, 3, 0]


# -- ends ------------------------------------------------------------------------------------------------------------


def test_cancelling_ends_what_waits_and_marks_what_runs() -> None:
    jobs = Jobs()
    jobs.submit(1)
    jobs.submit(2)
    jobs.start_next()
    ended = jobs.queue.cancel(2, 4000)
    assert ended is not None
    assert (ended.state, jobs.kept[2].ended_ns) == ("cancelled", 4000)
    assert jobs.queue.cancel(1, 4000) is None
    assert jobs.queue.is_cancelled(1)
    assert jobs.kept[1].state == "running"


def test_what_cannot_be_kept_has_not_happened() -> None:
    jobs = Jobs()
    jobs.submit(1)
    jobs.submit(2)
    jobs.start_next()
    jobs.queue.admit(3, ALICE, 1)
    jobs.fails = True
    before = (dict(jobs.kept), jobs.queue.ids, jobs.queue.running)
    changes: tuple[Callable[[], object], ...] = (
        lambda: jobs.queue.submit(job(3)),
        lambda: jobs.queue.start(2, ["a"], "", 1),
        lambda: jobs.queue.requeue(1, ""),
        lambda: jobs.queue.end(1, "done", 1),
        lambda: jobs.queue.cancel(2, 1),
    )
    for change in changes:
        with pytest.raises(FilesystemError):
            change()
        assert (jobs.kept, jobs.queue.ids, jobs.queue.running) == before
        assert jobs.queue.check() == []


def test_progress_grows_up_to_the_size_and_begins_anew_with_each_attempt() -> None:
    jobs = Jobs()
    jobs.submit(1)
    jobs.start_next()
    told = []
    for taken in (5, 3, 1 << 40):
        jobs.queue.progress(1, taken)
        found = jobs.queue.find(1)
        assert found is not None
        told.append(found.progress_bytes)
    assert told == [5, 5, source(["a-1"]).size]
    jobs.queue.requeue(1, "")
    assert jobs.start_next() == 1
    found = jobs.queue.find(1)
    assert found is not None
    assert found.progress_bytes == 0


# -- whatever happens ------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Any order of calls. What was kept is compared with what the queue says, which a new queue is restored from."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = Jobs(queue_max=6, queued_per_user_max=4, running_max=3, running_per_user_max=2)
        self.number = 0
        self.ends: dict[int, int] = {}

    @rule(uid=st.integers(0, 3), held=st.booleans(), fails=st.booleans())
    def submit(self, uid: int, held: bool, fails: bool) -> None:
        self.number += 1
        queue, self.jobs.fails = self.jobs.queue, fails
        try:
            queue.admit(self.number, uid, 1)
        except FilesystemError as error:
            assert error.errno == errno.EAGAIN
            assert queue.queued >= 4
            return
        finally:
            self.jobs.fails = False
        self.jobs.fails = fails
        try:
            if held:
                queue.submit(job(self.number, uid))
            else:
                queue.withdraw(self.number)
        except FilesystemError:
            queue.withdraw(self.number)
        self.jobs.fails = False

    @rule(fails=st.booleans())
    def start(self, fails: bool) -> None:
        self.jobs.fails = fails
        try:
            self.jobs.start_next()
        except FilesystemError:
            assert fails
        self.jobs.fails = False

    @precondition(lambda self: self.jobs.queue.ids)
    @rule(data=st.data(), state=st.sampled_from(sorted(ENDED)))
    def end(self, data: st.DataObject, state: str) -> None:
        number = data.draw(st.sampled_from(self.jobs.queue.ids))
        self.jobs.queue.end(number, state, 5000)  # type: ignore[arg-type]
        self.ends[number] = self.ends.get(number, 0) + 1

    @precondition(lambda self: self.jobs.queue.ids)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.jobs.queue.ids))
        if self.jobs.queue.cancel(number, 5000):
            self.ends[number] = self.ends.get(number, 0) + 1

    @precondition(lambda self: self.jobs.queue.running)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.jobs.queue.running))
        if not self.jobs.queue.is_cancelled(number):
            self.jobs.queue.requeue(number, "again")

    @rule()
    def restart(self) -> None:
        queue = Queue(self.jobs.keep, self.jobs.queue.quotas)
        for number in sorted(self.jobs.kept):
            if not self.jobs.kept[number].has_ended:
                queue.restore(self.jobs.kept[number])
        assert (sorted(queue.ids), queue.running) == (sorted(self.jobs.queue.ids), self.jobs.queue.running)
        self.jobs.queue = queue

    @invariant()
    def holds(self) -> None:
        queue = self.jobs.queue
        assert queue.check() == []
        assert len(queue.running) <= 3
        assert all(count == 1 for count in self.ends.values())
        living = {number for number, kept in self.jobs.kept.items() if not kept.has_ended}
        assert living == set(queue.ids)
        assert set(self.ends) == set(self.jobs.kept) - living


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

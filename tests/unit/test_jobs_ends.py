"""Jobs that do not come to a good end by themselves: cancelled, failed, and those whose nodes or scheduler die."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from gridfs.config import GIB
from gridfs.errors import GridfsError
from gridfs.offload.job import Output
from scheduler.jobs import dispatch
from tests.unit.jobs import ALICE, node, request, source, told
from tests.unit.jobs_service import Jobs, jobs, until, whole

__all__ = ["jobs"]

LOST = "is lost"
OUTPUT = Output(1, b"out", "/out")


# -- cancelled -------------------------------------------------------------------------------------------------------


async def test_cancelling_ends_what_runs_and_what_waits(jobs: Jobs) -> None:
    jobs.a.answer = jobs.a.until_cancelled
    async with jobs.connected() as client:
        (jobs.directory / "offload.toml").write_text("[offload]\nrunning_max = 1\n")
        jobs.service._refresh_settings()
        first, second = [await client.submit(file=whole(), output=OUTPUT) for _ in range(2)]
        await until(lambda: jobs.a.tasks)
        assert await client.ask("cancel_newest", 7, ALICE)
        assert (await client.ended(second))["state"] == "cancelled"
        assert await client.ask("cancel", first, ALICE)
        assert (await client.ended(first))["state"] == "cancelled"
        assert [await client.ask("cancel", number, ALICE) for number in (first, second)] == [False, False]
        await until(lambda: jobs.a.swept == [first])
    assert [task["job"]["id"] for task in jobs.a.tasks] == [first]


async def test_a_node_that_does_not_obey_cannot_keep_a_job_from_being_cancelled(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "CANCEL_PATIENCE_S", 0.05)
    jobs.a.obeys, jobs.a.answer = False, jobs.a.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(file=whole())
        await until(lambda: jobs.a.tasks)
        await client.ask("cancel", number, 0)
        assert (await client.ended(number))["state"] == "cancelled"
    jobs.a.cancelled[number].set()


async def test_a_node_that_is_out_of_reach_for_a_moment_is_told_again(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "CANCEL_REPEAT_S", 0.01)
    jobs.a.answer = jobs.a.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(file=whole())
        await until(lambda: jobs.a.tasks)
        there = jobs.views.pop("a")
        jobs.update()
        await client.ask("cancel", number, 0)
        await trio.sleep(0.05)
        jobs.views["a"] = there
        jobs.update()
        assert (await client.ended(number))["state"] == "cancelled"
        assert jobs.a.cancelled[number].is_set()


# -- failed ----------------------------------------------------------------------------------------------------------


async def test_a_job_that_fails_on_one_node_is_ended_on_the_others(jobs: Jobs) -> None:
    jobs.a.answer = lambda task: told(failure="function", error="a line is too long", stderr=b"oh")
    jobs.b.answer = jobs.b.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(request("sum"))
        status = await client.ended(number)
        assert (status["state"], status["error"], status["attempts"]) == ("failed", "a line is too long", 1)
        assert await client.read(number, "stderr") == b"oh"


@pytest.mark.expected_log("run failed on a")
async def test_a_bug_in_a_runner_fails_the_job_and_nothing_else(jobs: Jobs) -> None:
    jobs.a.answer = lambda task: TypeError("oops \ud800")
    async with jobs.connected() as client:
        status = await client.ended(await client.submit(file=whole()))
        assert (status["state"], status["error"]) == ("failed", "TypeError: oops \\ud800")
        jobs.a.answer = lambda task: told()
        assert (await client.ended(await client.submit(file=whole())))["state"] == "done"


async def test_a_job_whose_bytes_went_with_their_server_fails(jobs: Jobs) -> None:
    jobs.update(settled=False)
    async with jobs.connected() as client:
        number = await client.submit()
        del jobs.views["b"]
        jobs.update(settled=False)
        assert (await client.status(number))["state"] == "queued"
        jobs.update()
        status = await client.ended(number)
        assert (status["state"], status["attempts"]) == ("failed", 0)
        assert "the bytes are lost: chunk 1 was on b-1 only" in status["error"]


async def test_a_job_far_back_in_the_queue_hears_at_once_that_its_bytes_are_lost(jobs: Jobs) -> None:
    jobs.a.answer, jobs.b.answer = jobs.a.until_cancelled, jobs.b.until_cancelled
    async with jobs.connected() as client:
        numbers = [await client.submit(file=whole()) for _ in range(5)]
        number, copied = await client.submit(), await client.submit(file=source(["a-1", "b-1"]))
        del jobs.views["b"]
        jobs.update()
        assert "the bytes are lost" in (await client.ended(number))["error"]
        assert (await client.status(copied))["state"] == "queued"
        jobs.views["b"] = node("b")
        jobs.update()
        for each in (*numbers, copied):
            await client.ask("cancel", each, 0)
            await client.ended(each)


async def test_a_silent_server_is_waited_for(jobs: Jobs) -> None:
    jobs.update(settled=False)
    async with jobs.connected() as client:
        number = await client.submit(file=source(["b-1"]))
        jobs.views["b"] = node("b", answers=False)
        jobs.update()
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.status(number))["state"] == "queued"
        jobs.views["b"] = node("b")
        jobs.update()
        assert (await client.ended(number))["nodes"] == ["b"]


async def test_more_memory_than_there_is_fails_at_once(jobs: Jobs) -> None:
    async with jobs.connected() as client:
        status = await client.ended(await client.submit(request(memory_bytes=100 * GIB)))
        assert "the largest node" in status["error"]


# -- nodes that die --------------------------------------------------------------------------------------------------


@pytest.mark.expected_log(LOST)
async def test_an_idempotent_job_whose_node_dies_is_run_again_elsewhere(jobs: Jobs) -> None:
    jobs.a.answer = lambda task: GridfsError("the actor has died")
    async with jobs.connected() as client:
        number = await client.submit(file=source(["a-1", "b-1"], ["a-1"]))
        status = await client.ended(number)
    assert (status["state"], status["nodes"], status["attempts"], status["error"]) == ("done", ["b"], 2, "")
    assert jobs.b.tasks[0]["attempt"] == 2
    assert jobs.service.dispatcher.broken == {"a"}


@pytest.mark.expected_log(LOST)
@pytest.mark.parametrize(
    ("kind", "idempotent", "attempts"), [("command", False, 1), ("command", True, 3), ("function", False, 3)]
)
async def test_what_is_not_idempotent_is_never_run_again_and_nothing_for_ever(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, kind: str, idempotent: bool, attempts: int
) -> None:
    monkeypatch.setattr(dispatch, "SHUN_S", 0.0)
    jobs.a.answer = jobs.b.answer = lambda task: GridfsError("the actor has died")
    async with jobs.connected() as client, jobs.cycles():
        status = await client.ended(await client.submit(request("x", kind, idempotent=idempotent), whole(), output=OUTPUT))
    assert (status["state"], status["attempts"]) == ("failed", attempts)
    assert status["error"].startswith("a was lost while it worked (the actor has died); ")
    await until(lambda: jobs.a.swept)


@pytest.mark.expected_log(LOST)
@pytest.mark.parametrize("lost_in", ["map", "whole"])
@pytest.mark.parametrize(("idempotent", "state", "attempts"), [(True, "done", 2), (False, "failed", 1)])
async def test_a_split_python_job_whose_node_dies_is_run_again_if_it_may_be(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, lost_in: str, idempotent: bool, state: str, attempts: int
) -> None:
    """All of it, whether the node dies with its chunks or as it puts together the results of all."""
    monkeypatch.setattr(dispatch, "SHUN_S", 0.0)

    def answer(task: dict[str, Any]) -> Any:
        if (task["mode"], task["attempt"]) == (lost_in, 1):
            return GridfsError("the actor has died")
        return told(partials=[b"1"] * len(task["runs"])) if task["mode"] == "map" else told(result=2)

    jobs.a.answer = answer
    jobs.b.answer = lambda task: told(partials=[b"2"])
    jobs.allow('python = ["m"]')
    async with jobs.connected() as client, jobs.cycles():
        asked = request("m:pair", "python", split=True, idempotent=idempotent)
        status = await client.ended(await client.submit(asked, source(["a-1"], ["b-1"], ["a-1"])))
    assert (status["state"], status["attempts"]) == (state, attempts)
    assert ("not marked idempotent" in status["error"]) is not idempotent
    assert [task["mode"] for task in jobs.b.tasks] == ["map"] * attempts
    assert jobs.a.reduced == [[b"1", b"2", b"1"]] * (attempts - (lost_in == "map"))


@pytest.mark.expected_log("silent for")
async def test_a_node_that_hangs_is_given_up(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "NODE_PATIENCE_S", 0.3)
    jobs.a.answer = jobs.a.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(file=source(["a-1", "b-1"], ["a-1", "b-1"]))
        await until(lambda: jobs.a.tasks)
        jobs.views["a"] = node("a", answers=False)
        async with jobs.cycles():
            assert (await client.ended(number))["nodes"] == ["b"]
    jobs.a.cancelled[number].set()


async def test_bytes_that_are_lost_while_a_job_runs_are_looked_for_again_once_it_is_known_who_is_there(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SHUN_S", 0.3)
    answers = iter([told(failure="bytes lost", error="chunk 0 is lost", network_bytes=3), told(network_bytes=4)])
    jobs.a.answer = lambda task: next(answers)
    async with jobs.connected() as client:
        number = await client.submit(file=whole())
        await until(lambda: jobs.service.queue.waiting and jobs.service.queue.waiting[0].error)
        jobs.update()
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.status(number))["state"] == "queued"
        async with jobs.cycles():
            status = await client.ended(number)
    assert (status["state"], status["attempts"], status["bytes_network"]) == ("done", 2, 7)


# -- schedulers that die ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "state"), [("function", "done"), ("command", "failed")])
async def test_after_a_restart_jobs_go_on(jobs: Jobs, kind: str, state: str) -> None:
    """What had ended is there, what waited runs, and what ran is ended at its node, and run again if it may be."""
    (jobs.directory / "offload.toml").write_text("[offload]\nrunning_max = 1\n")
    jobs.service._refresh_settings()
    async with jobs.connected() as client:
        ended = await client.submit(file=whole())
        before = await client.ended(ended)
        jobs.a.answer = jobs.a.until_cancelled
        ran = await client.submit(request("x", kind), whole())
        await until(lambda: len(jobs.a.tasks) == 2)
        waited = await client.submit(file=whole())
    jobs.kill()
    await jobs.start()
    jobs.a.answer = lambda task: told()
    async with jobs.connected() as client:
        assert (await client.status(ran))["state"] == "running"
        assert jobs.chunk_servers["a"].held.keys() == {ran, waited}
        jobs.update(settled=False)
        await trio.testing.wait_all_tasks_blocked()
        assert not jobs.a.cancelled[ran].is_set()
        jobs.update()
        assert await client.status(ended) == before
        assert (await client.ended(waited))["state"] == "done"
        status = await client.ended(ran)
        assert (status["state"], status["attempts"]) == (state, 1 + (state == "done"))
        assert ("the scheduler was restarted" in status["error"]) == (state == "failed")
        assert jobs.a.cancelled[ran].is_set()
        assert await client.submit(file=whole()) > waited


async def test_a_job_that_wants_several_nodes_is_not_passed_over_for_ever(jobs: Jobs) -> None:
    """It waits for both to be free, so the one that is free is kept so: others would always be quicker."""
    (jobs.directory / "offload.toml").write_text("[offload]\nrunning_per_node_max = 1\n")
    jobs.service._refresh_settings()
    jobs.a.answer = jobs.b.answer = jobs.a.until_cancelled
    async with jobs.connected() as client:
        first = await client.submit(file=whole())
        await until(lambda: jobs.a.tasks)
        wide, later = await client.submit(request("sum")), await client.submit(file=source(["b-1"]))
        assert [(await client.status(number))["state"] for number in (wide, later)] == ["queued", "queued"]
        jobs.a.answer = jobs.b.answer = lambda task: told(partials=[b"1"] * len(task["runs"]))
        await client.ask("cancel", first, 0)
        done = [await client.ended(number) for number in (wide, later)]
    assert done[0]["started"] < done[1]["started"]

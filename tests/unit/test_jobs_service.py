"""Jobs from their submission to their end, over played nodes: what is held, what is done, and what is told."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from gridfs.config import MIB
from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.offload.job import Output
from scheduler.jobs import dispatch, service
from scheduler.pressure import Level
from tests.unit.jobs import ALICE, BOB, request, source, told
from tests.unit.jobs_service import Jobs, jobs, until, whole

__all__ = ["jobs"]

LOST = "is lost"
OUTPUT = Output(1, b"out", "/out")


def refused(error: FilesystemError) -> str | None:
    return errno.errorcode[error.errno or 0]


# -- done ------------------------------------------------------------------------------------------------------------


async def test_a_job_is_carried_out_where_its_bytes_are_and_everything_is_told(jobs: Jobs) -> None:
    jobs.a.answer = lambda task: told(result="abc", local_bytes=2, network_bytes=3, stderr=b"hm", exit_code=0)
    async with jobs.connected() as client:
        number = await client.submit(request("sha256", arguments=("x",)), whole())
        status = await client.ended(number)
        expected = {"id": number, "state": "done", "result": "abc", "nodes": ["a"], "bytes_local": 2, "bytes_network": 3}
        assert status == status | expected | {"exit_code": 0, "error": "", "attempts": 1, "progress": 8 * MIB, "output": None}
        assert status["submitted"] <= status["started"] <= status["ended"]
        assert "a holds 8.0 MiB of 8.0 MiB" in status["decision"]
        assert json.loads(await client.read(number, "status")) == status
        assert [await client.read(number, what) for what in ("result", "stdout", "stderr")] == [b'"abc"\n', b"", b"hm"]
        assert await client.ask("newest", 7, ALICE) == status
    (task,) = jobs.a.tasks
    assert (task["mode"], task["runs"], task["attempt"], task["server"]) == ("whole", [[0, 1]], 1, "a-1")
    assert task["inode_table"] == ["10.0.0.1", 5]
    assert task["servers"]["b-1"][:2] == ["b", "127.0.0.1"]
    assert task["job"]["input"]["chunks"] == {0: ("a-1",)}


async def test_what_splits_runs_on_all_nodes_and_comes_together_in_the_order_of_the_file(jobs: Jobs) -> None:
    for runner in jobs.runners.values():
        runner.answer = lambda task: told(partials=[b"%d" % first for first, _ in task["runs"]], local_bytes=5)
    async with jobs.connected() as client:
        number = await client.submit(request("sum"), source(["a-1"], ["b-1"], ["a-1"]))
        status = await client.ended(number)
    assert status["result"] == [0, 1, 2]
    assert (status["nodes"], status["bytes_local"], status["bytes_network"]) == (["a", "b"], 10, 3)
    assert [task["mode"] for runner in (jobs.a, jobs.b) for task in runner.tasks] == ["map", "map"]


@pytest.mark.parametrize(("name", "output", "size"), [("lines", None, 1), ("sum", OUTPUT, 1), ("sum", None, 2 << 20)])
async def test_streams_outputs_and_much_come_together_on_the_node_with_most(
    jobs: Jobs, name: str, output: Output | None, size: int
) -> None:
    def answer(task: dict[str, Any]) -> Any:
        if task["mode"] == "map":
            return told(partials=[b"0" * size for _ in task["runs"]], exit_code=0)
        return told(stdout=b"all", output_bytes=9)

    jobs.a.answer = jobs.b.answer = answer
    async with jobs.connected() as client:
        number = await client.submit(request(name), source(["b-1"], ["a-1"], ["b-1"]), output=output)
        assert (await client.ended(number))["output_bytes"] == 9
        assert await client.read(number, "stdout") == await client.read(number, "result") == b"all"
    assert [list(map(len, partials)) for partials in jobs.b.reduced] == [[size] * 3]
    assert jobs.a.reduced == []


async def test_a_python_pair_runs_on_all_nodes_if_it_is_to_be_split_and_is_reduced_by_the_one_with_most(jobs: Jobs) -> None:
    """However little there is to reduce: its module never comes into the scheduler."""

    def answer(task: dict[str, Any]) -> Any:
        if task["mode"] == "map":
            return told(partials=[b"%d" % first for first, _ in task["runs"]])
        return told(result="all")

    jobs.a.answer = jobs.b.answer = answer
    jobs.allow('python = ["m"]')
    file = source(["b-1"], ["a-1"], ["b-1"])
    async with jobs.connected() as client:
        on_one = await client.ended(await client.submit(request("m:pair", "python"), file))
        assert [task["mode"] for task in jobs.a.tasks + jobs.b.tasks] == ["whole"]
        split = await client.ended(await client.submit(request("m:pair", "python", split=True), file))
    assert (on_one["nodes"], on_one["result"]) == (["b"], "all")
    assert (split["nodes"], split["result"], split["bytes_network"]) == (["b", "a"], "all", 3)
    assert [task["mode"] for task in jobs.a.tasks] == ["map"]
    assert (jobs.a.reduced, jobs.b.reduced) == ([], [[b"0", b"1", b"2"]])


async def test_an_empty_job_takes_the_scheduler_a_few_milliseconds(jobs: Jobs) -> None:
    took_s = []
    async with jobs.connected() as client:
        for _ in range(20):
            began_s = trio.current_time()
            await client.ended(await client.submit(file=whole()))
            took_s.append(trio.current_time() - began_s)
    assert min(took_s) < 0.03


# -- holding ---------------------------------------------------------------------------------------------------------


async def test_all_copies_are_held_until_the_job_has_ended(jobs: Jobs) -> None:
    a, b = jobs.chunk_servers["a"], jobs.chunk_servers["b"]
    jobs.a.answer = jobs.a.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(file=source(["a-1", "b-1"], None, ["a-1"]))
        assert (a.held, b.held) == ({number: [0, 2]}, {number: [0]})
        await until(lambda: jobs.a.tasks)
        assert await client.ask("cancel", number, 0)
        await client.ended(number)
        await until(lambda: not a.held and not b.held)


async def test_a_copy_that_cannot_be_held_is_not_read(jobs: Jobs) -> None:
    jobs.chunk_servers["b"].lacks = {0}
    async with jobs.connected() as client:
        await client.ended(await client.submit(file=source(["a-1", "b-1", "gone-1"])))
    assert jobs.a.tasks[0]["job"]["input"]["chunks"] == {0: ("a-1",)}


async def test_without_any_copy_it_is_refused_and_nothing_stays_held(jobs: Jobs) -> None:
    jobs.chunk_servers["b"].lacks = {1}
    async with jobs.connected() as client:
        with pytest.raises(FilesystemError, match="chunk 1 of the file cannot be held: b-1: it has no such chunk") as raised:
            await client.submit()
        assert refused(raised.value) == "EIO"
        assert await client.ask("list", 0) == []
    await until(lambda: not jobs.chunk_servers["a"].held)
    assert jobs.service.queue.ids == []


async def test_a_job_that_cannot_be_kept_is_refused_and_nothing_stays_held(jobs: Jobs) -> None:
    jobs.chunk_servers["a"].gate = trio.Event()
    async with jobs.connected() as client, trio.open_nursery() as nursery:

        async def submit() -> None:
            with pytest.raises(FilesystemError, match="the store of jobs cannot be written"):
                await client.submit()

        nursery.start_soon(submit)
        await until(lambda: jobs.service.queue.ids)
        jobs.service._store._database.execute("PRAGMA query_only = ON")
        jobs.chunk_servers["a"].gate.set()
    jobs.service._store._database.execute("PRAGMA query_only = OFF")
    await until(lambda: not jobs.chunk_servers["a"].held and not jobs.chunk_servers["b"].held)
    assert jobs.service.queue.ids == []


async def test_who_does_not_wait_for_the_answer_has_submitted_nothing(jobs: Jobs) -> None:
    jobs.chunk_servers["a"].gate = trio.Event()
    async with trio.open_nursery() as nursery, jobs.connected() as client:
        nursery.start_soon(_fails, client.submit)
        await until(lambda: jobs.service.queue.ids)
    await until(lambda: not jobs.service.queue.ids)
    jobs.chunk_servers["a"].gate.set()
    await until(lambda: not jobs.chunk_servers["a"].held)
    assert jobs.a.tasks == []


async def _fails(ask: Any) -> None:
    with pytest.raises(Exception, match="owner ended it"):
        await ask()


async def test_a_submission_that_takes_long_holds_up_no_other_connection(jobs: Jobs) -> None:
    jobs.chunk_servers["b"].gate = trio.Event()
    async with jobs.connected() as slow, jobs.connected() as quick, trio.open_nursery() as nursery:
        nursery.start_soon(slow.submit)
        await until(lambda: jobs.service.queue.ids)
        await quick.ended(await quick.submit(file=whole()))
        jobs.chunk_servers["b"].gate.set()


async def test_chunk_servers_are_told_now_and_then_which_jobs_there_are(jobs: Jobs) -> None:
    jobs.a.answer = jobs.a.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(file=whole())
        await jobs.service.dispatcher.keep_holds()
        assert [server.kept for server in jobs.chunk_servers.values()] == [[number], [number]]
        await client.ask("cancel", number, 0)


# -- refused ---------------------------------------------------------------------------------------------------------


async def test_what_is_not_allowed_or_no_job_is_refused_with_a_sentence(jobs: Jobs) -> None:
    async with jobs.connected() as client:
        for asked, uid, expected in (
            (request(), BOB, "EPERM user 1002 may not submit jobs"),
            (request("unknown"), ALICE, "EINVAL there is no function unknown"),
            (request(kind="dance"), ALICE, "EINVAL 'dance' is no kind of job"),
            (request("m:f", "python"), ALICE, "EPERM the Python module 'm' is not one of those that are allowed"),
        ):
            with pytest.raises(FilesystemError) as raised:
                await client.submit(asked, uid=uid)
            assert f"{refused(raised.value)} {raised.value.strerror}" == expected
        with pytest.raises(FilesystemError, match="this is no job"):
            await client.ask("submit", {"kind": "function"}, {}, 3, None, 0)
    assert jobs.service.queue.ids == []


async def test_a_full_queue_is_eagain(jobs: Jobs) -> None:
    (jobs.directory / "offload.toml").write_text("[offload]\nqueue_max = 1\nrunning_max = 0\n")
    jobs.service._refresh_settings()
    async with jobs.connected() as client:
        await client.submit()
        with pytest.raises(FilesystemError, match="the queue is full") as raised:
            await client.submit()
        assert refused(raised.value) == "EAGAIN"


async def test_only_mounts_and_clients_are_welcome(jobs: Jobs) -> None:
    with pytest.raises(AuthenticationFailed):
        async with jobs.connected("server"):
            pass


async def test_a_user_sees_and_cancels_his_own_jobs_and_root_all(jobs: Jobs) -> None:
    async with jobs.connected() as client:
        numbers = [await client.submit(file=whole(), uid=uid) for uid in (0, ALICE)]
        for number in numbers:
            await client.ended(number)
        listed = [[status["id"] for status in await client.ask("list", uid)] for uid in (0, ALICE, BOB)]
        assert listed == [[numbers[1], numbers[0]], [numbers[1]], []]
        assert (await client.ask("newest", 7, ALICE))["id"] == numbers[1]
        assert await client.ask("newest", 7, BOB) is None
        for method, *rest in (("status",), ("cancel",), ("wait", 1.0), ("read", "stdout")):
            with pytest.raises(FilesystemError) as raised:
                await client.ask(method, numbers[0], ALICE, *rest)
            assert refused(raised.value) == "ENOENT"


# -- many ------------------------------------------------------------------------------------------------------------


async def test_of_a_thousand_jobs_none_is_lost_and_no_node_gets_more_than_two_at_once(jobs: Jobs) -> None:
    most = dict.fromkeys("ab", 0)

    def answer(host: str) -> Any:
        def count(task: dict[str, Any]) -> Any:
            most[host] = max(most[host], jobs.service.queue.used_slots()[host])
            return told()

        return count

    for host, runner in jobs.runners.items():
        runner.answer = answer(host)
    numbers: list[int] = []
    (jobs.directory / "offload.toml").write_text("[offload]\nusers = [0]\ngroups = [1001, 1002]\n")
    jobs.service._refresh_settings()
    async with jobs.connected() as client:

        async def submit(at: int) -> None:
            for _ in range(50):
                numbers.append(await client.submit(file=source([f"{'ab'[at % 2]}-1"]), uid=(ALICE, BOB)[at % 2]))

        async with trio.open_nursery() as nursery:
            for at in range(20):
                nursery.start_soon(submit, at)
        for number in numbers:
            assert (await client.ended(number))["state"] == "done"
    assert len(set(numbers)) == 1000
    assert 1 <= max(most.values()) <= 2
    ran = [task["job"]["id"] for runner in (jobs.a, jobs.b) for task in runner.tasks]
    assert sorted(ran) == sorted(numbers)


# -- telling ---------------------------------------------------------------------------------------------------------


async def test_progress_is_that_of_all_nodes_together(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PROGRESS_INTERVAL_S", 0.01)
    for runner in jobs.runners.values():
        runner.answer = runner.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(request("sum"))
        jobs.a.taken, jobs.b.taken = {number: 3, 99: 5}, {number: 4}
        with trio.fail_after(20):
            while (await client.status(number))["progress"] != 7:
                await trio.sleep(0.01)
        await client.ask("cancel", number, 0)
        await client.ended(number)


async def test_a_wait_ends_with_its_time_and_with_its_connection(jobs: Jobs) -> None:
    jobs.a.answer = jobs.a.until_cancelled
    async with jobs.connected() as client:
        number = await client.submit(file=whole())
        async with jobs.connected() as other:
            other.connection.submit("wait", number, 0, 20.0)
            assert (await client.ask("wait", number, 0, 0.01))["state"] == "running"
            await until(lambda: jobs.service._waiting)
        await until(lambda: not jobs.service._waiting)
        await client.ask("cancel", number, 0)


async def test_a_long_result_and_what_msgpack_cannot_carry_are_read_apart(jobs: Jobs) -> None:
    async with jobs.connected() as client:
        for result in ("x" * service.RESULT_TOLD_BYTES, 1 << 70):
            jobs.a.answer = lambda task, result=result: told(result=result)  # type: ignore[misc]
            number = await client.submit(file=whole())
            assert (await client.ended(number))["result"] is None
            assert json.loads(await client.read(number, "result")) == result
        with pytest.raises(FilesystemError, match="leaves no 'secrets'"):
            await client.read(number, "secrets")


async def test_ended_jobs_are_forgotten_after_a_day_and_the_oldest_of_too_many(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with jobs.connected() as client:
        numbers = [(await client.ended(await client.submit(file=whole())))["id"] for _ in range(3)]
        monkeypatch.setattr(service, "KEPT_MAX_JOBS", 2)
        jobs.service.prune()
        assert [status["id"] for status in await client.ask("list", 0)] == numbers[:0:-1]
        later_ns = jobs.now_ns() + int(86_401e9)
        jobs.now_ns = lambda: later_ns
        jobs.service.prune()
        assert await client.ask("list", 0) == []
        with pytest.raises(FilesystemError):
            await client.status(numbers[2])


@pytest.mark.expected_log("is not kept yet")
async def test_an_end_that_cannot_be_kept_is_told_once_it_can(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "SAVE_RETRY_S", 0.01)
    database = jobs.service._store._database

    def answer(task: dict[str, Any]) -> Any:
        trio.from_thread.run_sync(database.execute, "PRAGMA query_only = ON")
        return told()

    jobs.a.answer = answer
    async with jobs.connected() as client:
        number = await client.submit(file=whole())
        assert (await client.ask("wait", number, 0, 0.05))["state"] == "running"
        database.execute("PRAGMA query_only = OFF")
        assert (await client.ended(number))["state"] == "done"


async def test_a_hot_node_is_spared(jobs: Jobs) -> None:
    jobs.views["a"] = replace(jobs.views["a"], level=Level.HOT)
    jobs.update()
    async with jobs.connected() as client:
        assert (await client.ended(await client.submit(file=whole())))["nodes"] == ["b"]

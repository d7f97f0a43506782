"""The budget: never more than there is, first come first served, and what was only borrowed gives way."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gridfs.vfs.budget import IDLE_S, Budget

LIMIT = 80
LENDABLE = 70


class Reader:
    """Borrows and hands back; what it holds is filled already, unless told otherwise."""

    def __init__(self, budget: Budget, *, filled: bool = True) -> None:
        self.budget, self.filled, self.held = budget, filled, 0
        self.leaving = 0

    def borrow(self, size: int) -> bool:
        if not self.budget.borrow(self, size):
            return False
        self.held += size
        return True

    def give_way(self) -> None:
        size, self.held = self.held, 0
        self.budget.hand_back(self, size)
        if self.filled:
            self.budget.freed(size)
        else:
            self.leaving += size


def taker(budget: Budget, order: list[str]) -> Callable[[str, int], Awaitable[None]]:
    async def take(name: str, size: int) -> None:
        await budget.take(size)
        order.append(name)

    return take


async def test_takers_are_served_in_the_order_in_which_they_came(nursery: trio.Nursery) -> None:
    budget, order = Budget(LIMIT), list[str]()
    await budget.take(70)
    for name, size in (("large", 60), ("small", 5), ("rest", 15)):
        nursery.start_soon(taker(budget, order), name, size)
        await wait_all_tasks_blocked()
    budget.give(30)
    await wait_all_tasks_blocked()
    assert order == []  # the small one would fit, and is not let past
    budget.give(30)
    await wait_all_tasks_blocked()
    assert sorted(order) == ["large", "small"]
    budget.give(10)
    await wait_all_tasks_blocked()
    assert order[2:] == ["rest"]
    assert budget.used_bytes == LIMIT


async def test_more_than_all_there_is_counts_as_all() -> None:
    budget = Budget(LIMIT)
    await budget.take(10 * LIMIT)
    assert budget.used_bytes == LIMIT
    budget.give(10 * LIMIT)
    assert budget.used_bytes == 0


async def test_who_stops_waiting_takes_nothing_and_holds_up_nobody(nursery: trio.Nursery) -> None:
    budget, order, scope = Budget(LIMIT), list[str](), trio.CancelScope()

    async def impatient() -> None:
        with scope:
            await budget.take(LIMIT)

    await budget.take(10)
    nursery.start_soon(impatient)
    await wait_all_tasks_blocked()
    nursery.start_soon(taker(budget, order), "patient", 10)
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert order == ["patient"]
    assert budget.used_bytes == 20


async def test_who_is_cancelled_at_its_turn_gives_it_back() -> None:
    """It is when a borrower gives way at once."""
    budget = Budget(LIMIT)
    assert Reader(budget).borrow(LENDABLE)
    with trio.CancelScope() as scope:
        scope.cancel()
        await budget.take(LIMIT)
    assert scope.cancelled_caught
    assert budget.used_bytes == 0


async def test_a_window_takes_of_itself_and_of_the_budget_it_is_within(nursery: trio.Nursery) -> None:
    budget, order = Budget(LIMIT), list[str]()
    window = Budget(20, budget)
    await window.take(20)
    assert budget.used_bytes == 20
    nursery.start_soon(taker(window, order), "write", 5)
    await wait_all_tasks_blocked()
    await budget.take(60)  # reads need not wait for the window
    window.give(20)
    await wait_all_tasks_blocked()
    assert order == ["write"]
    assert (window.used_bytes, budget.used_bytes) == (5, 65)


async def test_read_ahead_leaves_room_for_plain_reads() -> None:
    budget = Budget(LIMIT)
    reader = Reader(budget)
    while reader.borrow(1):
        pass
    assert reader.held == LENDABLE


async def test_all_that_borrow_have_the_same_share() -> None:
    budget = Budget(LIMIT)
    one, other = Reader(budget), Reader(budget)
    assert one.borrow(10)
    assert other.borrow(35)
    assert not other.borrow(1)
    assert one.borrow(25)


async def test_what_is_borrowed_gives_way_to_takers_the_oldest_first_and_no_more_than_needed() -> None:
    budget = Budget(LIMIT)
    readers = [Reader(budget) for _ in range(3)]
    assert [reader.borrow(20) for reader in readers] == [True] * 3
    assert readers[0].borrow(1)  # now the second is the one that borrowed longest ago
    await budget.take(30)
    assert [reader.held for reader in readers] == [21, 0, 20]


async def test_what_is_still_being_filled_is_not_called_back_twice(nursery: trio.Nursery) -> None:
    budget, order = Budget(LIMIT), list[str]()
    first, second = Reader(budget, filled=False), Reader(budget)
    assert first.borrow(30)
    assert second.borrow(30)
    nursery.start_soon(taker(budget, order), "taker", 40)
    await wait_all_tasks_blocked()
    assert (first.held, second.held, order) == (0, 30, [])
    budget.freed(first.leaving)
    await wait_all_tasks_blocked()
    assert order == ["taker"]


async def test_who_has_not_borrowed_for_a_while_gives_way_to_others(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(LIMIT)
    idle, eager = Reader(budget), Reader(budget)
    assert idle.borrow(60)
    assert not eager.borrow(20)
    await trio.sleep(IDLE_S)
    assert eager.borrow(20)
    assert idle.held == 0


@pytest.mark.parametrize("seed", range(20))
async def test_it_is_never_exceeded_and_everybody_comes_to_an_end(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    budget, dice = Budget(LIMIT), random.Random(seed)
    window, readers = Budget(30, budget), [Reader(budget, filled=bool(seed % 2)) for _ in range(4)]
    peak = 0

    async def use(source: Budget) -> None:
        nonlocal peak
        for _ in range(20):
            size = dice.randrange(1, 50)
            await source.take(size)
            peak = max(peak, budget.used_bytes)
            await trio.sleep(dice.random())
            source.give(size)

    async def read_ahead(reader: Reader) -> None:
        nonlocal peak
        for _ in range(40):
            reader.borrow(dice.randrange(1, 20))
            peak = max(peak, budget.used_bytes)
            await trio.sleep(dice.random())
            budget.freed(reader.leaving)
            reader.leaving = 0
        reader.filled = True  # and it holds on to what it has

    async with trio.open_nursery() as nursery:
        for source in (window, window, window, budget, budget, budget):
            nursery.start_soon(use, source)
        for reader in readers:
            nursery.start_soon(read_ahead, reader)
    for reader in readers:
        if reader.held:
            reader.give_way()
    assert LIMIT // 2 < peak <= LIMIT
    assert (budget.used_bytes, window.used_bytes) == (0, 0)

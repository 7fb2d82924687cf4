"""The same thing done to many things at once, in threads: a store answers late, but many at once.

Knows how many are at work. Does not know what is done to them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def several_at_once(do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What ``do`` makes of each item, in their order.

    No more items are drawn than are at work, so that they may come from a stream. Raises what ``do`` raises.
    """
    return list(in_turn(do, items))


def in_turn(do: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """As `several_at_once`, one result after the other: no more of them are in memory than are at work."""
    at_work: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for item in items:
            if len(at_work) == AT_ONCE:
                yield at_work.popleft().result()
            at_work.append(pool.submit(do, item))
        while at_work:
            yield at_work.popleft().result()

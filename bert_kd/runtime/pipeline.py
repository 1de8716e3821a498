"""Work before and behind a loop, each in a thread of its own, one item at a time and in order.

For loops whose middle runs without Python's lock: reading and writing then go on beside it. At most
one item is made in advance and one is still being finished, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
END: Any = object()


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield `items`; the next one is made in a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, items, END)
        while (item := coming.result()) is not END:
            coming = pool.submit(next, items, END)
            yield item


@contextmanager
def behind(work: Callable[[Item], None]) -> Iterator[Callable[[Item], None]]:
    """Yield a function that hands an item over, to have `work` done on it in a thread.

    It waits while the item before is being worked on, and raises what that raised; so does the end
    of the block.
    """
    doing: Future[None] | None = None

    def finish() -> None:
        if doing is not None:
            doing.result()

    def hand_over(item: Item) -> None:
        nonlocal doing
        finish()
        doing = pool.submit(work, item)

    with ThreadPoolExecutor(1, thread_name_prefix="behind") as pool:
        yield hand_over
        finish()

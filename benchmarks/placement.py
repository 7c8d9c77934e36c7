"""Where threads and processes run. A wake-up on the own core costs a third of one on another, and the system puts one thread here and
another there and leaves them so: what is compared must be placed alike.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks import harness
from benchmarks.harness import Side


def cores() -> list[int]:
    """Those that this process may use; none where the system does not let itself be told."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


@contextmanager
def placed(others: Sequence[int], together: bool) -> Iterator[None]:
    """This thread on one core, `others` (ids of threads or processes) all on the same one, or all on another; afterwards anywhere."""
    here, *elsewhere = cores()
    try:
        os.sched_setaffinity(0, {here})
        for other in others:
            os.sched_setaffinity(other, {here if together else elsewhere[0]})
        yield
    finally:
        for each in (0, *others):
            os.sched_setaffinity(each, {here, *elsewhere})


async def paired(rounds: int, sides: Mapping[str, Side], others: Sequence[int], *, warm_up: int) -> tuple[dict[str, list[float]], str]:
    """`harness.paired`, half of the rounds with `others` on the core of the loop, half on another; and how that was, with the medians
    of the second side to the first."""
    if len(cores()) < 2:
        return await harness.paired(rounds, sides, warm_up=warm_up), "on cores as they come"
    times: dict[str, list[float]] = {name: [] for name in sides}
    rival, subject, *_ = sides
    said = []
    for together in (True, False):
        with placed(others, together):
            some = await harness.paired(max(1, rounds // 2), sides, warm_up=warm_up)
        for name, values in some.items():
            times[name] += values
        where = "the loop's core" if together else "another"
        said.append(f"{statistics.median(harness.ratios(some, subject, rival)):.2f} on {where}")
    return times, f"both sides placed alike: {', '.join(said)}"

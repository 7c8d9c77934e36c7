"""The cores that a pass may use: as many as BLAS has threads in this process (`--blas-threads`).

BLAS shares out a large product by itself, as in decode. What stands between products has one thread, and that is 40 % of a long prefill on
two cores: there, rows are shared out to threads, and BLAS has one for each of them meanwhile. Both at once would be worse than neither,
since the threads of BLAS spin for a while after a product. Which of them it was shows in the last bits of a result.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

try:
    import threadpoolctl
except ModuleNotFoundError:
    threadpoolctl = None


SPIN = 0.05  # seconds: OpenBLAS lets its threads sleep 2 ** 26 cycles after a product, 22 to 34 ms


@cache
def _libraries() -> tuple[Any, ...]:
    """What can tell the threads of BLAS; nothing without the package."""
    if threadpoolctl is None:
        return ()
    return tuple(library for library in threadpoolctl.ThreadpoolController().lib_controllers if library.user_api == "blas")


@cache
def _setters() -> tuple[Callable[[int], object], ...]:
    """What sets the threads of each library for all threads, from any of them; nothing, if that of one is not known.

    threadpoolctl itself (3.8) lets only the first thread that has asked set those of OpenBLAS, and ignores the others.
    """
    names = [f"{before}openblas_set_num_threads{after}" for before in ("", "scipy_") for after in ("", "64_", "_64")]
    known = []
    for library in _libraries():
        setter = next((setter for name in names if (setter := getattr(library.dynlib, name, None))), None)
        if setter is None or getattr(library, "threading_layer", None) == "openmp":  # there, each thread has a number of its own
            return ()
        known.append(setter)
    return tuple(known)


class Blas:
    """The threads of BLAS, and who has borrowed them: their number belongs to the process, and so to all devices in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._borrowers = 0
        self._before: list[int] = []  # threads of each library
        self._used = -math.inf  # when BLAS had shared out products for the last time

    def threads(self) -> int:
        """Threads that BLAS has now: 1 while they are lent, and where nothing can tell (without the package `threadpoolctl`)."""
        return max([library.num_threads for library in _libraries()], default=1)

    def mark_shared_out(self) -> None:
        """Whoever lets several threads of BLAS share out products says so afterwards, since they spin then."""
        self._used = time.monotonic()

    def available(self) -> int:
        """How many works `run_together` can give a core now; 1 while the threads of BLAS spin or are lent, and where they cannot be lent
        (another library than OpenBLAS, or one with OpenMP)."""
        return self.threads() if _setters() and time.monotonic() >= self._used + SPIN else 1

    @contextlib.contextmanager
    def borrow(self) -> Iterator[None]:
        """BLAS has one thread until the last who has borrowed gives them back. Not for the main thread, which signals interrupt.

        A number that others have set meanwhile stays.
        """
        with self._lock:
            if not self._borrowers:
                self._before = [library.num_threads for library in _libraries()]
                for setter in _setters():
                    setter(1)
            self._borrowers += 1
        try:
            yield
        finally:
            with self._lock:
                self._borrowers -= 1
                if not self._borrowers:
                    for library, setter, number in zip(_libraries(), _setters(), self._before, strict=True):
                        if library.num_threads == 1:
                            setter(number)


blas = Blas()


class Stopped(Exception):
    """Another work of the relay has failed, or it was interrupted."""


class Relay:
    """Works that go the same way, one behind the other: at each place, a work waits until all in front of it have come as far.

    Nobody waits for those behind, so a wait is rare where those in front are no slower; a barrier would wake someone at each place.
    """

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._places = [0] * count
        self._stopped = False

    def come(self, number: int) -> None:
        """Work `number` (0 is in front of all) has come to its next place. Raises `Stopped` where the others do not come any more."""
        with self._changed:
            self._places[number] += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or min(self._places[: number + 1]) == self._places[number])
            if self._stopped:
                raise Stopped

    def stop(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def run_together(works: Sequence[Callable[[], None]], relay: Relay) -> None:
    """Run all at once, each in a thread of its own, and BLAS in each of them. One alone runs in this thread, as BLAS is.

    They may wait for each other in `relay`. Raises what the first that failed has raised, when all have ended.
    """
    if len(works) == 1:
        works[0]()
        return
    with ThreadPoolExecutor(1) as conductor:  # no signal interrupts it
        try:
            conductor.submit(_conduct, works, relay).result()
        except BaseException:
            relay.stop()
            raise


def _conduct(works: Sequence[Callable[[], None]], relay: Relay) -> None:
    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            relay.stop()  # nobody waits for who does not come
            raise

    first, *others = works
    with blas.borrow(), ThreadPoolExecutor(len(others)) as pool:
        try:
            begun = [pool.submit(guarded, work) for work in others]
        except BaseException:  # there are no more threads
            relay.stop()
            raise
        failed: list[BaseException] = []
        ends: list[Callable[[], None]] = [partial(guarded, first), *(one.result for one in begun)]
        for end in ends:
            try:
                end()
            except BaseException as error:
                failed.append(error)
    if failed:
        raise next((error for error in failed if not isinstance(error, Stopped)), failed[0])

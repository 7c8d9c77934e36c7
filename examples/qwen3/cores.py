"""The cores that a pass may use: as many as BLAS has threads in this process (`--blas-threads`).

BLAS shares out a large product by itself, as in decode. What stands between products has one thread, and that is 40 % of a long prefill on
two cores: there, rows are shared out to threads, and BLAS has one for each of them meanwhile. Both at once would be worse than neither,
since the threads of BLAS spin for a while after a product.
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


SPIN = 0.1  # seconds from the beginning of a dispatch whose products BLAS shares out until its threads sleep: 40 ms of work, 30 of spinning


@cache
def _libraries() -> tuple[Any, ...]:
    """What can tell the threads of BLAS; nothing without the package."""
    if threadpoolctl is None:
        return ()
    return tuple(library for library in threadpoolctl.ThreadpoolController().lib_controllers if library.user_api == "blas")


@cache
def _setters() -> tuple[Callable[[int], object], ...]:
    """What sets the threads of each library, from any thread; nothing, if that of one is not known.

    threadpoolctl itself (3.8) lets only the first thread that has asked set those of OpenBLAS, and ignores the others.
    """
    names = [f"{before}openblas_set_num_threads{after}" for before in ("", "scipy_") for after in ("", "64_", "_64")]
    found = [next((setter for name in names if (setter := getattr(one.dynlib, name, None))), None) for one in _libraries()]
    known = tuple(setter for setter in found if setter is not None)
    return known if len(known) == len(found) else ()


class Loan:
    """The threads of BLAS while passes have borrowed them: their number belongs to the process, and so to all devices in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._borrowers = 0
        self._before: list[int] = []  # threads of each library
        self._spinning_until = -math.inf

    def number(self) -> int:
        """Threads of BLAS, also of those that are lent."""
        with self._lock:
            return max(self._before if self._borrowers else [library.num_threads for library in _libraries()], default=1)

    def use(self) -> int:
        """As `number`; several of them spin afterwards."""
        number = self.number()
        if number > 1:
            self._spinning_until = time.monotonic() + SPIN
        return number

    def available(self) -> int:
        """How many could be borrowed now."""
        return self.number() if _setters() and time.monotonic() >= self._spinning_until else 1

    @contextlib.contextmanager
    def borrow(self) -> Iterator[None]:
        """BLAS has one thread until the last who has borrowed gives them back."""
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
                    for setter, number in zip(_setters(), self._before, strict=False):
                        setter(number)


_loan = Loan()


def blas_threads() -> int:
    """Threads that share out the products of a pass that begins now; 1 where nothing can tell (without the package `threadpoolctl`)."""
    return _loan.use()


def threads_to_borrow() -> int:
    """How many works `run_together` can give a core now; 1 while the threads of BLAS spin, and where it keeps them (if not OpenBLAS)."""
    return _loan.available()


def run_together(works: Sequence[Callable[[], None]], meeting: threading.Barrier) -> None:
    """Run each in a thread of its own, the first in this one, and BLAS in each of them.

    They may wait for each other at `meeting`, made for their number. Raises what the first that failed has raised, when all have ended.
    """
    first, *others = works
    if not others:
        first()
        return

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            meeting.abort()  # nobody waits for who does not come
            raise

    with _loan.borrow(), ThreadPoolExecutor(len(others)) as pool:
        begun = [pool.submit(guarded, work) for work in others]
        failed: list[BaseException] = []
        ends: list[Callable[[], None]] = [partial(guarded, first), *(one.result for one in begun)]
        for end in ends:
            try:
                end()
            except BaseException as error:
                failed.append(error)
    if failed:
        raise next((error for error in failed if not isinstance(error, threading.BrokenBarrierError)), failed[0])

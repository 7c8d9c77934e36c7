"""Standard output and error of a command that may lose its reader at any time."""

from __future__ import annotations

import io
import os
import sys
import time

from examples.qwen3.errors import OptionError


class OutputClosedError(Exception):
    """The reader of standard output is gone, as `head` is when it has enough; nothing is wrong."""


class Output:
    """Standard output: each piece is seen at once, and what its encoding lacks is replaced."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")

    def write(self, text: str) -> None:
        """Write and flush. Raises `OutputClosedError` for a closed pipe, `OptionError` for a full disk and the like."""
        if sys.stdout is None or not text:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            self._detach()
            raise OutputClosedError from None
        except OSError as error:
            self._detach()
            raise OptionError(f"standard output cannot be written ({error.strerror}); redirect it elsewhere") from None

    def _detach(self) -> None:
        """Send what is still buffered nowhere, or the interpreter would complain about it at its end."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Pages:
    """Several texts on one output: the first is seen as it is made, each other one when those before it have ended.

    With several, each stands under a line with its number.
    """

    def __init__(self, output: Output, count: int) -> None:
        self._output = output
        self._kept: list[list[str]] = [[f"=== {number} ===\n"] if count > 1 else [] for number in range(count)]
        self._ended: set[int] = set()
        self._now = 0
        self._show()

    def write(self, number: int, text: str) -> None:
        """A piece of text `number`."""
        self._kept[number].append(text)
        if number == self._now:
            self._show()

    def end(self, number: int) -> None:
        """Text `number` is complete."""
        self._ended.add(number)
        while self._now in self._ended:
            self._now += 1
            self._show()

    def _show(self) -> None:
        if self._now < len(self._kept):
            text = "".join(self._kept[self._now])
            self._kept[self._now].clear()
            self._output.write(text)


def say(text: str) -> None:
    """One line on standard error, if there is one."""
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            # Nobody can be told; the exit status still tells.
            return


class Progress:
    """Shows how far loading is, once it has taken `patience` seconds, and then at most once each `patience`."""

    def __init__(self, what: str, patience: float = 1.0) -> None:
        self._what = what
        self._patience = patience
        self._next = time.perf_counter() + patience

    def show(self, share: float) -> None:
        """`share`: what is done, 0 to 1."""
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + self._patience
            say(f"loading {self._what}: {share:.0%}")

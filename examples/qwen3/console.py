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

    def __call__(self, share: float) -> None:
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + self._patience
            say(f"loading {self._what}: {share:.0%}")

"""Ctrl-C where nothing can be cleaned up: while the command is imported, and once it has ended. Imports little, since it comes first."""

from __future__ import annotations

import os
import signal
from types import FrameType

STATUS = 130


def end_at_once() -> None:
    """From now on an interrupt ends the process with status 130, and says nothing. One that is ignored stays so, as under `nohup`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From now on an interrupt is a `KeyboardInterrupt` again, or what asyncio makes of it. Only undoes `end_at_once`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(STATUS)

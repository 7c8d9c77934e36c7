"""What can go wrong for a user of this example. Every text is one line: what is wrong, and what to do about it."""

from __future__ import annotations

import errno

NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)  # of the process, of the system


class Qwen3Error(Exception):
    """A fault of what the user gave; `generate` prints it as one line and ends with status 2."""


class CheckpointError(Qwen3Error):
    """The model directory is missing, damaged, incomplete, or holds something this example does not compute."""


class PromptError(Qwen3Error):
    """The prompt is empty, too long for the model, or has ids outside its vocabulary."""


class OptionError(Qwen3Error):
    """An option has a value that makes no sense, or names a file that cannot be written."""


def remedy(error: OSError, otherwise: str) -> str:
    """What to do about `error`: where the system has no more files to open, that says so; else `otherwise`."""
    if error.errno in NO_MORE_FILES:
        return "close other programs, or allow more open files by ulimit -n"
    return otherwise

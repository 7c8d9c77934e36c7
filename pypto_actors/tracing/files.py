"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from pypto_actors.errors import PyptoActorsError


class TraceFileError(PyptoActorsError, OSError):
    """A trace or a plot cannot be written where it should be; the text says why, and what to do."""


def check_path(path: str | os.PathLike[str], what: str) -> Path:
    """The path, if a file can be written there. Raises `TraceFileError`; leaves nothing behind."""
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if not target.parent.is_dir():
            raise FileNotFoundError(None, f"there is no directory {str(target.parent)!r}")
        with contextlib.suppress(FileNotFoundError):
            target.stat()  # tells links that lead to themselves, as `resolve` does not from CPython 3.13 on
        if not os.access(target if _is_special(target) else target.resolve().parent, os.W_OK):
            raise PermissionError(None, "it may not be written")
    except (OSError, ValueError) as error:
        raise _fault(target, what, error) from None
    return target


def write(path: str | os.PathLike[str], data: bytes, what: str) -> None:
    """Replace the file at `path` by `data`: others see the old one or the new one, never a part. Raises `TraceFileError`."""
    target = check_path(path, what)
    try:
        if _is_special(target):  # a pipe or /dev/stdout must not be replaced by a file
            with target.open("wb") as out:
                out.write(data)
            return
        target = target.resolve()  # what a link leads to is replaced, not the link
        temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as out:
                out.write(data)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _fault(target, what, error) from error


def _is_special(target: Path) -> bool:
    return target.exists() and not target.is_file()


def _fault(target: Path, what: str, error: Exception) -> TraceFileError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return TraceFileError(f"the {what} cannot be written to {str(target)!r}: {reason}; name a file in a directory that you may write to")

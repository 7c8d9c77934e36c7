"""What is told about an error that ends the command: one line, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

import pypto_actors as pa
from examples.qwen3.errors import NO_MORE_FILES, Qwen3Error, remedy

AGAIN = "run it again, or with another --backend"
TOLD = (Qwen3Error, MemoryError, OSError, pa.PyptoActorsError)


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, what it was raised from, and so on; of a group its members, since each device of a gang may fail."""
    yield error
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from causes(inner)
    if error.__cause__ is not None:
        yield from causes(error.__cause__)


def explain(error: BaseException) -> str:
    """The line for one of `TOLD`. Memory and open files may be short behind what a device reports, so causes count too."""
    if isinstance(error, Qwen3Error):
        return " ".join(str(error).splitlines())
    for cause in causes(error):
        if isinstance(cause, MemoryError):
            return f"the model does not fit ({_line(cause) or 'no more memory'}); use a smaller one, fewer --max-tokens or fewer --devices"
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.strerror and (cause is error or cause.errno in NO_MORE_FILES):
            where = "" if cause.filename is None else f"{cause.filename}: "
            return f"{where}{cause.strerror}; {remedy(cause, 'check the path and its permissions')}"
    if isinstance(error, pa.StaleTensorError):  # nothing is freed here that is still used
        return f"a device died while the model was loaded; {AGAIN}"
    return f"{_line(error) or type(error).__name__}; {AGAIN}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())

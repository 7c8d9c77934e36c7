"""What a command line names, files to write to above all: looked at before anything is measured."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from pypto_actors import tracing
from pypto_actors.tracing.files import check_path

PICTURES = ("png", "svg", "pdf")  # what matplotlib always writes


class TargetError(Exception):
    """What the command line names cannot be; the text says why, and what to do."""


def require(parser: argparse.ArgumentParser, *, json: Path | None = None, plot: Path | None = None, traces: Iterable[Path] = ()) -> None:
    """End the process with one line and status 2, unless all of these can be written, each to a file of its own."""
    try:
        check(json, plot, list(traces))
    except (TargetError, tracing.TraceFileError, ImportError) as error:
        refuse(parser, error)


def require_directory(parser: argparse.ArgumentParser, path: Path) -> None:
    """Make a directory for traces, or end the process with one line and status 2."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(parser, f"the traces cannot be written to {str(path)!r}: {error.strerror}; name a directory that you may write to")


def require_python(parser: argparse.ArgumentParser, python: str) -> None:
    """End the process with one line and status 2 if there is no such program."""
    if shutil.which(python) is None:
        refuse(parser, f"--transformers-python {python}: there is no such program; name a Python that has transformers")


def refuse(parser: argparse.ArgumentParser, fault: object) -> NoReturn:
    """End the process with one line and status 2."""
    parser.exit(2, f"{parser.prog}: error: {fault}\n")


def check(json: Path | None, plot: Path | None, traces: list[Path]) -> None:
    """Raises `TargetError`, `TraceFileError`, or `ImportError` where there is to be a plot and matplotlib is missing."""
    if json is not None:
        check_path(json, "answers")
    if plot is not None:
        picture_format(plot)
        tracing.check(plot=plot)
    for trace in traces:
        tracing.check(trace)
    check_distinct([path for path in (json, plot, *traces) if path is not None])


def check_distinct(paths: list[Path]) -> None:
    """Does each lead to a file of its own? Raises `TargetError`."""
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.resolve(), path)
        if other is not path:
            raise TargetError(f"{str(path)!r} and {str(other)!r} are the same file; name another one for each output")


def picture_format(path: Path) -> str:
    """By its name, PNG where that says nothing. Raises `TargetError` for a format that there is not."""
    name = path.suffix.removeprefix(".").lower() or "png"
    if name not in PICTURES:
        raise TargetError(
            f"the plot cannot be written to {str(path)!r}: there is no picture format {name!r}; name a file that ends in .png"
        )
    return name

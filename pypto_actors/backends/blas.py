"""Threads of BLAS: which variables of the environment say how many, before numpy loads in a process of its own."""

from __future__ import annotations

from typing import Any

LIBRARIES = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR")


def check_blas_threads(threads: Any) -> None:
    """Raise `ValueError` for what is neither a number of threads nor `None` (what the environment says)."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"blas_threads is a number of threads from 1, or None, got {threads!r}")


def blas_variables(threads: int | None) -> dict[str, str]:
    """What to set in the environment of the process."""
    return {} if threads is None else {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}

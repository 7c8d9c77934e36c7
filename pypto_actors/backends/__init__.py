"""Backends by name."""

from __future__ import annotations

from pypto_actors.backends.inline import InlineBackend
from pypto_actors.backends.process import ProcessBackend
from pypto_actors.backends.ray import RayBackend
from pypto_actors.backends.thread import ThreadBackend
from pypto_actors.executor import Backend

BACKENDS: dict[str, type[Backend]] = {"inline": InlineBackend, "thread": ThreadBackend, "process": ProcessBackend, "ray": RayBackend}


def backend_of(backend: object) -> Backend:
    """A backend by its name, or as it is; a `ValueError` or `TypeError` says what there is."""
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; there are {', '.join(map(repr, BACKENDS))}, or pass a backend object")
        return BACKENDS[backend]()
    if isinstance(backend, type) or not (callable(getattr(backend, "start", None)) and callable(getattr(backend, "stop", None))):
        raise TypeError(f"backend must be a name ({', '.join(map(repr, BACKENDS))}) or an object with start and stop, got {backend!r}")
    return backend  # type: ignore[return-value]


__all__ = ["BACKENDS", "Backend", "InlineBackend", "ProcessBackend", "RayBackend", "ThreadBackend", "backend_of"]

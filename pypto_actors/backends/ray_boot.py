"""The Ray actor of a device. Ray carries this class by value, so that it can set what must be set before numpy loads.

Three groups of calls, a thread each: `do` for kernels, in order; `io` for copies and memory, so that no kernel is in their way;
`watch`, a call that ends with the actor.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

from pypto_actors.backends.blas import LIBRARIES


def device_class(package: str) -> Any:
    """The class of the actors, for `ray.remote`; a local class crosses by value."""
    import ray

    libraries = LIBRARIES

    class Device:
        """One device. It is a shell: what it does is in `ray_device`."""

        def __init__(self, rank: int) -> None:
            self._rank = rank
            self._device: Any = None

        def __repr__(self) -> str:
            return f"device {self._rank}"  # before each line that a kernel prints

        def start(self, blas_threads: int | None, path: list[str]) -> int:
            """Load what it needs, from where the worker has it if that is here too; gives the process id."""
            if blas_threads is not None:
                os.environ.update({f"{library}_NUM_THREADS": str(blas_threads) for library in libraries})
            known = [each for each in path if os.path.isdir(each)]
            sys.path[:] = known + [each for each in sys.path if each not in known]
            module = importlib.import_module(f"{package}.backends.ray_device")
            self._device = module.RayDevice(self._rank, blas_threads)
            return os.getpid()

        def do(self, frame: bytes, *blobs: Any) -> Any:
            return self._device.do(frame, blobs)

        def io(self, frame: bytes, *blobs: Any) -> Any:
            return self._device.do(frame, blobs)

        def watch(self) -> None:
            threading.Event().wait()

    remote: Any = ray.remote
    group: Any = ray.method
    for name in ("io", "watch"):
        group(concurrency_group=name)(getattr(Device, name))
    return remote(concurrency_groups={"io": 1, "watch": 1})(Device)

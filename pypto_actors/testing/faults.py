"""Faults on purpose."""

from __future__ import annotations

from pypto_actors.submission import rank_of
from pypto_actors.worker import DistributedWorker


def kill_device(worker: DistributedWorker, rank: int) -> None:
    """Let a device of an open worker die, now, as hardware would.

    What it was handed fails with `DeviceFailedError`, its tensors are stale, and it is started again, empty, as `max_restarts` allows.
    A kernel that runs in a thread cannot be stopped: it goes on to its end, and nobody hears of it. What it still writes into host arrays
    comes late: give what you do next other arrays.

    Raises:
        ArgumentValueError, ArgumentTypeError: there is no such device, or this is no rank.
        RuntimeError: the worker is not open.
    """
    worker._open_system().devices[rank_of(rank, worker.config.world_size)].executor.kill("killed by a test")

"""Faults on purpose."""

from __future__ import annotations

from pypto_actors.worker import DistributedWorker


def kill_device(worker: DistributedWorker, rank: int) -> None:
    """Let a device of an open worker die, now, as hardware would.

    What it was handed fails with `DeviceFailedError`, its tensors are stale, and it is started again, empty, as `max_restarts` allows.
    A kernel that runs in a thread cannot be stopped: it goes on to its end, and its result is thrown away.

    Raises:
        ValueError: there is no such device.
        RuntimeError: the worker is not open.
    """
    if not 0 <= rank < worker.config.world_size:
        raise ValueError(f"there is no device {rank}; ranks go from 0 to {worker.config.world_size - 1}")
    worker.open_system().devices[rank].executor.kill("killed by a test")

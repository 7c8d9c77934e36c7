"""What a worker tells about itself: frozen snapshots, and the counters that they are taken from."""

from __future__ import annotations

from msgspec import Struct

from pypto_actors.lifecycle import RunState


class DeviceStatistics(Struct, frozen=True):
    """One device: memory in bytes, `busy_time` in seconds, and how often it was started again."""

    memory_used: int
    memory_peak: int
    memory_capacity: int
    busy_time: float
    restarts: int = 0


class Statistics(Struct, frozen=True):
    """All dispatches ever accepted, each counted in exactly one of the other six; and the devices by rank."""

    accepted: int
    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    expired: int
    devices: tuple[DeviceStatistics, ...]


class Counts:
    """The counters of a coordinator."""

    __slots__ = ("accepted", "cancelled", "done", "expired", "failed", "queued", "running")

    def __init__(self) -> None:
        self.accepted = self.queued = self.running = self.done = self.failed = self.cancelled = self.expired = 0

    def ended(self, state: RunState) -> None:
        if state is RunState.DONE:
            self.done += 1
        elif state is RunState.FAILED:
            self.failed += 1
        elif state is RunState.CANCELLED:
            self.cancelled += 1
        else:
            self.expired += 1

    def snapshot(self, devices: tuple[DeviceStatistics, ...]) -> Statistics:
        return Statistics(
            self.accepted, self.queued, self.running, self.done, self.failed, self.cancelled, self.expired, devices
        )

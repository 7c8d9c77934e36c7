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
    """The counters of a coordinator; what is queued and what runs follows from them."""

    __slots__ = ("accepted", "cancelled", "done", "expired", "failed", "handed_over", "unstarted")

    def __init__(self) -> None:
        self.accepted = self.handed_over = self.done = self.failed = self.cancelled = self.expired = 0
        self.unstarted = 0  # ended without being handed over

    def ended(self, state: RunState, started: bool) -> None:
        if not started:
            self.unstarted += 1
        if state is RunState.DONE:
            self.done += 1
        elif state is RunState.FAILED:
            self.failed += 1
        elif state is RunState.CANCELLED:
            self.cancelled += 1
        else:
            self.expired += 1

    def snapshot(self, devices: tuple[DeviceStatistics, ...]) -> Statistics:
        ended = self.done + self.failed + self.cancelled + self.expired
        return Statistics(
            accepted=self.accepted,
            queued=self.accepted - self.handed_over - self.unstarted,
            running=self.handed_over - (ended - self.unstarted),
            done=self.done,
            failed=self.failed,
            cancelled=self.cancelled,
            expired=self.expired,
            devices=devices,
        )

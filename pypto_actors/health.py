"""How a device is: up, starting again, or lost for good. Pure."""

from __future__ import annotations

from collections import deque

from pypto_actors.errors import DeviceFailedError
from pypto_actors.lifecycle import Failure

WINDOW = 60.0  # seconds in which a device may be started again `max_restarts` times


class Health:
    """One device's deaths and restarts."""

    __slots__ = ("_deaths", "_rank", "down", "lost", "restarts")

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._deaths: deque[float] | None = None
        self.down = False
        self.lost: Failure | None = None
        self.restarts = 0

    def died(self, reason: str, now: float, max_restarts: int) -> Failure:
        """The failure of what the device held; afterwards it is to be started again, or `lost` says why not."""
        if self._deaths is None:
            self._deaths = deque()
        while self._deaths and self._deaths[0] <= now - WINDOW:
            self._deaths.popleft()
        self._deaths.append(now)
        self.down = True
        count = len(self._deaths)
        if count > max_restarts:
            self.lost = Failure(
                DeviceFailedError,
                f"device {self._rank} is lost: it died {count} times within {WINDOW:.0f} s (max_restarts={max_restarts}), last of "
                f"{reason}; open a new worker",
            )
        return Failure(DeviceFailedError, f"device {self._rank} died ({reason}); what it held is gone, its tensors are stale")

    def restarted(self) -> None:
        self.down = False
        self.restarts += 1

"""The ledger of one device's memory: who holds how many bytes. Pure; the bytes themselves are the device's."""

from __future__ import annotations

from pypto_actors.errors import InternalError


class Arena:
    """Bytes reserved and free on one device. Memory is paged, so that only the sum of the sizes counts, not their places."""

    __slots__ = ("capacity", "peak", "sizes", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.peak = 0
        self.sizes: dict[int, int] | None = None

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def reserve(self, allocation: int, nbytes: int) -> bool:
        """Reserve, or change nothing and say no."""
        if self.used + nbytes > self.capacity:
            return False
        sizes = self.sizes
        if sizes is None:
            sizes = self.sizes = {}
        if allocation in sizes:
            raise InternalError(f"allocation {allocation} is reserved twice")
        sizes[allocation] = nbytes
        self.used += nbytes
        if self.used > self.peak:
            self.peak = self.used
        return True

    def release(self, allocation: int) -> int:
        """Give back; returns how many bytes."""
        if self.sizes is None or allocation not in self.sizes:
            raise InternalError(f"allocation {allocation} is released but not reserved")
        nbytes = self.sizes.pop(allocation)
        self.used -= nbytes
        return nbytes

    def __contains__(self, allocation: int) -> bool:
        return self.sizes is not None and allocation in self.sizes

    def __repr__(self) -> str:
        return f"<Arena {self.used} of {self.capacity} bytes in {len(self.sizes or ())} allocations>"

"""How many bytes each device holds, by what it was told to hold and to release."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Holdings:
    """Allocations by device. What was never held may be released: an allocation that came to nothing is."""

    def __init__(self) -> None:
        self._sizes: dict[int, dict[int, int]] = {}  # device -> allocation -> bytes
        self._totals: dict[int, int] = {}

    def commit(self, device: int, items: Iterable[tuple[int, int]]) -> int:
        """`(allocation, bytes)` each; gives what the device now holds."""
        sizes, total = self._sizes.setdefault(device, {}), self._totals.get(device, 0)
        for allocation, nbytes in items:
            total += nbytes - sizes.get(allocation, 0)
            sizes[allocation] = nbytes
        self._totals[device] = total
        return total

    def release(self, device: int, allocations: Iterable[int]) -> int:
        """Gives what the device now holds."""
        sizes, total = self._sizes.setdefault(device, {}), self._totals.get(device, 0)
        for allocation in allocations:
            total -= sizes.pop(allocation, 0)
        self._totals[device] = total
        return total

    def lose(self, device: int) -> bool:
        """The device has died: it holds nothing. Says whether it held anything."""
        self._sizes.pop(device, None)
        return self._totals.pop(device, 0) > 0

    def totals(self) -> Iterator[tuple[int, int]]:
        """`(device, bytes)` of all that ever held any."""
        yield from self._totals.items()

    def copy(self) -> Holdings:
        other = Holdings()
        other._sizes = {device: dict(sizes) for device, sizes in self._sizes.items()}
        other._totals = dict(self._totals)
        return other

"""What devices there are: the frozen configuration, and the memory of the platforms that it may name."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GIB = 1 << 30

# Device memory in bytes. The accelerators' are their data sheets' (Ascend 910C die and 950; NVIDIA SXM).
PLATFORMS: dict[str, int] = {
    "sim": 64 * GIB,
    "cpu": 16 * GIB,
    "a2a3": 64 * GIB,
    "a5": 112 * GIB,
    "a100": 80 * GIB,
    "h100": 80 * GIB,
    "h200": 141 * GIB,
}
RUNTIMES = ("numpy",)


@dataclass(frozen=True)
class DistributedConfig:
    """The devices of a worker.

    Args:
        device_ids: the devices' ids; a program sees them by rank, 0 … len - 1.
        num_sub_workers: threads for host callbacks (0: one).
        platform: which device is simulated: `sim`, `cpu`, `a2a3`, `a5`, `a100`, `h100`, `h200`.
        runtime: what computes; `numpy`.
        memory_bytes: memory of each device in bytes, instead of the platform's. It is committed only when it is used.

    Raises:
        ValueError: no ids, negative or duplicate ids, negative counts, an unknown platform or runtime.
    """

    device_ids: Sequence[int] = (0,)
    num_sub_workers: int = 0
    platform: str = "sim"
    runtime: str = "numpy"
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.device_ids, (str, bytes)) or not isinstance(self.device_ids, Iterable):
            raise ValueError(f"device_ids is a list of ints such as [0, 1], got {self.device_ids!r}")
        ids = [_count(value, "a device id") for value in self.device_ids]
        if not ids:
            raise ValueError("device_ids is empty; name at least one device, such as [0]")
        duplicates = sorted({value for value in ids if ids.count(value) > 1}) if len(set(ids)) != len(ids) else []
        if duplicates:
            raise ValueError(f"device_ids names {duplicates} more than once")
        object.__setattr__(self, "device_ids", _Ids(ids))
        object.__setattr__(self, "num_sub_workers", _count(self.num_sub_workers, "num_sub_workers"))
        if self.platform not in PLATFORMS:
            raise ValueError(f"unknown platform {self.platform!r}; known are {', '.join(PLATFORMS)}")
        if self.runtime not in RUNTIMES:
            raise ValueError(f"unknown runtime {self.runtime!r}; known are {', '.join(RUNTIMES)}")
        if self.memory_bytes is not None:
            object.__setattr__(self, "memory_bytes", _count(self.memory_bytes, "memory_bytes"))

    @property
    def world_size(self) -> int:
        """How many devices there are."""
        return len(self.device_ids)

    @property
    def capacity(self) -> int:
        """Memory of each device, bytes."""
        return PLATFORMS[self.platform] if self.memory_bytes is None else self.memory_bytes


class _Ids(tuple[int, ...]):
    """Ids, frozen; equal to a list of the same ids too, since lists are what users write."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return tuple.__eq__(self, tuple(other) if isinstance(other, list) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self)

    def __repr__(self) -> str:
        return repr(list(self))


def _count(value: object, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{what} must be an int of at least 0, got {value!r}") from None
    if number < 0:
        raise ValueError(f"{what} must be at least 0, got {number}")
    return number

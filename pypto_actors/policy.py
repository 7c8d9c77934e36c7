"""Which dispatch goes next on a device: the contract of a policy, and three policies. All are pure: the same view, the same choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct


class Item(Struct, frozen=True):
    """What a policy may know of a dispatch.

    Attributes:
        program: the program.
        stage: the program's stage, such as `"prefill"` or `"decode"`, or `None`.
        priority: higher goes first.
        arrival: loop time of its acceptance, seconds.
        deadline: loop time, seconds, or `None`.
    """

    program: Any
    stage: str | None
    priority: int
    arrival: float
    deadline: float | None


class View(Struct, frozen=True):
    """One device, at the moment when something is to be chosen for it.

    Attributes:
        device: rank of the device.
        candidates: the first ready dispatch of each stage, in the order of acceptance.
        prefills_since_decode: `stage="prefill"` dispatches handed to the device since the last `stage="decode"` one.
        decodes_since_prefill: the reverse.
    """

    device: int
    candidates: tuple[Item, ...]
    prefills_since_decode: int
    decodes_since_prefill: int


class Policy(Protocol):
    """Orders ready dispatches. Both calls must be pure."""

    def key(self, item: Item, /) -> Any:
        """Orders the dispatches of one stage, smallest first; asked once, at acceptance. Ties go by acceptance."""

    def choose(self, view: View, /) -> int:
        """The index in `view.candidates` of what goes next; not asked where there is one."""


def _first(candidates: Sequence[Item]) -> int:
    return min(range(len(candidates)), key=lambda i: (-candidates[i].priority, candidates[i].arrival, i))


class PriorityOrder(Struct, frozen=True):
    """Priority, then arrival, whatever the stage."""

    def key(self, item: Item, /) -> Any:
        """Higher priority first, then earlier arrival."""
        return (-item.priority, item.arrival)

    def choose(self, view: View, /) -> int:
        """The highest priority, then the earliest arrival, of all stages."""
        return _first(view.candidates)


class Arrival(Struct, frozen=True):
    """First come, first served; priorities do not matter."""

    def key(self, item: Item, /) -> Any:
        """Earlier arrival first."""
        return item.arrival

    def choose(self, view: View, /) -> int:
        """The earliest arrival, of all stages."""
        return min(range(len(view.candidates)), key=lambda i: (view.candidates[i].arrival, i))


class PhaseFair(Struct, frozen=True):
    """Priority, then arrival, but neither prefill nor decode starves the other.

    While both are ready for a device, at most `max_prefills` dispatches of `stage="prefill"` stand between two of `stage="decode"` on it,
    and at most `max_decodes` between two prefills (each an int of at least 1, else a `ValueError`). Prefill first without a bound starves
    decode, as nano-vllm's scheduler and SGLang issue 32549 show.
    """

    max_prefills: int = 2
    max_decodes: int = 16

    def __post_init__(self) -> None:
        for name in ("max_prefills", "max_decodes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")

    def key(self, item: Item, /) -> Any:
        """Higher priority first, then earlier arrival."""
        return (-item.priority, item.arrival)

    def choose(self, view: View, /) -> int:
        """As `PriorityOrder`, but of the other phase where one has had its share."""
        candidates = view.candidates
        stages = [item.stage for item in candidates]
        if "prefill" in stages and "decode" in stages:
            barred = None
            if view.prefills_since_decode >= self.max_prefills:
                barred = "prefill"
            elif view.decodes_since_prefill >= self.max_decodes:
                barred = "decode"
            if barred is not None:
                allowed = [index for index, stage in enumerate(stages) if stage != barred]
                return allowed[_first([candidates[index] for index in allowed])]
        return _first(candidates)


OWN_POLICIES = (PhaseFair, PriorityOrder, Arrival)

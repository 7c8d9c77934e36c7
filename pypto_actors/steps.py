"""What a recording consists of: steps whose devices are not resolved yet, with what each reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import Struct

from pypto_actors.plan import Path, Scratch, Slot, Source
from pypto_actors.refs import Place
from pypto_actors.values import Shape

Callback = str | Callable[..., Any]


class Touch(Struct, frozen=True):
    """Bytes that a step uses: of an argument or of scratch, counted as if it were contiguous."""

    source: Source
    index: int
    path: Path
    start: int
    stop: int
    write: bool


class RawStep(Struct, frozen=True):
    """One recorded step, its device not yet resolved. `place` is `None` for a host callback."""

    name: str
    function: Callable[..., Any] | None
    slots: tuple[Slot, ...]
    touches: tuple[Touch, ...]
    place: Place | None
    callback: Callback | None = None
    barrier: bool = False  # comes after all earlier steps of its device, and before all later ones


class RawGang(Struct, frozen=True):
    """Steps that start together; `ends_together`: later steps of each member come after the ends of all."""

    members: tuple[RawStep, ...]
    ends_together: bool


class RawScratch(Struct, frozen=True):
    """Scratch memory, its device not yet resolved."""

    place: Place
    shape: Shape
    dtype: np.dtype[Any]
    window: str = ""

    def at(self, rank: int, world_size: int) -> Scratch:
        return Scratch(
            resolve(self.place, rank, world_size), self.shape, self.dtype, math.prod(self.shape) * self.dtype.itemsize, self.window
        )


class Recording(Struct, frozen=True, eq=False):
    """Everything that a program's function asked for, in order."""

    program: str
    world_size: int
    steps: tuple[RawStep | RawGang, ...]
    scratch: tuple[RawScratch, ...]


def steps_of(recording: Recording) -> Iterator[RawStep]:
    """All steps, the members of gangs one by one."""
    for item in recording.steps:
        if isinstance(item, RawGang):
            yield from item.members
        else:
            yield item


def resolve(place: Place, rank: int, world_size: int) -> int:
    return (rank + place[0]) % world_size if isinstance(place, tuple) else place

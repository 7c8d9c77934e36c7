"""What stands for values while a program is recorded: tensors and scalars whose values are not known yet."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import numpy as np

from pypto_actors.errors import ProgramError
from pypto_actors.values import Shape, leading

if TYPE_CHECKING:
    from pypto_actors.plan import Path, Source

Place = int | tuple[int]  # a rank, or `(k,)`: k ranks after the one where the dispatch begins


class TensorRef:
    """A tensor while a program is recorded; `x[r]` and `x[a:b]` along the leading dimension are refs of the same memory.

    Attributes:
        shape: a tuple of ints.
        dtype: the numpy dtype.
    """

    __slots__ = ("_device", "_index", "_name", "_path", "_range", "_recording", "_source", "_writable", "dtype", "shape")

    def __init__(
        self,
        recording: object,
        name: str,
        shape: Shape,
        dtype: np.dtype[Any],
        source: Source,
        index: int,
        *,
        device: Place | None,
        writable: bool,
        path: Path = (),
        start: int = 0,
    ) -> None:
        self._recording = recording
        self._name = name
        self.shape = shape
        self.dtype = dtype
        self._source = source
        self._index = index
        self._device = device
        self._writable = writable
        self._path = path
        self._range = (start, start + math.prod(shape) * dtype.itemsize)

    def __getitem__(self, index: SupportsIndex | slice) -> TensorRef:
        start, stop, shape = leading(self.shape, index)
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        squeeze = not isinstance(index, slice)
        return TensorRef(
            self._recording,
            f"{self._name}[{start}]" if squeeze else f"{self._name}[{start}:{stop}]",
            shape,
            self.dtype,
            self._source,
            self._index,
            device=self._device,
            writable=self._writable,
            path=(*self._path, (start, stop, squeeze)),
            start=self._range[0] + start * row,
        )

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor ref without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[TensorRef]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> NoReturn:
        raise ProgramError(f"the value of tensor {self._name!r} is not known while a program is recorded; steer by a Static scalar")

    def __repr__(self) -> str:
        return f"<TensorRef {self._name} {self.shape} {self.dtype}>"


class ScalarRef:
    """A scalar whose value each dispatch brings; it can only be passed on."""

    __slots__ = ("_index", "_kind", "_name", "_recording")

    def __init__(self, recording: object, name: str, kind: type, index: int) -> None:
        self._recording = recording
        self._name = name
        self._kind = kind
        self._index = index

    def _used(self, *_: object) -> NoReturn:
        kind = self._kind.__name__
        raise ProgramError(
            f"the value of scalar {self._name!r} is used while the program is recorded; "
            f"declare it Static to record each value for itself: {self._name}: Annotated[{kind}, Static()]"
        )

    __bool__ = __int__ = __float__ = __index__ = __complex__ = __hash__ = __len__ = __iter__ = __str__ = _used
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _used
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _used
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _used
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __lshift__ = __rshift__ = __invert__ = _used
    __divmod__ = __rdivmod__ = __round__ = __trunc__ = __floor__ = __ceil__ = __format__ = _used

    __rlshift__ = __rrshift__ = __matmul__ = __rmatmul__ = __array__ = __reversed__ = _used

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._used()

    def __repr__(self) -> str:
        return f"<ScalarRef {self._name}: {self._kind.__name__}>"


class StackedRef(TensorRef):
    """A stacked argument while a program is recorded: `x[rank]` is the shard, which lives on its own device."""

    __slots__ = ("_shards",)
    _shards: tuple[TensorRef, ...]

    def __getitem__(self, index: SupportsIndex | slice) -> TensorRef:
        if isinstance(index, slice):
            raise ProgramError(
                f"the shards of {self._name!r} live on different devices: there are no partial slices, got {index!r}; "
                f"take {self._name}[rank]"
            )
        start, _, _ = leading(self.shape, index)
        return self._shards[start]


class WindowRef:
    """A window while a program is recorded: `window[rank]` is the buffer on that device.

    Attributes:
        name, shape, dtype: as they were asked for; the shape is that of each buffer.
    """

    __slots__ = ("dtype", "name", "refs", "shape")

    def __init__(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.refs: dict[int, TensorRef] = {}

    def __getitem__(self, rank: SupportsIndex) -> TensorRef:
        at = operator.index(rank)
        if at not in self.refs:
            raise ProgramError(f"window {self.name!r} has no buffer on device {at}; it has some on {sorted(self.refs)}")
        return self.refs[at]

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[TensorRef]:
        return iter([self.refs[rank] for rank in sorted(self.refs)])

    def __repr__(self) -> str:
        return f"<WindowRef {self.name} {self.shape} {self.dtype} on devices {sorted(self.refs)}>"

"""Bound programs: some arguments fixed and checked once, the rest given with each call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from msgspec import Struct

from pypto_actors.accesses import accesses_of, host_accesses
from pypto_actors.addresses import address_of
from pypto_actors.errors import ArgumentTypeError
from pypto_actors.handle import DistributedRunHandle, RunResult
from pypto_actors.memory import abandon
from pypto_actors.registry import Entry
from pypto_actors.signature import check_one, check_writable
from pypto_actors.submission import PLAIN, Options, Prepared, prepare
from pypto_actors.tensors import Tensors
from pypto_actors.values import HOST, Access, DeviceTensor, Fixed, Shape

if TYPE_CHECKING:
    from pypto_actors.system import System


FEWEST_FIXED = 4  # fixed tensors; fewer are as well claimed one by one


class Owner(Protocol):
    """What a bound program needs of its worker."""

    def _enter(self, what: str) -> System: ...
    def _open_system(self) -> System: ...
    def _in_callback_thread(self) -> bool: ...
    def _on_loop(self, work: Callable[[], DistributedRunHandle]) -> DistributedRunHandle: ...
    def _checked(self, device: int | None, priority: int, deadline: float | None, after: Iterable[DistributedRunHandle]) -> Options: ...
    def _begin(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle | None: ...
    async def _run_waiting(self, system: System, call: Prepared, options: Options) -> RunResult: ...
    async def _submit_prepared(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle: ...
    def _submit_prepared_nowait(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle: ...


class Form(Struct, eq=False):
    """What an argument of the rest must be like: an array of this shape and dtype, or a scalar of this type (`shape` is `None`)."""

    position: int
    kind: Any  # the dtype, or the type
    shape: Shape | None = None
    nbytes: int = 0
    written: bool = False


class Template(Struct, eq=False):
    """What a call has in common with the one before it, while the tensors live and the rest is of the same shapes and dtypes."""

    epoch: int
    call: Prepared
    accesses: tuple[Access, ...]  # of the fixed arguments, but for those that are `fixed` together
    forms: tuple[Form, ...]
    fixed: Fixed | None


class BoundProgram:
    """A program with fixed arguments. The rest is given in the order of the parameters. Where no `Out` parameter is fixed, all of them may
    be left out (return style). Options are those of `run`."""

    __slots__ = ("_complete", "_entry", "_epoch", "_fixed", "_rest", "_short", "_template", "_tensors", "_worker")

    def __init__(self, worker: Owner, entry: Entry, tensors: Tensors, fixed: Mapping[str, Any]) -> None:
        self._worker = worker
        self._entry = entry
        self._tensors = tensors
        params = entry.program.params
        names = {parameter.name: position for position, parameter in enumerate(params)}
        for name in fixed:
            if name not in names:
                known = ", ".join(names)
                raise ArgumentTypeError(f"program {entry.program.name!r} has no parameter {name!r} to fix; its parameters are {known}")
        self._fixed = {names[name]: value for name, value in fixed.items()}
        for position, value in self._fixed.items():
            check_one(entry.program, position, value)
            if params[position].writes and isinstance(value, np.ndarray):
                check_writable(entry.program, params[position], value)
        self._rest = tuple(position for position in range(len(params)) if position not in self._fixed)
        inputs = set(entry.program.inputs)
        no_output_fixed = all(position in inputs for position in self._fixed)
        self._short = tuple(position for position in self._rest if position in inputs) if no_output_fixed else None
        self._complete: Prepared | None = None
        self._epoch = -1
        self._template: Template | None = None
        self._check_tensors()
        if not self._rest:
            self._complete = self._prepare(())
            self._epoch = tensors.epoch

    def _check_tensors(self) -> None:
        for position, value in self._fixed.items():
            self._tensors.check_any(
                value, f"parameter {self._entry.program.params[position].name!r} of program {self._entry.program.name!r}"
            )

    async def __call__(
        self,
        *rest: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> RunResult:
        """`run` with the fixed arguments and `rest`."""
        worker = self._worker
        system = worker._enter("run")
        if device is None and priority == 0 and deadline is None and after == ():
            options = PLAIN
        else:
            options = worker._checked(device, priority, deadline, after)
        call = self._complete
        if call is None or rest or self._epoch != self._tensors.epoch:
            call = self._call(rest)
        handle = worker._begin(system, call, options)
        if handle is None:
            return await worker._run_waiting(system, call, options)
        try:
            if not handle.state.final:
                await handle.waiters
        except asyncio.CancelledError:
            await abandon(system, handle)
            raise
        return handle.result()

    async def submit(
        self,
        *rest: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> DistributedRunHandle:
        """`submit` with the fixed arguments and `rest`."""
        system = self._worker._enter("submit")
        options = self._worker._checked(device, priority, deadline, after)
        return await self._worker._submit_prepared(system, self._call(rest), options)

    def submit_nowait(
        self,
        *rest: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> DistributedRunHandle:
        """`submit_nowait` with the fixed arguments and `rest`."""
        try:
            system = self._worker._open_system()
        except RuntimeError:
            if self._worker._in_callback_thread():
                work = partial(self.submit_nowait, *rest, device=device, priority=priority, deadline=deadline, after=after)
                return self._worker._on_loop(work)
            raise
        options = self._worker._checked(device, priority, deadline, after)
        return self._worker._submit_prepared_nowait(system, self._call(rest), options)

    def _call(self, rest: Sequence[Any]) -> Prepared:
        if self._complete is not None and not rest and self._epoch == self._tensors.epoch:
            return self._complete
        if self._rest:
            known = self._like_before(rest)
            if known is not None:
                return known
        call = self._prepare(rest)
        if not self._rest:
            self._complete = call
            self._epoch = self._tensors.epoch
        else:
            self._remember(rest, call)
        return call

    def _like_before(self, rest: Sequence[Any]) -> Prepared | None:
        """The call, if it differs from the one before in nothing but the host arrays and scalars of the rest."""
        template = self._template
        if template is None or template.epoch != self._tensors.epoch or not self._entry.active:
            return None
        forms = template.forms
        if len(forms) != len(rest):
            return None
        before = template.call
        args = list(before.args)
        accesses = list(template.accesses)
        for form, arg in zip(forms, rest):  # noqa: B905 (they are equally many)
            if form.shape is None:
                if type(arg) is not form.kind:
                    return None
            else:
                if type(arg) is not np.ndarray or arg.shape != form.shape:
                    return None
                dtype = arg.dtype
                if dtype is not form.kind and dtype != form.kind:
                    return None
                written = form.written
                flags = arg.flags
                if written and not flags.writeable:
                    return None  # the full check says what is wrong
                if flags.c_contiguous:
                    address = address_of(arg)
                    accesses.append((HOST, address, address + form.nbytes, written))
                else:
                    accesses += host_accesses(arg, written)
            args[form.position] = arg
        return Prepared(
            before.entry,
            before.signed,
            tuple(args),
            tuple(accesses),
            (),
            False,
            before.program,
            before.shown,
            before.stage,
            before.plans,
            before.rank,
            before.plan,
            template.fixed,
        )

    def _remember(self, rest: Sequence[Any], call: Prepared) -> None:
        signed, params = call.signed, self._entry.program.params
        plain = signed.whole is not None and not (signed.outputs or signed.multiple or self._entry.has_static)
        scalars = all(
            params[position].array is not None or type(arg) is params[position].scalar
            for position, arg in zip(self._rest, rest, strict=False)
        )
        if not plain or not scalars or len(rest) != len(self._rest) or any(isinstance(arg, DeviceTensor) for arg in rest):
            return
        assert signed.whole is not None
        writes = dict(signed.whole)
        fixed = [
            access for position, write in signed.whole if position in self._fixed for access in accesses_of(call.args[position], write)
        ]
        forms = tuple(
            Form(position, type(arg))
            if params[position].array is None
            else Form(position, arg.dtype, arg.shape, arg.nbytes, writes.get(position, False))
            for position, arg in zip(self._rest, rest, strict=True)
        )
        together = _fixed_together(fixed, call.args)
        self._template = Template(self._tensors.epoch, call, () if together is not None else tuple(fixed), forms, together)

    def _prepare(self, rest: Sequence[Any]) -> Prepared:
        self._entry.check_active()
        args = self._fixed.copy()
        if len(rest) == len(self._rest):
            args.update(zip(self._rest, rest, strict=True))
        elif self._short is not None and len(rest) == len(self._short):
            args.update(zip(self._short, rest, strict=True))
        else:
            params = self._entry.program.params
            names = ", ".join(params[position].name for position in self._rest) or "none"
            raise ArgumentTypeError(
                f"bound program {self._entry.program.name!r} takes {len(self._rest)} arguments ({names}), got {len(rest)}"
            )
        return prepare(self._entry, tuple([args[position] for position in sorted(args)]), self._tensors)

    def __repr__(self) -> str:
        params = self._entry.program.params
        return f"<BoundProgram {self._entry.program.name!r}, fixed: {', '.join(params[p].name for p in self._fixed) or 'nothing'}>"


def _fixed_together(accesses: Sequence[Access], args: Sequence[Any]) -> Fixed | None:
    """The fixed tensors, if each has memory of its own and there are enough of them. Only they are device tensors among `args`."""
    spaces = tuple(space for space, _, _, _ in accesses)
    alone = len(set(spaces)) == len(spaces) >= FEWEST_FIXED and HOST not in spaces
    if not alone or any(stop == start for _, start, stop, _ in accesses):
        return None
    return Fixed(tuple(accesses), spaces, frozenset(position for position, arg in enumerate(args) if type(arg) is not DeviceTensor))

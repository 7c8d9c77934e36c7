"""The programs that a worker knows, each with its recordings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from pypto_actors.compiled import AnyProgram
from pypto_actors.errors import UnknownProgramError
from pypto_actors.program import Program
from pypto_actors.recording import Form
from pypto_actors.signature import Signed, sign, signature_key

MOST_CALLS = 1024  # checked calls that are remembered of each program
MOST_RECORDINGS = 256  # of each program; the least recently used leaves


class Entry:
    """One registered program: its callbacks, and the recordings of the signatures that were used."""

    __slots__ = (
        "_callbacks",
        "_windows",
        "_world_size",
        "active",
        "calls",
        "epoch",
        "has_static",
        "program",
        "resident",
        "shown",
        "signed",
    )

    def __init__(
        self,
        program: Program,
        shown: AnyProgram,
        world_size: int,
        callbacks: Mapping[str, Callable[..., Any]],
        persistent: bool = False,
        reset_windows: bool = True,
    ) -> None:
        self.program = program
        self.shown = shown  # what the user passed: the program, or a compiled one
        self.active = True
        self.resident = all(parameter.array is not None for parameter in program.params)
        self.calls: dict[tuple[Any, ...], Any] = {}  # checked calls by their device tensors, while none of them ends
        self.epoch = -1
        self.has_static = program.has_static
        self._world_size = world_size
        self._callbacks = callbacks
        self._windows = (persistent, reset_windows, dict[str, Form]())
        self.signed: OrderedDict[tuple[Any, ...], Signed] = OrderedDict()

    def sign(self, args: Sequence[Any]) -> Signed:
        """What is known of calls like this one; the first one checks everything and records."""
        key = signature_key(self.program, args)
        try:
            signed = self.signed[key]
        except KeyError:
            signed = sign(self.program, args, self._world_size, self._callbacks, *self._windows)
            self.signed[key] = signed
            if len(self.signed) > MOST_RECORDINGS:
                self.signed.popitem(last=False)
            return signed
        except TypeError:  # an argument that cannot be hashed is of a wrong kind: the checks say which
            return sign(self.program, args, self._world_size, self._callbacks, *self._windows)
        if len(self.signed) > 1:
            self.signed.move_to_end(key)
        return signed

    def keep_call(self, tensors: tuple[Any, ...], call: Any) -> None:
        """Remember a checked call of device tensors only."""
        if len(self.calls) >= MOST_CALLS:
            self.calls.clear()
        self.calls[tensors] = call

    def forget_calls(self, epoch: int) -> None:
        """A tensor has ended: what was checked must be checked again."""
        self.calls.clear()
        self.epoch = epoch

    def check_active(self) -> None:
        """Raise `UnknownProgramError` if the program was unregistered."""
        if not self.active:
            raise UnknownProgramError(f"program {self.program.name!r} was unregistered; register it again, and use what that returns")

    def __repr__(self) -> str:
        return f"<Entry {self.program.name!r}: {len(self.signed)} recordings>"


class Registry(Sequence[AnyProgram]):
    """A read-only sequence of the registered programs, oldest first. It keeps them alive."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}  # by the identity of the program

    def add(self, entry: Entry) -> None:
        self._entries[id(entry.program)] = entry

    def remove(self, entry: Entry) -> None:
        entry.active = False
        self._entries.pop(id(entry.program), None)

    def find(self, program: Program) -> Entry | None:
        return self._entries.get(id(program))

    def entry(self, program: Any) -> Entry:
        """The entry of a program, plain or compiled; `UnknownProgramError` if there is none."""
        entry = self._entries.get(id(program))
        if entry is None:
            plain = getattr(program, "program", program)
            entry = self._entries.get(id(plain))
            if entry is None:
                raise UnknownProgramError(self._unknown(plain))
        return entry

    def _unknown(self, program: object) -> str:
        known = ", ".join(repr(entry.program.name) for entry in self._entries.values()) or "none"
        if not isinstance(program, Program):
            return f"{program!r} is no program; this worker knows {known}"
        twin = any(entry.program.name == program.name for entry in self._entries.values())
        hint = " (one of the same name is another object)" if twin else ""
        mend = "pass it to DistributedWorker, or `await worker.register` it"
        return f"this worker does not know program {program.name!r}{hint}; it knows {known}; {mend}"

    @overload
    def __getitem__(self, index: int) -> AnyProgram: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnyProgram]: ...
    def __getitem__(self, index: int | slice) -> AnyProgram | Sequence[AnyProgram]:
        shown = [entry.shown for entry in self._entries.values()]
        return tuple(shown[index]) if isinstance(index, slice) else shown[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[AnyProgram]:
        return iter([entry.shown for entry in self._entries.values()])

    def __contains__(self, program: object) -> bool:
        return id(getattr(program, "program", program)) in self._entries

    def __repr__(self) -> str:
        return f"<Registry of {[entry.program.name for entry in self._entries.values()]}>"

"""Faults of a declaration: each is a `ProgramError` where the decorator stands, and says what to write instead."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from tests.programs import postponed


class Called:
    def __call__(self, orch: pa.Orchestrator, x: pa.InArray) -> None: ...


async def waiting(orch: pa.Orchestrator, x: pa.InArray) -> None: ...


def yielding(orch: pa.Orchestrator, x: pa.InArray) -> Any:
    yield


def unannotated(orch, x) -> None: ...  # type: ignore[no-untyped-def]


def defaulted(orch: pa.Orchestrator, n: int = 1) -> None: ...


def default_array(x: pa.InArray = np.zeros(1)) -> None: ...  # noqa: B008


def variadic(orch: pa.Orchestrator, *xs: pa.InArray) -> None: ...


def by_keyword(orch: pa.Orchestrator, *, x: pa.InArray) -> None: ...


def alone() -> None: ...


def of_str(orch: pa.Orchestrator, x: str) -> None: ...


def of_array(orch: pa.Orchestrator, x: np.ndarray) -> None: ...


def of_two(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.In(), pa.Out()]) -> None: ...


def static_array(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.In(), pa.Static()]) -> None: ...


def static_kernel(x: pa.InArray, n: Annotated[int, pa.Static()]) -> None: ...


def misspelt(orch: pa.Orchestrator, x: pa.InnArray) -> None: ...  # type: ignore[name-defined]


def unknown(orch: pa.Orchestrator, x: NoSuchName) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def sound(orch: pa.Orchestrator, x: pa.InArray) -> None: ...


@pytest.mark.parametrize(
    ("declare", "match"),
    [
        (lambda: pa.program(Called()), "is no Python function"),
        (lambda: pa.kernel(Called()), "is no Python function"),
        (lambda: pa.program(functools.partial(sound)), "is no Python function"),
        (lambda: pa.program(typing.cast(Any, 3)), "@program decorates a function, got 3"),
        (lambda: pa.program(typing.cast(Any, "decode")), "@program decorates a function, got 'decode'"),
        (lambda: pa.kernel(typing.cast(Any, 3)), "@kernel decorates a function, got 3"),
        (lambda: pa.kernel(int), "kernel 'int' must be a Python function"),
        (lambda: pa.kernel(len), "kernel 'len' must be a Python function"),
        (lambda: pa.kernel(np.add), "kernel 'add' must be a Python function|is no Python function"),
        (lambda: pa.kernel(pa.kernel(default_scalar)), "must be a Python function"),
        (lambda: pa.program(typing.cast(Any, waiting)), "program 'waiting' is async or a generator"),
        (lambda: pa.program(yielding), "program 'yielding' is async or a generator"),
        (lambda: pa.kernel(waiting), "kernel 'waiting' is async or a generator"),
        (lambda: pa.program(unannotated), "parameter 'x' of program 'unannotated' has no annotation; write one such as InArray"),
        (lambda: pa.program(defaulted), "parameter 'n' of program 'defaulted' has a default"),
        (lambda: pa.kernel(default_array), "parameter 'x' of kernel 'default_array' is an array with a default"),
        (lambda: pa.program(variadic), "parameter 'xs' of program 'variadic' is variadic positional"),
        (lambda: pa.program(by_keyword), "parameter 'x' of program 'by_keyword' is keyword-only"),
        (lambda: pa.program(alone), "program 'alone' takes no orchestrator"),
        (lambda: pa.program(of_str), "parameter 'x' of program 'of_str' is annotated <class 'str'>; expected In, Out or InOut"),
        (lambda: pa.program(of_array), "parameter 'x' of program 'of_array' is annotated"),
        (lambda: pa.program(of_two), "parameter 'x' of program 'of_two' is annotated"),
        (lambda: pa.program(static_array), "parameter 'x' of program 'static_array' is annotated"),
        (lambda: pa.kernel(static_kernel), "parameter 'n' of kernel 'static_kernel' is Static, which is for scalars of programs"),
        (lambda: pa.program(misspelt), "annotation of misspelt cannot be evaluated.*InnArray"),
        (lambda: pa.program(unknown), "annotation of unknown cannot be evaluated.*NoSuchName"),
        (lambda: pa.program(callbacks="verify")(sound), "callbacks is a tuple of names such as .* got 'verify'"),
        (lambda: pa.program(callbacks=typing.cast(Any, 3))(sound), "callbacks is a tuple of names"),
        (lambda: pa.program(callbacks=typing.cast(Any, (print,)))(sound), "callbacks are names that the worker binds, got <built-in"),
        (lambda: pa.program(name=typing.cast(Any, 3))(sound), "the name of a program is a str, got 3"),
        (lambda: pa.program(stage=typing.cast(Any, 3))(sound), "the stage of a program is a str, got 3"),
        (lambda: pa.In((-1,)), r"a dimension is an int of at least 0 or a str, got -1 in the shape \(-1,\)"),
        (lambda: pa.Out((True,)), "a dimension is an int of at least 0 or a str, got True"),
        (lambda: pa.InOut(typing.cast(Any, (2.5,))), "a dimension is an int of at least 0 or a str, got 2.5"),
        (lambda: pa.In(typing.cast(Any, "n")), r"a shape is a tuple of ints and strings such as \(4, 'n'\), got 'n'"),
        (lambda: pa.In(typing.cast(Any, 3)), "a shape is a tuple"),
        (lambda: pa.In((1,), "no dtype"), "'no dtype' is no numpy dtype"),
    ],
)
def test_a_fault_of_a_declaration(declare: Callable[[], object], match: str) -> None:
    with pytest.raises(pa.ProgramError, match=match):
        declare()


def default_scalar(x: pa.InArray, n: int = 1) -> None: ...


def test_what_a_declaration_says_of_itself() -> None:
    kernel = pa.kernel(default_scalar)
    assert (kernel.name, [param.name for param in kernel.params]) == ("default_scalar", ["x", "n"])
    assert kernel.function is default_scalar
    program = pa.program(name="p", stage="decode", callbacks=["verify"])(sound)
    assert (program.name, program.stage, program.callbacks, [param.name for param in program.params]) == ("p", "decode", ("verify",), ["x"])
    assert pa.program(sound).name == "sound"
    assert pa.program()(sound).stage is None
    with pytest.raises(pa.ProgramError, match=r"program 'p' is recorded, not called: use `await worker\.run"):
        program(None, None)


def test_calling_a_kernel_is_calling_the_function() -> None:
    @pa.kernel
    def scale(x: pa.InOutArray, n: int = 2) -> int:
        """Doc."""
        x *= n
        return n

    array = np.ones(2)
    assert scale(array) == 2
    assert scale(array, n=3) == 3
    assert array.tolist() == [6, 6]
    assert scale.__doc__ == "Doc."


def test_the_kinds_of_parameters() -> None:
    @pa.program
    def kinds(
        orch: pa.Orchestrator,
        a: Annotated[pa.TensorRef, pa.In((2, "n"), np.float32)],
        b: Annotated[pa.TensorRef, pa.Out],
        c: pa.InOutArray,
        i: int,
        f: float,
        t: bool,
        s: Annotated[int, pa.Static()],
        u: Annotated[float, pa.Static],
        v: Annotated[int, "a remark"],
    ) -> None: ...

    assert [repr(param) for param in kinds.params] == [
        "a: In((2, 'n'), float32)",
        "b: Out(None, None)",
        "c: InOut(None, None)",
        "i: int",
        "f: float",
        "t: bool",
        "s: int (static)",
        "u: float (static)",
        "v: int",
    ]


def test_postponed_annotations_of_names_local_to_a_function() -> None:
    """This file postpones its annotations too; the other one has names that only the function knows."""
    program = postponed.made_in_a_function(3)
    assert [repr(param) for param in program.params] == ["x: In((3,), float32)", "n: int (static)"]
    assert repr(postponed.kernel_in_a_function(5).params[0]) == "x: Out((5,), float32)"
    size = 7
    Spec = Annotated[pa.TensorRef, pa.In((size,))]

    @pa.program
    def here(orch: pa.Orchestrator, x: Spec, y: Annotated[pa.TensorRef, pa.Out((size, "n"))]) -> None: ...

    assert [repr(param) for param in here.params] == ["x: In((7,), None)", "y: Out((7, 'n'), None)"]


async def test_a_program_that_was_declared_in_a_function_runs() -> None:
    program = postponed.made_in_a_function(3)
    async with pa.DistributedWorker(program, backend="inline") as worker:
        await worker.run(program, np.zeros(3, np.float32), 1)
        with pytest.raises(pa.ArgumentValueError, match="parameter 'x' of program 'program'"):
            await worker.run(program, np.zeros(4, np.float32), 1)

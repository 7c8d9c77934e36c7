"""Recording: every fault is a `ProgramError` to the caller before anything runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from tests.programs.recorded import RAN, Record, arrays, four, plain, run, same, scale, weigh


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


def eight(x: Annotated[Any, pa.In((8,))]) -> None: ...


def single(x: Annotated[Any, pa.In(None, np.float32)]) -> None: ...


SUBMITTED: dict[str, tuple[Record, str]] = {
    "too few": (lambda o, x, out: o.submit(scale, x), r"kernel 'scale' takes 2 to 3 arguments \(x, out, n\), got 1 in program 'p'"),
    "too many": (lambda o, x, out: o.submit(scale, x, out, 1, 2), "takes 2 to 3 arguments .* got 4"),
    "exactly": (lambda o, x, out: o.submit(weigh, out), "takes 3 arguments .* got 1"),
    "by name": (lambda o, x, out: o.submit(scale, x=x, out=out), "unexpected keyword argument 'x'"),
    "a number for an array": (
        lambda o, x, out: o.submit(scale, 1, out),
        "argument 'x' of kernel 'scale' .* must be a tensor ref, got int 1",
    ),
    "an array": (lambda o, x, out: o.submit(scale, np.ones(4), out), "must be a tensor ref, got ndarray"),
    "nothing for an array": (lambda o, x, out: o.submit(scale, None, out), "must be a tensor ref, got NoneType"),
    "a str for an int": (lambda o, x, out: o.submit(scale, x, out, "2"), "argument 'n' .* must be an int, got str '2'"),
    "a float for an int": (lambda o, x, out: o.submit(scale, x, out, 2.0), "must be an int, got float 2.0"),
    "a bool for an int": (lambda o, x, out: o.submit(scale, x, out, True), "must be an int, got bool True"),
    "an array for an int": (lambda o, x, out: o.submit(scale, x, out, x), "must be an int, got <TensorRef x"),
    "an int for a bool": (lambda o, x, out: o.submit(weigh, out, 1.0, 1), "argument 'on' .* must be a bool, got int 1"),
    "an In that is written": (lambda o, x, out: o.submit(scale, out, x), "'x' is an In parameter of the program; declare it Out or InOut"),
    "an In that is written in part": (lambda o, x, out: o.submit(scale, out[0:1], x[0:1]), "is an In parameter of the program"),
    "an In that is copied to": (lambda o, x, out: o.copy(x, out), "is an In parameter of the program"),
    "another dtype": (lambda o, x, out: o.submit(four, out), "must be float32, got <TensorRef out"),
    "other dimensions": (lambda o, x, out: o.submit(four, o.empty(4, "f4")), r"must have 2 dimensions \(4, 'm'\)"),
    "another shape": (lambda o, x, out: o.submit(four, o.empty((3, 4), "f4")), r"must have the shape \(4, 'm'\)"),
    "unequal dimensions": (lambda o, x, out: o.submit(same, x, out[0:2]), r"argument 'b' .* must have the shape \('n',\) with 'n' = 4"),
    "a function": (lambda o, x, out: o.submit(plain, x), "submit takes a kernel, got <function plain.*decorate the function with @kernel"),
    "a name": (lambda o, x, out: o.submit("scale", x, out), "submit takes a kernel, got 'scale'"),
    "a program": (lambda o, x, out: o.submit(arrays(lambda: 0), x, out), "submit takes a kernel, got <Program p"),
    "no such device": (lambda o, x, out: o.submit(scale, x, out, device=2), r"kernel 'scale' names device 2, but there are devices 0 … 1"),
    "a device from the end": (lambda o, x, out: o.submit(scale, x, out, device=-1), "names device -1"),
    "a device that is no int": (lambda o, x, out: o.submit(scale, x, out, device=0.0), "must be an int, got float 0.0"),
    "a device that is a bool": (lambda o, x, out: o.submit(scale, x, out, device=True), "must be an int, got bool True"),
    "scratch on no such device": (lambda o, x, out: o.empty(4, "f4", device=9), "scratch names device 9"),
    "scratch of no shape": (lambda o, x, out: o.empty((-1,), "f4"), "a shape is made of ints of at least 0, got -1"),
    "scratch of no dtype": (lambda o, x, out: o.empty(4, "nonsense"), "nonsense"),
    "scratch of objects": (lambda o, x, out: o.empty(4, object), "use a dtype without Python objects"),
    "copies of unequal shapes": (lambda o, x, out: o.copy(out[0:2], x), "copy needs equal shapes and dtypes"),
    "copies of an array": (lambda o, x, out: o.copy(out, np.ones(4)), "copy takes tensor refs, got array"),
    "an index beyond the end": (lambda o, x, out: x[4], "index 4 is out of range"),
    "a step": (lambda o, x, out: x[0:4:2], "a slice of a tensor must have step 1"),
    "a second dimension": (lambda o, x, out: x[0, 1], "indexed along its leading dimension only"),
    "an index that is none": (lambda o, x, out: x[1.5], "indexed along its leading dimension"),
    "a tensor's value": (lambda o, x, out: bool(x), "the value of tensor 'x' is not known.*steer by a Static scalar"),
    "arithmetic on tensors": (lambda o, x, out: x + out, "unsupported operand"),
    "a program that raises": (lambda o, x, out: 1 / 0, "program 'p' raised while it was recorded: ZeroDivisionError: division by zero"),
    "a callback of another shape": (lambda o, x, out: o.submit_sub(eight, x), r"argument 0 of callback 'eight' must have the shape \(8,\)"),
    "a callback of another dtype": (lambda o, x, out: o.submit_sub(single, x), "argument 0 of callback 'single' must be float32"),
    "a number for an array of a callback": (
        lambda o, x, out: o.submit_sub(eight, 3),
        "argument 0 of callback 'eight' must be a tensor ref",
    ),
    "a sum of dates": (lambda o, x, out: o.allreduce([o.empty(2, "M8[s]", device=r) for r in range(2)]), "cannot take the 'sum' of arrays"),
    "an operation that is none": (lambda o, x, out: o.allreduce([out], op=["sum"]), "allreduce knows the operations 'sum', 'max'"),
    "a gang of nobody": (lambda o, x, out: o.submit_group(scale, [], devices=[]), "a gang has one or more members"),
    "a gang of one device": (
        lambda o, x, out: o.submit_group(scale, [(x, out[0:2]), (x, out[2:4])], devices=[0, 0]),
        r"one member a device, got devices \[0, 0\]",
    ),
    "a gang that shares what it writes": (
        lambda o, x, out: o.submit_group(scale, [(x, out), (x, out)], devices=[0, 1]),
        "share bytes that one of them writes",
    ),
    "a window of two shapes": (lambda o, x, out: (o.window("w", 3, "f4"), o.window("w", 4, "f4")), "it cannot be"),
    "a window without an index": (lambda o, x, out: o.submit(scale, o.window("w", 4, "f8"), out), "must be a tensor ref, got WindowRef"),
    "a barrier of no such device": (lambda o, x, out: o.barrier([7]), "barrier names device 7"),
    "an undeclared callback": (
        lambda o, x, out: o.submit_sub("nope", x),
        r"program 'p' declares no callback 'nope'; add it: @program\(callbacks=\('nope',\)\)",
    ),
    "a callback with too few parameters": (lambda o, x, out: o.submit_sub(plain, x, out), "callback 'plain' .* cannot take the 2 recorded"),
    "a callback with too many": (lambda o, x, out: o.submit_sub(plain), "cannot take the 0 recorded arguments: missing"),
    "a kernel as a callback": (
        lambda o, x, out: o.submit_sub(scale, x, out),
        "submit_sub takes a function or a declared name, got <Kernel",
    ),
    "nothing as a callback": (lambda o, x, out: o.submit_sub(None, x), "takes a function or a declared name, got None"),
    "a list of refs for a callback": (lambda o, x, out: o.submit_sub(plain, [x, out]), "argument 0 of callback 'plain' is a list of refs"),
    "refs deep inside for a callback": (lambda o, x, out: o.submit_sub(plain, {"a": (1, [x])}), "is a dict of refs; pass each ref"),
}


@pytest.mark.parametrize("name", SUBMITTED)
async def test_a_fault_of_a_recording(name: str) -> None:
    """Found before anything ran, also what the program submitted before the fault."""
    body, match = SUBMITTED[name]

    def after_another(orch: pa.Orchestrator, x: pa.TensorRef, out: pa.TensorRef) -> None:
        orch.submit(scale, x, out)
        body(orch, x, out)

    for program in (arrays(body), arrays(after_another)):
        with pytest.raises(pa.ProgramError, match=match):
            await run(program, np.ones(4), np.zeros(4))
        assert RAN == []


USES: dict[str, Record] = {
    "a loop": lambda o, x, n: [o.submit(weigh, x, 1.0, True) for _ in range(n)],
    "a branch": lambda o, x, n: 1 if n else 2,
    "a comparison": lambda o, x, n: n > 1,
    "equality": lambda o, x, n: n == 1,
    "arithmetic": lambda o, x, n: 2 * n + 1,
    "a power": lambda o, x, n: 2**n,
    "int": lambda o, x, n: int(n),
    "float": lambda o, x, n: float(n),
    "round": lambda o, x, n: round(n),
    "text": lambda o, x, n: f"{n}",
    "a key": lambda o, x, n: {1: 2}[n],
    "a power of two": lambda o, x, n: 1 << n,
    "a shift": lambda o, x, n: 8 >> n,
    "membership": lambda o, x, n: n in (1, 2),
    "an index of a tensor": lambda o, x, n: x[n],
    "a slice of a tensor": lambda o, x, n: x[:n],
    "an index of a list": lambda o, x, n: [1, 2][n],
    "a repeated list": lambda o, x, n: [0] * n,
    "numpy": lambda o, x, n: np.float32(n),
    "an array and it": lambda o, x, n: np.arange(3) + n,
    "a shape": lambda o, x, n: o.empty(n, "f4"),
    "a dimension": lambda o, x, n: o.empty((n, 2), "f4"),
    "a device": lambda o, x, n: o.submit(weigh, x, 1.0, True, device=n),
    "a device of scratch": lambda o, x, n: o.empty(4, "f4", device=n),
    "devices of a gang": lambda o, x, n: o.submit_group(weigh, [(x, 1.0, True)], devices=[n]),
    "devices of a barrier": lambda o, x, n: o.barrier([n]),
    "a rank of a window": lambda o, x, n: o.window("w", 4, "f4")[n],
}


@pytest.mark.parametrize("name", USES)
async def test_using_the_value_of_a_scalar_says_to_declare_it_static(name: str) -> None:
    use = USES[name]

    @pa.program(name="p")
    def dynamic(orch: pa.Orchestrator, x: pa.InOutArray, n: int) -> None:
        use(orch, x, n)

    @pa.program
    def static(orch: pa.Orchestrator, x: pa.InOutArray, n: Annotated[int, pa.Static()]) -> None:
        use(orch, x, n)

    with pytest.raises(pa.ProgramError, match=r"value of scalar 'n' .* declare it Static .*: n: Annotated\[int, Static\(\)\]"):
        await run(dynamic, np.ones(4), 1)
    await run(static, np.ones(4), 1)


async def test_a_scalar_is_passed_on_unused() -> None:
    @pa.program
    def passing(orch: pa.Orchestrator, x: pa.InOutArray, n: int, f: float, on: bool) -> None:
        orch.submit(weigh, x, n, on)  # an int will do for a float
        orch.submit(weigh, x, f, on)
        orch.submit_sub(lambda *scalars: scalars, n, f, on, 7)

    @pa.program
    def mistaken(orch: pa.Orchestrator, x: pa.InOutArray, f: float) -> None:
        orch.submit(scale, x, x, f)

    x = np.ones(2)
    result = await run(passing, x, 3, 0.5, True)
    assert (x.tolist(), result.returned) == ([1.5, 1.5], ((3, 0.5, True, 7),))
    with pytest.raises(pa.ProgramError, match=r"argument 'n' .* must be an int, got the float 'f'"):
        await run(mistaken, x, 0.5)


async def test_refs_of_another_recording() -> None:
    kept: list[Any] = []

    @pa.program
    def keeping(orch: pa.Orchestrator, x: pa.InOutArray, n: int) -> None:
        kept.extend((orch, x, n))

    using: list[Record] = [
        lambda o, x, out: o.submit(scale, kept[1], out),
        lambda o, x, out: o.submit(scale, x, out, kept[2]),
        lambda o, x, out: o.submit_sub(plain, kept[1]),
        lambda o, x, out: o.submit_sub(plain, kept[2]),
        lambda o, x, out: o.copy(out, kept[1]),
        lambda o, x, out: o.submit(scale, kept[1][0:4], out),
    ]
    await run(keeping, np.ones(4), 1)
    for body in using:
        with pytest.raises(pa.ProgramError, match="of another recording; use the refs that this call of the function got"):
            await run(arrays(body), np.ones(4), np.zeros(4))
    orch, x, _ = kept
    late: list[Callable[[], object]] = [
        lambda: orch.submit(scale, x, x),
        lambda: orch.submit_group(scale, [(x, x)], devices=[0]),
        lambda: orch.submit_sub(plain, x),
        lambda: orch.empty(4, "f4"),
        lambda: orch.copy(x, x),
        lambda: orch.window("w", 4, "f4"),
        lambda: orch.barrier(),
        lambda: orch.allreduce([x]),
        lambda: orch.broadcast([x]),
        lambda: orch.allgather([x]),
        lambda: orch.all_to_all([x]),
        lambda: orch.reduce_scatter([x]),
    ]
    for use in late:
        with pytest.raises(
            pa.ProgramError, match="the recording has ended; an orchestrator is valid only while the program's function runs"
        ):
            use()


async def test_a_named_callback_that_cannot_take_the_arguments() -> None:
    program = arrays(lambda o, x, out: o.submit_sub("verify", x, out), callbacks=("verify",))
    with pytest.raises(pa.ProgramError, match="callback 'verify' of program 'p' cannot take the 2 recorded arguments: too many"):
        await run(program, np.ones(2), np.zeros(2), callbacks={"verify": plain})
    result = await run(program, np.ones(2), np.zeros(2), callbacks={"verify": lambda x, out: "yes"})
    assert result.returned == ("yes",)
    with pytest.raises(ValueError, match=r"callbacks \['verify'\] are declared but not bound"):
        pa.DistributedWorker(program)
    with pytest.raises(ValueError, match="callback 'other' is declared by no program; declared are 'verify'"):
        pa.DistributedWorker(program, callbacks={"verify": plain, "other": plain})


class Writing:
    def __call__(self, x: pa.OutArray) -> None: ...


def writing(n: int, x: pa.OutArray) -> None: ...


@pytest.mark.parametrize("callback", [Writing(), functools.partial(writing, 1), Writing().__call__])
async def test_the_annotation_of_a_callback_decides_how_it_uses_an_argument(callback: Callable[..., Any]) -> None:
    with pytest.raises(pa.ProgramError, match="is written, but 'x' is an In parameter"):
        await run(arrays(lambda o, x, out: o.submit_sub(callback, x)), np.ones(2), np.zeros(2))
    await run(arrays(lambda o, x, out: o.submit_sub(callback, out)), np.ones(2), np.zeros(2))


@pytest.mark.parametrize("first", ["float", "int"])
async def test_one_scalar_as_an_int_and_as_a_float(first: str) -> None:
    """Each kernel gets the kind that it has declared, whichever comes first, also twice in one call."""
    seen: list[Any] = []

    @pa.kernel
    def floats(x: pa.InOutArray, f: float) -> None:
        seen.append(f)

    @pa.kernel
    def ints(x: pa.InOutArray, n: int) -> None:
        seen.append(n)

    @pa.kernel
    def both(x: pa.InOutArray, f: float, n: int) -> None:
        seen.extend((f, n))

    @pa.program
    def program(orch: pa.Orchestrator, x: pa.InOutArray, n: int) -> None:
        for kernel in (floats, ints) if first == "float" else (ints, floats):
            orch.submit(kernel, x, n)
        orch.submit(both, x, n, n)

    await run(program, np.ones(4), 3)
    kinds = [float, int] if first == "float" else [int, float]
    assert [type(value) for value in seen] == [*kinds, float, int]
    assert set(seen) == {3}


def test_a_program_under_a_decorator() -> None:
    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @pa.program
    @decorated
    def program(orch: pa.Orchestrator, x: pa.InOutArray) -> None: ...

    assert [parameter.name for parameter in program.params] == ["x"]

"""What is in a digest: two behaviours never share one, and what does not decide the behaviour is not in it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import pypto_actors as pa

HEAD = """
from typing import Annotated
import numpy as np
import pypto_actors as pa
"""
PROGRAM = """
@pa.program
def program(orch: pa.Orchestrator, x: pa.InOutArray) -> None:
    orch.submit(k, x)
"""
KERNEL = """
@pa.kernel
def k(x: pa.InOutArray) -> None:
    {body}
"""


def source(before: str, body: str = "pass") -> str:
    return HEAD + before + KERNEL.format(body=body) + PROGRAM


def digest_in(directory: Path, text: str) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "model.py"
    file.write_text(text)
    result: str = pa.load_program(file).compile().digest
    return result


TWO_FUNCTIONS = "def f(x): x += 1\ndef g(x): x += 2\n"
DIFFERENT = {
    "the mode of a kernel's parameter": (
        HEAD + "A = pa.InOutArray\n@pa.kernel\ndef k(x: A) -> None:\n    pass\n" + PROGRAM,
        HEAD + "A = pa.InArray\n@pa.kernel\ndef k(x: A) -> None:\n    pass\n" + PROGRAM,
    ),
    "the mode of a callback's parameter": (
        HEAD + "A = pa.InOutArray\ndef k(x: A) -> None:\n    pass\n" + PROGRAM.replace("submit", "submit_sub"),
        HEAD + "A = pa.InArray\ndef k(x: A) -> None:\n    pass\n" + PROGRAM.replace("submit", "submit_sub"),
    ),
    "the shape of a program's parameter": (
        source("A = Annotated[pa.TensorRef, pa.InOut((4,))]\n").replace("Orchestrator, x: pa.InOutArray", "Orchestrator, x: A"),
        source("A = Annotated[pa.TensorRef, pa.InOut((5,))]\n").replace("Orchestrator, x: pa.InOutArray", "Orchestrator, x: A"),
    ),
    "which name is which function": (
        source(TWO_FUNCTIONS + "X, Y, Z = f, f, g\n", "X(x), Y(x), Z(x)"),
        source(TWO_FUNCTIONS + "X, Y, Z = f, g, g\n", "X(x), Y(x), Z(x)"),
    ),
    "which name is which kernel": (
        HEAD + TWO_FUNCTIONS.replace("(x)", "(x: pa.InOutArray)") + "k, other = pa.kernel(f), pa.kernel(g)\n" + PROGRAM,
        HEAD + TWO_FUNCTIONS.replace("(x)", "(x: pa.InOutArray)") + "other, k = pa.kernel(f), pa.kernel(g)\n" + PROGRAM,
    ),
    "what a method reads": tuple(source(f"S = {n}\nclass C:\n    def f(self, x): x *= S\n", "C().f(x)") for n in (1, 2)),
    "what a property reads": tuple(source(f"S = {n}\nclass C:\n    @property\n    def f(self): return S\n", "x += C().f") for n in (1, 2)),
    "a base class": tuple(source(f"class B:\n    S = {n}\nclass C(B):\n    pass\n", "x += C.S") for n in (1, 2)),
    "an attribute of a class": tuple(source(f"N = {n}\nclass C:\n    S = N\n", "x += C.S") for n in (1, 2)),
    "a kernel in a table": tuple(
        source("", f"x += {n}").replace(PROGRAM, "KERNELS = {'k': [k]}\n" + PROGRAM.replace("(k,", "(KERNELS['k'][0],")) for n in (1, 2)
    ),
    "a default": tuple(source(f"N = {n}\ndef f(x, n=N): x += n\n", "f(x)") for n in (1, 2)),
    "a default by keyword": tuple(source(f"N = {n}\ndef f(x, *, n=N): x += n\n", "f(x)") for n in (1, 2)),
    "a field of a dataclass": tuple(
        source(f"import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass C:\n    n: int\nV = C({n})\n", "x += V.n") for n in (1, 2)
    ),
    "a default of a dataclass": tuple(
        source(
            f"import dataclasses\ndef d(): return {n}\n@dataclasses.dataclass\nclass C:\n"
            "    n: int = dataclasses.field(default_factory=d)\n",
            "x += C().n",
        )
        for n in (1, 2)
    ),
    "a field of a named tuple": tuple(
        source(f"from typing import NamedTuple\nclass C(NamedTuple):\n    n: int\nV = C({n})\n", "x += V.n") for n in (1, 2)
    ),
    "a field of a struct": tuple(source(f"import msgspec\nclass C(msgspec.Struct):\n    n: int\nV = C({n})\n", "x += V.n") for n in (1, 2)),
    "a default of a struct": tuple(
        source(f"import msgspec\nN = {n}\nclass C(msgspec.Struct):\n    n: int = N\n", "x += C().n") for n in (1, 2)
    ),
    "a member of an enumeration": tuple(
        source(f"import enum\nN = {n}\nclass C(enum.Enum):\n    A = N\nV = C.A\n", "x += V.value") for n in (1, 2)
    ),
    "a cached function": tuple(source(f"import functools\n@functools.cache\ndef f(n): return n + {n}\n", "x += f(1)") for n in (1, 2)),
    "a partial": tuple(source(f"import functools\ndef f(n, x): x += n\nP = functools.partial(f, {n})\n", "P(x)") for n in (1, 2)),
    "the end of a long pattern": tuple(source(f"import re\nP = re.compile('a' * 300 + '{n}')\n", "P.match('a')") for n in (1, 2)),
    "the middle of a long array": tuple(source(f"T = np.zeros(5000)\nT[2500] = {n}\n", "x += T[0]") for n in (1, 2)),
    "the shape of an array": (source("T = np.zeros((2, 3))\n", "x += T[0, 0]"), source("T = np.zeros((3, 2))\n", "x += T[0, 0]")),
    "the byte order of a dtype": (source("D = np.dtype('<f4')\n", "x.view(D)"), source("D = np.dtype('>f4')\n", "x.view(D)")),
    "int and float": (source("V = 1\n", "x += V"), source("V = 1.0\n", "x += V")),
    "int and bool": (source("V = 1\n", "x += V"), source("V = True\n", "x += V")),
    "the sign of zero": (source("V = 0.0\n", "x += V"), source("V = -0.0\n", "x += V")),
    "the kind of a container": (source("V = (1, 2)\n", "x += V"), source("V = [1, 2]\n", "x += V")),
    "where a tuple ends": (source("V = ((1, 2), 3)\n", "x += V[0]"), source("V = ((1,), 2, 3)\n", "x += V[0]")),
    "the order of a dict": (source("V = {1: 2, 3: 4}\n", "x += len(V)"), source("V = {3: 4, 1: 2}\n", "x += len(V)")),
    "what an installed name stands for": (source("op = np.add\n", "op(x, x, out=x)"), source("op = np.multiply\n", "op(x, x, out=x)")),
    "which module a name stands for": (source("import math as m\n", "m.floor(1)"), source("import cmath as m\n", "m.floor(1)")),
    "a builtin that the module has its own of": (source("", "x += len(x)"), source("def len(x): return 7\n", "x += len(x)")),
    "how a table is filled": tuple(source(f"T = {{}}\nfor i in range(3):\n    T[i] = {n}\n", "x += T[0]") for n in (1, 2)),
    "what fills a table": tuple(source(f"T = []\ndef fill():\n    T.append({n})\nfill()\n", "x += T[0]") for n in (1, 2)),
    "what a table is made of": tuple(source(f"N = {n}\nA = [N]\nB = {{'a': A}}\n", "x += B['a'][0]") for n in (1, 2)),
    "a kernel in a table in a table": tuple(
        source("", f"x += {n}").replace(PROGRAM, "A = [k]\nB = {'a': A}\n" + PROGRAM.replace("(k,", "(B['a'][0],")) for n in (1, 2)
    ),
    "what a nested function reads": tuple(source(f"S = {n}\n", "f = lambda: [S for _ in x]; f()") for n in (1, 2)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_two_behaviours_never_share_a_digest(name: str, tmp_path: Path) -> None:
    one, two = DIFFERENT[name]
    assert one != two
    first, second = digest_in(tmp_path / "one", one), digest_in(tmp_path / "two", two)
    assert first != second
    assert digest_in(tmp_path / "again", one) == first  # nor does it come from the place, or from chance
    assert digest_in(tmp_path / "again", two) == second


def test_the_order_of_a_set_does_not_count(tmp_path: Path) -> None:
    texts = [source(f"V = frozenset(({order}))\n", "x += len(V)") for order in ("'a', 'b', 'c', 'd'", "'d', 'c', 'b', 'a'")]
    assert digest_in(tmp_path / "one", texts[0]) == digest_in(tmp_path / "two", texts[1])


def test_what_decides_nothing_is_not_in_the_digest(tmp_path: Path) -> None:
    body = "log.debug('x'); np.add(x, x, out=x)"
    base = source("import logging\nlog = logging.getLogger(__name__)\n", body)
    more = base.replace("log = ", "OTHER = object()\ndef unused(): return OTHER\n\n\nlog = ") + "\n# the end\n"
    assert digest_in(tmp_path / "a" / "b", base) == digest_in(tmp_path / "c", more)


def test_a_function_that_calls_itself(tmp_path: Path) -> None:
    text = "def f(n): return g(n - 1) if n else 0\ndef g(n): return f(n) + {}\n"
    one, two = (digest_in(tmp_path / str(n), source(text.format(n), "x += f(3)")) for n in (1, 2))
    assert one != two


CALLBACK = """
@pa.program
def program(orch: pa.Orchestrator, x: pa.InOutArray):
    def inner(x): pass
    orch.submit_sub(CALL, x)
"""
REFUSED = {
    "a lambda": (source("f = lambda x: x\n", "f(x)"), r"global 'f'|'f' is a lambda"),
    "a local function": (
        source("def make():\n    def f(x): pass\n    return f\nf = make()\n", "f(x)"),
        r"'f' is make\.<locals>\.f, defined inside",
    ),
    "a closure": (source("def make(n):\n    def f(x): x += n\n    return f\nf = make(1)\n", "f(x)"), "'f' is a closure over n"),
    "an instance": (source("class C: pass\nV = C()\n", "V"), r"global 'V' of kernel 'k' is a C, whose value cannot be told"),
    "a generator of numbers": (source("V = np.random.default_rng(0)\n", "V.random()"), "is a Generator, whose value"),
    "an array of objects": (source("V = np.array([None])\n", "V[0]"), "is a ndarray, whose value"),
    "a bound method": (source("V = [].append\n", "V(1)"), "is a builtin_function_or_method, whose value"),
    "a made ufunc": (source("def add(a): return a\nV = np.frompyfunc(add, 1, 1)\n", "V(x)"), "is a ufunc, whose value"),
    "a constant that contains itself": (source("L = []\nL.append(L)\nV = (L,)\n", "V[0]"), "contains itself"),
    "globals()": (source("", "globals()['S']"), r"kernel 'k' uses globals\(\), whose reach cannot be told"),
    "eval": (source("", "eval('S')"), r"uses eval\(\)"),
    "an assigned global": (source("N = 0\n", "global N; N = 1"), "kernel 'k' assigns the global 'N'"),
    "the place of the file": (source("", "__file__"), "reads __file__, which differs from place to place"),
    "a lambda as a callback": (HEAD + CALLBACK.replace("CALL", "lambda x: 1"), "has a callback inside it, a lambda; make it a function of"),
    "a nested callback": (HEAD + CALLBACK.replace("CALL", "inner"), "has a callback inside it, 'inner'; make it a function of the module"),
    "a nested kernel": (
        HEAD + CALLBACK.replace("def inner(x):", "@pa.kernel\n    def inner(x: pa.InArray):").replace("submit_sub(CALL", "submit(inner"),
        "makes a kernel inside it; make it a kernel of the module",
    ),
    "a late import": (source("", "from . import other"), r"kernel 'k' imports '\.' while it runs; move the import to the top"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_digest_is_named(name: str, tmp_path: Path) -> None:
    text, match = REFUSED[name]
    with pytest.raises(pa.ProgramError, match=match) as caught:
        digest_in(tmp_path, text)
    assert str(caught.value).startswith("program 'program' has no digest: ")
    assert "; " in str(caught.value)  # and how to mend it


def test_programs_that_stand_in_no_file() -> None:
    spaces: list[dict[str, object]] = [{"__name__": "__main__"}, {"__name__": "no_such_module"}]
    for space in spaces:
        exec(compile(source(""), "<stdin>", "exec"), space)
        program = space["program"]
        assert isinstance(program, pa.Program)
        with pytest.raises(pa.ProgramError, match="no module that can be imported"):
            _ = program.compile().digest


def test_a_program_inside_a_function() -> None:
    @pa.program
    def local(orch: pa.Orchestrator, x: pa.InOutArray) -> None:
        pass

    with pytest.raises(pa.ProgramError, match=r"program 'local' is .*<locals>\.local, defined inside another function"):
        _ = local.compile().digest
    with pytest.raises(pa.ProgramError, match="defined inside another function"):
        local.compile().save("nowhere")


def test_a_file_that_changed_after_its_import(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(source("", "x += 1"))
    program = pa.load_program(file)
    before = program.compile().digest
    file.write_text(source("", "x += 2"))
    with pytest.raises(pa.ProgramError, match=r"kernel 'k' is not what model\.py says now; the file was changed"):
        _ = program.compile().digest
    file.write_text("def")
    with pytest.raises(pa.ProgramError, match="has no source"):
        _ = program.compile().digest
    file.unlink()
    with pytest.raises(pa.ProgramError, match="has no source"):
        _ = program.compile().digest
    file.write_text(source("", "x += 1"))
    assert program.compile().digest == before


def test_functions_of_other_files_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count as if they stood in the same file: by their source, and by what they read of their own module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = set()
    for number, constant in enumerate((1, 2, 1)):
        helper = f"a_helper_of_the_digest_{number}"
        (tmp_path / f"{helper}.py").write_text(f"import {helper} as me\nS = {constant}\ndef scale(x): return x * me.S\n")
        for way, body in ((f"import {helper} as h\n", "h.scale(x)"), (f"from {helper} import scale\n", "scale(x)")):
            digests.add((constant, body, digest_in(tmp_path / "it", source(way, body))))
        monkeypatch.delitem(sys.modules, helper)
    assert len({digest for _, _, digest in digests}) == len({key[:2] for key in digests}) == 4
    helper = "a_helper_of_the_digest_0"
    with pytest.raises(pa.ProgramError, match="uses the module 'h' itself"):
        digest_in(tmp_path / "it", source(f"import {helper} as h\n", "getattr(h, 'S')"))


def test_a_program_in_this_file_of_rewritten_assertions() -> None:
    digest: str = here.compile().digest
    assert len(digest) == 64
    assert digest == here.compile(pa.DistributedConfig()).digest
    assert digest != here.compile(pa.DistributedConfig(memory_bytes=5)).digest


@pa.kernel
def asserting(x: pa.InOutArray) -> None:
    assert x.size, "pytest rewrites this"
    x += 1


@pa.program
def here(orch: pa.Orchestrator, x: pa.InOutArray) -> None:
    orch.submit(asserting, x)


async def test_what_a_run_leaves_in_a_list_does_not_count(tmp_path: Path) -> None:
    """The digest is that of another process, which has run nothing; what was saved after a run can be read."""
    path = tmp_path / "noting.py"
    path.write_text(
        HEAD + "SEEN = []\nLATER = {'seen': SEEN}\n\n\ndef note(x: pa.InArray):\n    SEEN.append(x.sum())\n    LATER['again'] = LATER\n\n\n"
        "@pa.program\ndef program(orch: pa.Orchestrator, x: pa.InOutArray):\n    orch.submit_sub(note, x)\n"
    )
    before = pa.load_program(path).compile().digest
    ran = pa.load_program(path).compile()
    await ran(np.ones(3))
    assert ran.program.function.__globals__["SEEN"] == [3]
    ran.save(tmp_path / "saved")
    assert ran.digest == before == pa.DistributedCompiledProgram.from_dir(tmp_path / "saved").digest

"""README, ARCHITECTURE and the examples say what is true: they are run, and held against the code."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import typing
from pathlib import Path

import msgspec
import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors import messages
from pypto_actors.lifecycle import TABLE, RunEvent, RunState

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
HOUSE = (ROOT / "ARCHITECTURE.md").read_text()

EXAMPLES = {
    "quickstart": "[1024. 1024. 1024. 1024.]",
    "multi_program_kv_cache": "token 3: every logit is 9, True\n"
    "65536 bytes on the device while the cache lives there\n0 bytes after it is freed",
    "cancellation": "the waiter left: True; the dispatch is running\ncancel what runs: False; cancel what is queued: True\n"
    "the owner was cancelled: True\nx = [11, 11, 11, 11]: the two that ran, and nothing else",
    "deadline_priority": "the device saw [3, 1, 2, 5]",
    "phase_fair": "(prefills before the first decode: 2)\n  Arrival: pppppppppppppppppppppppp",
    "testing_your_code": "virtual time: 60 polls in 3600 s\nseeded schedules, who was accepted first: first second\n"
    "a deadlock is found at once: True",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def without_blank_lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_should(name: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_module(f"examples.{name}", run_name="__main__")
    assert EXAMPLES[name] in out.getvalue()


def test_the_readme_shows_the_quickstart_and_its_output() -> None:
    (code,) = blocks(README, "python")
    assert without_blank_lines(code) == without_blank_lines((ROOT / "examples" / "quickstart.py").read_text())
    assert len(without_blank_lines(code)) <= 15
    assert README[: README.index(code)].count("\n") + code.count("\n") < 50
    assert blocks(README, "text")[0].strip() == EXAMPLES["quickstart"]


def test_the_readmes_commands_are_one_line_each() -> None:
    run, test = blocks(README, "sh")
    assert run.strip().count("\n") == test.strip().count("\n") == 0
    assert "examples.qwen3.generate" in run
    assert "pytest" in test


async def test_the_error_in_the_readme_is_real() -> None:
    @pa.kernel
    def scale(x: pa.InOutArray, factor: float) -> None:
        np.multiply(x, factor, out=x)

    @pa.program
    def grow(orch: pa.Orchestrator, x: pa.InOutArray, factor: float) -> None:
        orch.submit(scale, x, factor)

    shown = blocks(README, "text")[1].strip()
    async with pa.DistributedWorker(grow, backend="inline") as worker:
        with pytest.raises(pa.ArgumentTypeError) as caught:
            await worker.run(grow, [1.0], 2.0)
    assert shown == f"ArgumentTypeError: {caught.value}"


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


def test_the_table_of_messages_is_complete() -> None:
    to = {"coordinator": messages.ToCoordinator, "device": messages.ToDevice, "host": messages.ToHost}
    expected = {(kind.__name__, room) for room, kinds in to.items() for kind in typing.get_args(kinds) or (messages.Call,)}
    assert set(re.findall(r"^\| `(\w+)` \| (\w+) \|", HOUSE, re.MULTILINE)) == expected
    every = {
        kind.__name__
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, messages.Message) and kind not in (messages.Message, messages.Request)
    }
    assert {name for name, _ in expected} == every
    assert all(issubclass(getattr(messages, name), msgspec.Struct) for name in every)


def test_the_table_of_states_is_the_codes() -> None:
    rows = re.findall(
        r"^\| (\w+) \|(.*)\|$", HOUSE[HOUSE.index("## The life of a dispatch") : HOUSE.index("## What holds always")], re.MULTILINE
    )
    head = [event.name.lower().replace("_", " ") for event in RunEvent]
    assert [cell.strip() for cell in rows[0][1].split("|")] == head
    shown = {state: [cell.strip() for cell in cells.split("|")] for state, cells in rows[1:]}
    for state in RunState:
        ways = TABLE.get(state, {})
        assert shown[state.value] == [ways[event].value if event in ways else "" for event in RunEvent], state


def test_every_module_has_a_room() -> None:
    table = HOUSE[HOUSE.index("## Rooms") : HOUSE.index("## Messages")]
    for path in (ROOT / "pypto_actors").glob("*.py"):
        if path.stem not in ("__init__", "events", "config", "tensors", "mailbox"):
            assert f"`{path.stem}`" in table, f"{path.name} is in no room of ARCHITECTURE.md"

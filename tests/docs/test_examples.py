"""The examples print what they say. All of them are here: a new one needs its output."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys

import pytest

from tests.docs.documents import ROOT

PRINTED = {
    "quickstart": """\
[1234 1234 1234]
""",
    "multi_program_kv_cache": """\
the cache takes 65536 bytes of device 0
token 0: all logits are 6
token 1: all logits are 7
token 2: all logits are 8
token 3: all logits are 9
freed, it takes 0
""",
    "cancellation": """\
the handles: running, queued
a waiter left: True, its dispatch is running
cancel what runs: False; cancel what is queued: True
run, cancelled while queued, raised at once: True
run, cancelled while its kernel runs, has raised: False
the kernel has ended, and now it has: True
x is [11 11]: those that ran, and nothing else
""",
    "deadline_priority": """\
after 30 s: expired, queued
the device saw [3, 1, 2, 5]
DeadlineExceededError: dispatch 5 of program 'request' did not start before its deadline: 2.000000 is 0.000000 s ago
accepted 5, done 4, expired 1
""",
    "phase_fair": """\
PhaseFair ppDppDppDppDppD  prefills before the first decode: 2
Arrival   ppppppppppDDDDD  prefills before the first decode: 10
""",
    "virtual_time_test": """\
virtual time: 1073741824 after 1800 s
in asyncio's own order, the answers are right: True
a schedule in which they are wrong was found, and its seed shows it again: True
a deadlock, at once: forgotten Queue.get
""",
}


@pytest.mark.parametrize("name", PRINTED)
def test_each_prints_what_it_should(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert out.getvalue() == PRINTED[name]


def test_all_are_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"} == set(PRINTED)


def test_the_example_of_a_test_is_run_by_pytest_on_each_of_its_loops() -> None:
    file = "examples/virtual_time_test.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "examples.virtual_time_test", "-v", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for factory in ("virtual", "seed-0", "seed-1", "seed-2"):
        assert f"[{factory}] PASSED" in done.stdout

"""The PNG: that all there is to see is drawn, in the right place, and that it needs matplotlib only when asked for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from pypto_actors import tracing
from pypto_actors.tracing import Memory, Span, Timeline, chart
from pypto_actors.tracing.chart_lanes import COLOURS
from tests.tracing.support import adder, failing, virtually, worker, zeros
from tests.tracing.test_ends import everything


def drawn(timeline: Timeline) -> list[Any]:
    """The panels of one worker, as matplotlib has them."""
    section = chart.Section(timeline)
    figure = chart.require()(figsize=(chart.WIDTH, section.height))
    section.draw(figure)
    figure.canvas.draw()
    panels: list[Any] = figure.axes
    return panels


def legend(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


def bars(panel: Any, colour: str) -> list[tuple[float, float, float]]:
    """(start, end, row) of all bars of a colour, by time."""
    from matplotlib.colors import to_hex

    found = []
    for collection in panel.collections:
        faces = collection.get_facecolors() if hasattr(collection, "get_facecolors") else []
        if len(faces) and to_hex(faces[0]) == colour and hasattr(collection, "get_verts") is False:
            for path in collection.get_paths():
                box = path.get_extents()
                found.append((box.x0, box.x1, round((box.y0 + box.y1) / 2)))
    return sorted(found)


def timeline_of(*spans: Span, devices: int = 2) -> Timeline:
    return Timeline("made", 0.0, 100.0, devices, spans, (), (), (), (), ())


def kernel(device: int, start: float, finish: float, program: str = "p", **more: Any) -> Span:
    return Span("kernel", device, 1, 0, program, start, finish, start, program, **more)


def test_a_bar_stands_in_the_row_of_its_device_for_as_long_as_it_took() -> None:
    lanes, *_ = drawn(timeline_of(kernel(0, 10.0, 20.0), kernel(1, 15.0, 40.0), kernel(1, 50.0, 110.0, "q")))
    assert [tick.get_text() for tick in lanes.get_yticklabels()] == ["device 0", "device 1"]
    assert bars(lanes, COLOURS[0]) == [(0.0, 10.0, 0), (5.0, 30.0, 1)]
    assert bars(lanes, COLOURS[1]) == [(40.0, 100.0, 1)]
    assert legend(lanes) == ["p", "q"]


def test_what_is_short_can_still_be_seen() -> None:
    lanes, *_ = drawn(timeline_of(kernel(0, 0.0, 1e-9), kernel(0, 10.0, 1000.0)))
    (start, end, _), *_ = bars(lanes, COLOURS[0])
    assert end - start >= 1000 / 2000


def test_everything_that_happens_has_its_sign() -> None:
    lanes, memory, queue = drawn(tracing.timeline(everything()))
    programs, signs = {"gang", "called", "failing", "scratching", "add"}, {"host callback", "copy", "device down", "gang", "failed"}
    assert set(legend(lanes)[:5]) == programs
    assert set(legend(lanes)[5:]) == signs  # a program may be called like a sign
    assert [tick.get_text() for tick in lanes.get_yticklabels()] == ["host", "device 0", "device 1", "device 2"]
    assert [text.split(",")[0] for text in legend(memory)] == ["device 0", "device 1", "device 2"]
    assert [text.split(",")[0] for text in legend(queue)] == ["queued", "running"]


def test_deaths_and_what_is_unfinished_have_signs() -> None:
    spans = kernel(0, 0.0, 1.0, outcome="died"), kernel(1, 0.0, 2.0, outcome="unfinished")
    lanes, *_ = drawn(timeline_of(*spans))
    assert legend(lanes) == ["p", "died with its device", "unfinished"]


def test_what_never_ran_is_marked_in_the_queue() -> None:
    trace = tracing.Recorder()

    async def main() -> None:
        programs = failing(), adder()
        async with worker(*programs, backend="inline", trace=trace) as w:
            await w.pause("keep")
            bad = w.submit_nowait(programs[0], zeros())
            others = [w.submit_nowait(programs[1], zeros(), after=[bad]), w.submit_nowait(programs[1], zeros(), deadline=1.0)]
            cancelled = [w.submit_nowait(programs[1], zeros()) for _ in range(2)]
            assert all(handle.cancel() for handle in cancelled)
            await asyncio.sleep(2)
            await w.resume()
            await asyncio.gather(bad, *others, return_exceptions=True)

    virtually(main)
    queue = drawn(trace.timeline())[-1]
    assert legend(queue)[2:] == ["cancelled before it ran, 2", "expired before it ran, 1", "failed before it ran, 1"]


@pytest.mark.parametrize(("length", "unit"), [(100.0, "s"), (0.2, "ms"), (3e-4, "µs"), (1e-7, "µs")])
def test_the_axis_is_in_a_unit_that_fits(length: float, unit: str) -> None:
    *_, queue = drawn(timeline_of(kernel(0, 5.0, 5.0 + length)))
    assert queue.get_xlabel() == f"time, {unit}"


def test_many_programs_devices_and_workers_are_still_a_picture() -> None:
    spans = [kernel(number % 300, number / 10, number / 10 + 1, f"program {number % 30}") for number in range(1000)]
    lanes, *_ = drawn(timeline_of(*spans, devices=300))
    assert legend(lanes) == [*(f"program {number}" for number in range(10)), "other programs"]
    assert len(lanes.get_yticklabels()) <= 160
    one = timeline_of(*spans[:10])
    assert chart.png([one, one, one]).startswith(b"\x89PNG")


def test_the_memory_of_many_devices_is_drawn_as_a_sum() -> None:
    """Given back one after another, at the times at which others take theirs."""
    steps = [Memory(float(at), device, 1024 * (at + 1) if at < 5 else 0) for at in range(6) for device in range(9)]
    timeline = Timeline("made", 0.0, 6.0, 9, (kernel(0, 0.0, 6.0),), (), (), (), tuple(steps), ())
    _, memory, _ = drawn(timeline)
    assert legend(memory) == ["all devices, peak 45 KiB"]
    (line,) = memory.get_lines()
    assert line.get_ydata()[-1] == 0


def test_memory_is_shown_for_as_long_as_anything_ran() -> None:
    steps = Memory(1.0, 0, 1024), Memory(50.0, 0, 1 << 30)
    _, memory, _ = drawn(Timeline("made", 0.0, 60.0, 1, (kernel(0, 0.0, 6.0),), (), (), (), steps, ()))
    assert legend(memory) == ["device 0, peak 1 KiB"]


def test_names_of_any_kind_are_shown_as_they_are() -> None:
    names = [r"cost $x^$ or \\$", "_hidden", "預填", "a\nb", ""]
    spans = [kernel(0, float(number), number + 1.0, name) for number, name in enumerate(names)]
    timeline = timeline_of(*spans)
    assert len(legend(drawn(timeline_of(*spans[:2]))[0])) == 2
    assert chart.png([timeline]).startswith(b"\x89PNG")


def test_nothing_is_a_picture_too() -> None:
    assert chart.png([]).startswith(b"\x89PNG")
    assert chart.png([tracing.timeline([])]).startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pypto_actors\[bench\]'"):
        tracing.Recorder().plot(tmp_path / "run.png")
    with pytest.raises(ImportError, match=r"pypto_actors\[bench\]"), tracing.record(plot=tmp_path / "run.png"):
        pytest.fail("the block ran")


def test_matplotlib_is_loaded_only_for_a_plot_and_leaves_pyplot_alone() -> None:
    code = """
import sys
from pypto_actors import tracing
from pypto_actors.tracing import chart
assert not any(name.startswith("matplotlib") for name in sys.modules)
chart.png([])
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

"""The timeline as a PNG: a row for each device, and below it memory and queue over the same time. matplotlib is loaded only here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pypto_actors.tracing.chart_lanes import COLOURS, EDGE, FAULT, LEGEND, Lanes, TimeAxis, plain
from pypto_actors.tracing.labels import amount
from pypto_actors.tracing.timeline import HOST, Timeline

WIDTH, DPI = 14.0, 150
MEMORY, QUEUE, AROUND = 1.3, 1.1, 0.9  # heights, inches
GRID = "#e4e4e4"
MOST_LINES = 8  # devices whose memory is drawn one by one


def require() -> Any:
    """matplotlib's `Figure`. Raises an `ImportError` that says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'pypto_actors[bench]'") from error
    return Figure


def png(timelines: Sequence[Timeline]) -> bytes:
    """A picture of all workers, one below the other, each on a time axis of its own."""
    figure_of = require()
    sections = [Section(timeline) for timeline in timelines] or [Section(Timeline("nothing recorded", 0, 0, 0, (), (), (), (), (), ()))]
    heights = [section.height for section in sections]
    figure = figure_of(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
    parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, section in zip(parts, sections, strict=True):
        section.draw(part)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)  # a name may be in any script
        figure.savefig(out, format="png")
    return out.getvalue()


class Section:
    """One worker's panels: its devices, the memory that they hold (if they ever hold any), its queue."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._axis = TimeAxis(timeline)
        self._lanes = Lanes(timeline, self._axis)
        self._holds = any(memory.nbytes for memory in timeline.memory)
        self._heights = [self._lanes.height, *([MEMORY] if self._holds else []), QUEUE]
        self.height = sum(self._heights) + AROUND

    def draw(self, figure: Any) -> None:
        lanes, *middle, queue = panels = figure.subplots(len(self._heights), 1, sharex=True, height_ratios=self._heights)
        lanes.set_title(plain(self._title()), loc="left", fontsize="large", fontweight="bold")
        self._lanes.draw(lanes)
        for panel in middle:
            self._draw_memory(panel)
        self._draw_queue(queue)
        queue.set_xlabel(f"time, {self._axis.unit}")
        queue.set_xlim(-0.01 * self._axis.length, 1.01 * self._axis.length)
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(axis="x", color=GRID, linewidth=0.6)
            panel.set_axisbelow(True)
        figure.align_ylabels(panels)

    def _title(self) -> str:
        runs, devices = len({span.run for span in self._timeline.kernels}), len(self._lanes.ranks)
        return f"{self._timeline.name}: {_count(runs, 'dispatch', 'dispatches')} on {_count(devices, 'device', 'devices')}"

    def _draw_memory(self, panel: Any) -> None:
        axis = self._axis
        steps: dict[int, list[tuple[float, int]]] = {}
        for memory in self._timeline.memory:
            if memory.at <= axis.end:  # what is given back afterwards would only squeeze what is to be seen
                steps.setdefault(memory.device, [(axis.start, 0)]).append((max(memory.at, axis.start), memory.nbytes))
        if len(steps) > MOST_LINES:
            steps = {HOST: _summed(steps)}
        most = 0
        for device, points in sorted(steps.items()):
            xs, ys = [axis.x(at) for at, _ in points] + [axis.length], [nbytes for _, nbytes in points] + [points[-1][1]]
            most = max(most, *ys)
            label = f"{'all devices' if device == HOST else f'device {device}'}, peak {amount(max(ys))}"
            panel.plot(xs, ys, drawstyle="steps-post", linewidth=1.3, label=label, alpha=0.85)
        panel.set_ylabel("memory")
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter(lambda value, _: amount(value))
        panel.set_yticks(range(0, most + 1, 1 << max(0, most.bit_length() - 2)))  # powers of two: whole KiB and MiB
        if steps:
            panel.legend(**LEGEND)

    def _draw_queue(self, panel: Any) -> None:
        axis, load = self._axis, self._timeline.load
        xs = [min(max(0.0, axis.x(each.at)), axis.length) for each in load] + [axis.length]
        for name, colour, values in (
            ("queued", COLOURS[1], [each.queued for each in load]),
            ("running", COLOURS[0], [each.running for each in load]),
        ):
            ys = [*values, values[-1] if values else 0]
            panel.fill_between(xs, ys, step="post", color=colour, alpha=0.35, linewidth=0)
            panel.plot(xs, ys, drawstyle="steps-post", color=colour, linewidth=1.2, label=f"{name}, most {max(ys)}")
        for outcome, marker, colour in (("cancelled", "v", EDGE), ("expired", "v", FAULT), ("failed", "x", FAULT)):
            ends = [axis.x(wait.finish) for wait in self._timeline.waits if wait.outcome == outcome]
            if ends:
                label = f"{outcome} before it ran, {len(ends)}"
                panel.scatter(ends, [0.0] * len(ends), marker=marker, color=colour, s=30, zorder=4, clip_on=False, label=label)
        panel.set_ylabel("dispatches")
        panel.set_ylim(bottom=0)
        panel.locator_params(axis="y", nbins=4, integer=True)
        panel.legend(**LEGEND)


def _summed(steps: Mapping[int, Sequence[tuple[float, int]]]) -> list[tuple[float, int]]:
    """The memory of all devices together."""
    now = dict.fromkeys(steps, 0)
    total, points = 0, []
    for at, device, nbytes in sorted((at, device, nbytes) for device, known in steps.items() for at, nbytes in known):
        total += nbytes - now[device]
        now[device] = nbytes
        points.append((at, total))
    return points


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"

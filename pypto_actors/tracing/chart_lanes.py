"""The upper panel of the PNG: a row for each device, with what it did, when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pypto_actors.tracing.timeline import HOST, Span, Timeline, Wait

COLOURS = ("#4477aa", "#ee8866", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#bb5566", "#44bb99", "#997700", "#77aadd")
OTHERS = "#999999"  # programs beyond the palette
COPY, CALLBACK, EDGE, FAULT = "#777777", "#ddaa33", "#222222", "#cc3311"
DOWN = {"facecolors": "#dddddd", "hatch": "////", "edgecolor": "#888888", "linewidth": 0.0, "zorder": 1}
BAR, COPY_BAR, TOP = (-0.40, 0.56), (0.22, 0.16), (-0.40, 0.07)  # (from, height) in a row, downwards
ROW, FURTHER_ROW, MOST_HEIGHT = 0.5, 0.25, 30.0  # inches; rows get lower where there are more than `FEW`
FEW = 16
NARROWEST = 1 / 1800  # of the time shown: what is shorter is drawn as wide as this, about a pixel
ROOMY = 1 / 250  # of the time shown: what is longer gets an edge of its own
MANY_GANGS = 150  # from here on their lines are faint
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
LEGEND = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": "small", "frameon": False, "handlelength": 1.4}


class TimeAxis:
    """From loop time to the axis that all panels share: from the first thing that took time to the end of the last, in a unit that fits."""

    def __init__(self, timeline: Timeline) -> None:
        shown: list[Span | Wait] = [*timeline.spans, *timeline.waits]
        self.start = min((each.start for each in shown), default=timeline.start)
        self.end = max((each.finish for each in shown), default=timeline.finish)
        self.seconds = max(self.end - self.start, 1e-9)
        self._unit, self.unit = next((unit for unit in UNITS if self.seconds >= unit[0]), UNITS[-1])
        self.length = self.seconds / self._unit

    def x(self, time: float) -> float:
        return (time - self.start) / self._unit

    def bars(self, spans: Sequence[Span]) -> list[tuple[float, float]]:
        """(start, width) of each, wide enough to be seen."""
        least = NARROWEST * self.seconds
        return [(self.x(span.start), max(span.seconds, least) / self._unit) for span in spans]

    def parted(self, spans: Sequence[Span]) -> tuple[list[Span], list[Span]]:
        """The short ones, and those that have room for an edge."""
        short = [span for span in spans if span.seconds < ROOMY * self.seconds]
        return short, [span for span in spans if span.seconds >= ROOMY * self.seconds]


class Lanes:
    """The rows: the host, if callbacks ran there, and each device by rank."""

    def __init__(self, timeline: Timeline, axis: TimeAxis) -> None:
        self._axis = axis
        self._spans = timeline.spans
        self.ranks = list(range(timeline.devices)) or sorted({span.device for span in timeline.spans} - {HOST})
        self._rows = [HOST, *self.ranks] if any(span.device == HOST for span in timeline.spans) else self.ranks
        self._row_of = {device: row for row, device in enumerate(self._rows)}
        programs = {program_of(span): None for span in sorted(timeline.kernels, key=lambda span: span.start)}
        self._colours = {name: COLOURS[number] if number < len(COLOURS) else OTHERS for number, name in enumerate(programs)}
        few = min(max(1, len(self._rows)), FEW)
        self.height = min(0.4 + few * ROW + max(0, len(self._rows) - FEW) * FURTHER_ROW, MOST_HEIGHT)
        self._programs: dict[str, Any] = {}  # what the legend shows
        self._signs: dict[str, Any] = {}

    def draw(self, panel: Any) -> None:
        for row in range(0, len(self._rows), 2):
            panel.axhspan(row - 0.5, row + 0.5, color="#f7f7f7", linewidth=0, zorder=0)
        self._draw_kernels(panel)
        for (device, kind), spans in self._grouped("callback", "copy", "down").items():
            if kind == "callback":
                self._signs["host callback"] = self._bars(panel, spans, device, BAR, CALLBACK)
            elif kind == "copy":
                self._signs["copy"] = self._bars(panel, spans, device, COPY_BAR, COPY)
            else:
                self._signs["device down"] = panel.broken_barh(self._axis.bars(spans), self._place(device, BAR), **DOWN)
        self._draw_gangs(panel)
        self._draw_faults(panel)
        panel.set_ylim(max(1, len(self._rows)) - 0.5, -0.5)
        step = max(1, round(len(self._rows) / (MOST_HEIGHT / 0.2)))
        names = ["host" if device == HOST else f"device {device}" for device in self._rows]
        panel.set_yticks(range(0, len(self._rows), step), names[::step])
        panel.tick_params(axis="y", length=0)
        panel.tick_params(axis="x", labelbottom=False)
        entries = [*self._programs.items(), *self._signs.items()]
        if entries:
            panel.legend([handle for _, handle in entries], [plain(name) for name, _ in entries], **LEGEND)

    def _grouped(self, *kinds: str) -> dict[tuple[int, str], list[Span]]:
        groups: dict[tuple[int, str], list[Span]] = {}
        for span in self._spans:
            if span.kind in kinds and span.device in self._row_of:
                groups.setdefault((span.device, span.kind), []).append(span)
        return groups

    def _place(self, device: int, band: tuple[float, float]) -> tuple[float, float]:
        return self._row_of[device] + band[0], band[1]

    def _bars(self, panel: Any, spans: Sequence[Span], device: int, band: tuple[float, float], colour: str) -> Any:
        """Two collections, and so few for however many spans."""
        short, long = self._axis.parted(spans)
        drawn = panel.broken_barh(self._axis.bars(short), self._place(device, band), facecolors=colour, linewidth=0, zorder=2)
        if long:
            style = {"facecolors": colour, "edgecolor": "white", "linewidth": 0.5, "zorder": 2}
            drawn = panel.broken_barh(self._axis.bars(long), self._place(device, band), **style)
        return drawn

    def _draw_kernels(self, panel: Any) -> None:
        groups: dict[str, dict[int, list[Span]]] = {name: {} for name in self._colours}
        for (device, _), spans in self._grouped("kernel").items():
            for span in spans:
                groups[program_of(span)].setdefault(device, []).append(span)
        for name, devices in groups.items():
            colour = self._colours[name]
            for device, spans in devices.items():
                self._programs["other programs" if colour == OTHERS else name] = self._bars(panel, spans, device, BAR, colour)

    def _draw_gangs(self, panel: Any) -> None:
        """Members have a dark edge (short ones a dark top), and a line where the last of them has come: the others waited for it."""
        gangs: dict[tuple[int, int], list[Span]] = {}
        members: dict[int, list[Span]] = {}
        for span in self._spans:
            if span.gang and span.device in self._row_of:
                gangs.setdefault((span.run, span.wave), []).append(span)
                members.setdefault(span.device, []).append(span)
        for device, spans in members.items():
            short, long = self._axis.parted(spans)
            panel.broken_barh(self._axis.bars(short), self._place(device, TOP), facecolors=EDGE, linewidth=0, zorder=3)
            style = {"facecolors": "none", "edgecolor": EDGE, "linewidth": 0.9, "zorder": 3}
            self._signs["gang"] = panel.broken_barh(self._axis.bars(long), self._place(device, BAR), **style)
        width, alpha = (0.9, 1.0) if len(gangs) < MANY_GANGS else (0.5, 0.35)
        for spans in gangs.values():
            rows = [self._row_of[span.device] for span in spans]
            if len(rows) > 1:
                xs = [self._axis.x(max(span.start for span in spans))] * 2
                panel.plot(xs, [min(rows) - 0.40, max(rows) + 0.16], color=EDGE, linewidth=width, alpha=alpha, zorder=3)

    def _draw_faults(self, panel: Any) -> None:
        signs = (("failed", "failed", "x", FAULT), ("died", "died with its device", "X", FAULT), ("unfinished", "unfinished", ">", EDGE))
        for outcome, name, marker, colour in signs:
            spans = [span for span in self._spans if span.outcome == outcome and span.device in self._row_of]
            if spans:
                xs, ys = [self._axis.x(span.finish) for span in spans], [self._row_of[span.device] - 0.12 for span in spans]
                self._signs[name] = panel.scatter(xs, ys, marker=marker, color=colour, s=36, linewidth=1.6, zorder=4)


def program_of(span: Span) -> str:
    """What kernels of one colour have in common: their program and its stage."""
    return f"{span.program} ({span.stage})" if span.stage and span.stage != span.program else span.program


def plain(name: str) -> str:
    """A name as matplotlib shows it: `$` begins no formula, and a leading `_` hides nothing (before matplotlib 3.10 it did)."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name

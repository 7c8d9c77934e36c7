"""What all benchmarks share: paired rounds, medians, the table, and the options `--quick`, `--json`, `--plot` and `--trace`.

Machines drift, by a factor of two within minutes and by more between two runs, so no time of one run is ever compared
with a time of another. Each round measures every side once, in an order drawn anew (seeded), and gives one ratio of
what stood next to each other; what is reported is the median of the rounds' ratios. The first rounds are thrown away.

A trace costs time, so nothing is measured while one is recorded: `--trace` runs the benchmark once more afterwards, briefly, and
throws the times of that pass away.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks import targets
from pypto_actors import tracing
from pypto_actors.tracing.files import write

SEED = 0
Side: TypeAlias = Callable[[], Awaitable[float]]  # measures one block, gives seconds for each operation
Rounds: TypeAlias = Mapping[str, Sequence[float]]
_RECORDER: ContextVar[tracing.Recorder | None] = ContextVar("_RECORDER", default=None)


@dataclass(frozen=True)
class Answer:
    """What one question came to: `ratios` has one entry a round; below `must` (and `aim`) is good, `None` is no demand.

    `notes` are figures around it, such as medians of the sides in µs, by name. Where `more` is true, above is good.
    """

    question: str
    against: str
    unit: str
    must: float | None
    aim: float | None
    ratios: Sequence[float]
    how: str
    notes: Mapping[str, float] = field(default_factory=dict)
    more: bool = False

    @property
    def reached(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """What half of the rounds lie between."""
        if len(self.ratios) < 2:
            return self.reached, self.reached
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def verdict(self) -> str:
        """Did it reach what is asked?"""
        if self.must is None:
            return ""
        if self.aim is not None and self._reaches(self.aim):
            return "aim"
        return "must" if self._reaches(self.must) else "missed"

    def _reaches(self, asked: float) -> bool:
        return self.reached >= asked if self.more else self.reached <= asked


async def paired(rounds: int, sides: Mapping[str, Side], *, warm_up: int = 2, seed: int = SEED) -> dict[str, list[float]]:
    """Measure every side once a round, in an order drawn anew for each; the first `warm_up` rounds are thrown away."""
    draw = random.Random(seed)
    names = list(sides)
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        draw.shuffle(names)
        for name in names:
            seconds = await sides[name]()
            if number >= warm_up:
                results[name].append(seconds)
    return results


def ratios(rounds: Rounds, subject: str, rival: str) -> list[float]:
    """Of each round, subject to rival."""
    return [mine / theirs for mine, theirs in zip(rounds[subject], rounds[rival], strict=True)]


def microseconds(rounds: Rounds) -> dict[str, float]:
    """The median of each side, µs."""
    return {f"{name}, µs": 1e6 * statistics.median(times) for name, times in rounds.items()}


def hook(name: str) -> tracing.Recorder | None:
    """What each worker of a benchmark takes as `trace=`: None, but in the extra pass of `--trace`."""
    recorder = _RECORDER.get()
    return None if recorder is None else recorder.worker(name)


def trace(path: Path, run: Callable[[], object]) -> None:
    """Run something with its workers traced, and save the trace. What it measures counts for nothing."""
    with tracing.record(path) as recorder:
        token = _RECORDER.set(recorder)
        try:
            run()
        finally:
            _RECORDER.reset(token)
    print(f"{path}: the trace of a further, short pass; the figures above were measured without one")


# ---------------------------------------------------------------------------------------------- printing


def number(value: float | None, unit: str) -> str:
    """A figure as the table has it."""
    if value is None:
        return "–"
    text = f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"
    return f"{text} {unit}".rstrip()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def row_of(answer: Answer) -> tuple[str, str, str, str, str]:
    """Question, asked, reached, verdict, how measured."""
    low, high = (number(value, "") for value in answer.quartiles)
    asked = "–" if answer.must is None else f"{number(answer.must, '')} / {number(answer.aim, '')}"
    return answer.question, asked, f"{number(answer.reached, answer.unit)} ({low}–{high})", answer.verdict or "–", answer.how


HEADER = ("question", "must / aim", "reached (quartiles)", "", "how measured")


def describe(answer: Answer) -> str:
    """Some lines on one answer: the ratio first."""
    low, high = answer.quartiles
    asked = f"; must {number(answer.must, '')}, aim {number(answer.aim, '')}: {answer.verdict}" if answer.must is not None else ""
    notes = "".join(f"\n    {name}: {value:.4g}" for name, value in answer.notes.items())
    return (
        f"{answer.question}: {number(answer.reached, answer.unit)} (against: {answer.against}){asked}"
        f"\n    {len(answer.ratios)} rounds, half of them within {low:.3f}–{high:.3f}; {answer.how}{notes}"
    )


# ---------------------------------------------------------------------------------------------- files


def save(path: Path, data: object) -> None:
    """Write it as JSON. Raises `TraceFileError`."""
    write(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode(), "answers")


def document(name: str, question: str, answers: Sequence[Answer]) -> dict[str, object]:
    """What `--json` writes."""
    return {
        "benchmark": name,
        "question": question,
        "machine": {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count(), "arch": platform.machine()},
        "answers": [
            {**asdict(answer), "reached": answer.reached, "quartiles": answer.quartiles, "verdict": answer.verdict} for answer in answers
        ],
    }


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file that `--json` wrote."""
    names = Answer.__dataclass_fields__
    return [Answer(**{name: answer[name] for name in names}) for answer in json.loads(path.read_text(encoding="utf-8"))["answers"]]


def plot(path: Path, title: str, answers: Sequence[Answer]) -> None:
    """A point for each round, a line for each demand; one panel an answer. Whoever calls it has looked at the path (`targets`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 1.3 * len(answers)), layout="constrained")
    panels = figure.subplots(len(answers), 1, squeeze=False)[:, 0]
    spread = random.Random(SEED)
    for panel, answer in zip(panels, answers, strict=True):
        panel.scatter(answer.ratios, [spread.uniform(-0.3, 0.3) for _ in answer.ratios], s=12, alpha=0.6, label="a round")
        panel.axvline(answer.reached, color="black", label="median")
        if answer.must is not None:
            panel.axvline(answer.must, color="tab:red", linestyle="--", label="must")
        if answer.aim is not None:
            panel.axvline(answer.aim, color="tab:green", linestyle="--", label="aim")
        panel.set(yticks=[], ylim=(-1, 1), xlabel=f"{answer.unit} (against: {answer.against})")
        panel.set_xlim(left=0)
        panel.set_title(answer.question, fontsize="medium")
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    figure.suptitle(title, fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format=targets.picture_format(path))
    write(path, picture.getvalue(), "plot")


# ---------------------------------------------------------------------------------------------- the command line


def main(doc: str | None, measure: Callable[[bool], Sequence[Answer]]) -> None:
    """The command line of one benchmark: `measure(quick)` gives its answers, `doc` is its docstring."""
    parser = parser_of(doc)
    options = parser.parse_args()
    require_targets(parser, options)
    report(doc, options, measure(options.quick), lambda: measure(True))


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short rounds: shows that it works, measures little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers there, every round of them")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them there (needs matplotlib: the extra `bench`)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="then run it once more, briefly, and write a Chrome trace of that there")
    return parser


def require_targets(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with one line, before anything is measured, if what it comes to could not be written."""
    targets.require(parser, json=options.json, plot=options.plot, traces=[] if options.trace is None else [options.trace])


def report(doc: str | None, options: argparse.Namespace, answers: Sequence[Answer], again: Callable[[], object]) -> None:
    """Print the answers and write what was asked for; `again` is the further pass that is traced."""
    question = (doc or "").strip().split("\n\n")[0].replace("\n", " ")
    for answer in answers:
        print(describe(answer))
    if options.json:
        save(options.json, document(Path(sys.argv[0]).stem, question, answers))
    if options.plot:
        plot(options.plot, question, answers)
    if options.trace:
        trace(options.trace, again)

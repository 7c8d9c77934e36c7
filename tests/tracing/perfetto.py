"""What Perfetto makes of a trace: an independent reading of the JSON, by the rules of its importer (SliceTracker, FlowTracker).

It knows nothing of `pypto_actors.tracing`. Events are taken in the order of their times, those of one time in that of the file. A slice
stays open until an event of its lane comes at or after its end; slices of a lane nest or are apart; an arrow binds to what was opened
last on its lane.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Raw: TypeAlias = dict[str, Any]
Lane: TypeAlias = tuple[int, int]

# What each kind of event must have besides name, ph, pid and tid, and what it may have.
FIELDS: dict[str, tuple[dict[str, type | tuple[type, ...]], set[str]]] = {
    "M": ({"args": dict}, set()),
    "X": ({"ts": float, "dur": float, "cat": str}, {"args", "cname"}),
    "i": ({"ts": float, "cat": str, "s": str}, {"args"}),
    "b": ({"ts": float, "cat": str, "id": int}, {"args"}),
    "e": ({"ts": float, "cat": str, "id": int}, {"args"}),
    "s": ({"ts": float, "cat": str, "id": int}, set()),
    "t": ({"ts": float, "cat": str, "id": int}, set()),
    "f": ({"ts": float, "cat": str, "id": int, "bp": str}, set()),
    "C": ({"ts": float, "args": dict}, set()),
}


@dataclass(eq=False)
class Slice:
    """A slice as it is shown; times in ns."""

    lane: str
    process: str
    name: str
    cat: str
    start: int
    finish: int
    args: Raw


@dataclass
class Seen:
    """All that a trace shows, and what is wrong with it."""

    slices: list[Slice] = field(default_factory=list)
    arrows: list[tuple[Slice, Slice, str]] = field(default_factory=list)  # from, to, name
    instants: list[tuple[str, str, Raw]] = field(default_factory=list)  # lane, name, args
    waits: list[tuple[str, int, int, Raw]] = field(default_factory=list)  # name, start, finish, args
    counters: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    lanes: list[str] = field(default_factory=list)  # in the order in which they are shown
    faults: list[str] = field(default_factory=list)

    def on(self, lane: str) -> list[Slice]:
        return [slice_ for slice_ in self.slices if slice_.lane == lane]

    def named(self, name: str) -> list[Slice]:
        return [slice_ for slice_ in self.slices if slice_.name == name]

    def way(self, slice_: Slice) -> list[Slice]:
        """What the arrows of a dispatch lead through: all that come to this slice and go from it."""
        back, ahead = [slice_], [slice_]
        links = [(one, other) for one, other, name in self.arrows if name == "dispatch"]
        while before := [one for one, other in links if other is back[-1]]:
            back.append(before[0])
        while after := [other for one, other in links if one is ahead[-1]]:
            ahead.append(after[0])
        return [*reversed(back), *ahead[1:]]


def ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def fault_of(event: Raw) -> str | None:
    """What is wrong with one event by itself."""
    if event.get("ph") not in FIELDS:
        return f"an unknown kind: {event}"
    needed, optional = FIELDS[event["ph"]]
    common: dict[str, type | tuple[type, ...]] = {"name": str, "pid": int, "tid": int}
    for name, kind in (common | needed).items():
        if not isinstance(event.get(name), kind):
            return f"{name} is missing or wrong: {event}"
    if extra := set(event) - set(common) - set(needed) - optional - {"ph"}:
        return f"unknown fields {extra}: {event}"
    if "ts" in event and not (math.isfinite(event["ts"]) and event["ts"] >= 0):
        return f"an impossible time: {event}"
    if event["ph"] == "X" and event["dur"] <= 0:
        return f"an arrow cannot bind to a slice without duration: {event}"
    if event["ph"] == "i" and event["s"] not in ("t", "p", "g"):
        return f"an unknown scope: {event}"
    if event["ph"] == "C" and not all(isinstance(value, (int, float)) and value >= 0 for value in event["args"].values()):
        return f"a counter counts: {event}"
    return None


class _Reader:
    def __init__(self, events: list[Raw]) -> None:
        self.seen = Seen()
        self.names: dict[tuple[str, int], str] = {}
        self.order: dict[int, int] = {}
        self.stacks: dict[Lane, list[Slice]] = defaultdict(list)
        self.flows: dict[tuple[str, str, int], Slice | None] = {}
        self.open: dict[tuple[str, str, int], Raw] = {}
        self.last: dict[tuple[int, str, str], float] = {}
        for event in events:
            if (fault := fault_of(event)) is not None:
                self.seen.faults.append(fault)
        if self.seen.faults:
            return
        for event in events:
            if event["ph"] == "M":
                self.metadata(event)
        for event in sorted((event for event in events if event["ph"] != "M"), key=lambda event: event["ts"]):
            self.take(event)
        self.seen.faults += [f"never ended: {event}" for event in self.open.values()]
        self.seen.faults += [f"an arrow that does not end: {key}" for key, end in self.flows.items() if end is not None]
        tids = [tid for kind, tid in self.names if kind == "thread_name"]
        self.seen.lanes = [self.names["thread_name", tid] for tid in sorted(tids, key=lambda tid: self.order[tid])]

    def metadata(self, event: Raw) -> None:
        kind, args = event["name"], event["args"]
        if kind in ("process_name", "thread_name"):
            number = event["pid"] if kind == "process_name" else event["tid"]
            if (kind, number) in self.names:
                self.seen.faults.append(f"named twice, and Perfetto knows threads by their number alone: {event}")
            self.names[kind, number] = args["name"]
        elif kind == "thread_sort_index":
            self.order[event["tid"]] = event["pid"] * 1000 + args["sort_index"]

    def take(self, event: Raw) -> None:
        seen, lane, at = self.seen, (event["pid"], event["tid"]), ns(event["ts"])
        if ("process_name", event["pid"]) not in self.names or ("thread_name", event["tid"]) not in self.names:
            seen.faults.append(f"a lane without a name: {event}")
            return
        lane_name, process = self.names["thread_name", event["tid"]], self.names["process_name", event["pid"]]
        key = (event.get("cat", ""), event["name"], event.get("id", 0))
        match event["ph"]:
            case "X":
                self.push(lane, Slice(lane_name, process, event["name"], event["cat"], at, at + ns(event["dur"]), event.get("args", {})))
            case "i":
                seen.instants.append((lane_name, event["name"], event.get("args", {})))
                if event["s"] == "t":
                    self.push(lane, Slice(lane_name, process, event["name"], event["cat"], at, at, {}), shown=False)
            case "b":
                if key in self.open:
                    seen.faults.append(f"begun twice: {event}")
                self.open[key] = event
            case "e":
                begin = self.open.pop(key, None)
                if begin is None or begin["ts"] > event["ts"] or begin["pid"] != event["pid"]:
                    seen.faults.append(f"ended, and not begun: {event}")
                else:
                    seen.waits.append((event["name"], ns(begin["ts"]), at, begin.get("args", {})))
            case "s" | "t" | "f":
                self.flow(event["ph"], key, lane, at, event)
            case "C":
                for name, value in event["args"].items():
                    seen.counters[event["name"], name].append((at, value))

    def push(self, lane: Lane, slice_: Slice, shown: bool = True) -> None:
        stack = self.stacks[lane]
        while stack and stack[-1].finish <= slice_.start:
            stack.pop()
        if stack and slice_.finish > stack[-1].finish:
            self.seen.faults.append(f"overlaps the slice before it: {slice_} and {stack[-1]}")
        stack.append(slice_)
        if shown:
            self.seen.slices.append(slice_)

    def flow(self, phase: str, key: tuple[str, str, int], lane: Lane, at: int, event: Raw) -> None:
        stack = self.stacks[lane]
        bound = stack[-1] if stack else None
        if bound is None or not bound.start <= at < bound.finish:
            self.seen.faults.append(f"an arrow that ends in no slice: {event}")
            return
        if phase == "s":
            if key in self.flows:
                self.seen.faults.append(f"an arrow begun twice: {event}")
            self.flows[key] = bound
            return
        before = self.flows.get(key)
        if before is None:
            self.seen.faults.append(f"an arrow that was not begun: {event}")
            return
        if before.start > bound.start:
            self.seen.faults.append(f"an arrow back in time: {event}")
        self.seen.arrows.append((before, bound, key[1]))
        self.flows[key] = None if phase == "f" else bound


def look(document: Raw) -> Seen:
    """What the trace shows."""
    faults = [] if set(document) == {"traceEvents", "displayTimeUnit", "otherData"} else [f"unknown fields: {set(document)}"]
    if document.get("displayTimeUnit") not in ("ms", "ns"):
        faults.append("displayTimeUnit is ms or ns")
    seen = _Reader(document["traceEvents"]).seen
    seen.faults += faults
    return seen


def open_file(path: Path) -> Seen:
    """What a file shows; it must be sound."""
    seen = look(json.loads(path.read_text(encoding="utf-8")))
    assert not seen.faults, seen.faults[:5]
    return seen

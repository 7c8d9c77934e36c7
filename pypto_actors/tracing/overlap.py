"""Who ran at the same time: pure functions of spans."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from pypto_actors.tracing.timeline import Span

_by_start = attrgetter("start", "finish")


def overlap(first: Iterable[Span], second: Iterable[Span]) -> float:
    """Seconds in which a span of `first` and a span of `second` were under way at once; 0.0 if none ever were."""
    ones, others = _merged(first), _merged(second)
    total = 0.0
    one = other = 0
    while one < len(ones) and other < len(others):
        start = max(ones[one][0], others[other][0])
        finish = min(ones[one][1], others[other][1])
        total += max(0.0, finish - start)
        if ones[one][1] < others[other][1]:
            one += 1
        else:
            other += 1
    return total


def concurrent(spans: Iterable[Span]) -> list[tuple[Span, Span]]:
    """All pairs of spans on different devices that were under way at once, the earlier one first."""
    pairs: list[tuple[Span, Span]] = []
    going: list[Span] = []
    for span in sorted(spans, key=_by_start):
        going = [other for other in going if other.finish > span.start]
        pairs += [(other, span) for other in going if other.device != span.device and span.seconds > 0]
        going.append(span)
    return pairs


def _merged(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """The stretches of time that the spans cover, disjoint, in order."""
    stretches: list[tuple[float, float]] = []
    for span in sorted(spans, key=_by_start):
        if stretches and span.start <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(stretches[-1][1], span.finish))
        else:
            stretches.append((span.start, span.finish))
    return stretches

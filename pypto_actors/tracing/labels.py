"""Names for people: of a plan's parts, of copies, of errors, of amounts."""

from __future__ import annotations

from msgspec import Struct

from pypto_actors.messages import Piece, Read, Transfer, Write
from pypto_actors.plan import Plan, Sync

MOST_TEXT = 300  # characters of an error's text
MOST_STEPS = 12  # steps of a part that are named


class Label(Struct, frozen=True):
    """What a part of a plan is called, and whom it meets."""

    name: str
    steps: tuple[str, ...]
    gang: tuple[int, ...]
    wave: int


def label_of(plan: Plan, index: int) -> Label:
    part = plan.parts[index]
    steps = _counted([step.name for step in part.steps if not isinstance(step.function, Sync)])
    name = plan.program if len(plan.parts) == 1 or not steps else f"{plan.program}: {steps[0]}{' …' if len(steps) > 1 else ''}"
    gang: tuple[int, ...] = ()
    if part.meeting:
        gang = tuple(sorted(other.device for other in plan.parts if other.wave == part.wave and other.meeting))
    return Label(clean(name), tuple(map(clean, steps)), gang, part.wave)


def _counted(names: list[str]) -> list[str]:
    """Equal neighbours as one, `name ×3`; what comes after the first dozen as `… 7 more`."""
    runs: list[list[str]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1].append(name)
        else:
            runs.append([name])
    shown = [f"{run[0]} ×{len(run)}" if len(run) > 1 else run[0] for run in runs[:MOST_STEPS]]
    return shown if len(runs) <= MOST_STEPS else [*shown, f"… {len(runs) - MOST_STEPS} more"]


def copy_name(piece: Piece) -> tuple[str, int]:
    """What a piece of a copy is called, and how many bytes it moves."""
    if isinstance(piece, Write):
        way, nbytes = f"host → {piece.target.device}", piece.target.nbytes
    elif isinstance(piece, Read):
        way, nbytes = f"{piece.source.device} → host", piece.source.nbytes
    else:
        assert isinstance(piece, Transfer)
        way, nbytes = f"{piece.source.device} → {piece.target.device}", piece.target.nbytes
    return f"copy {way}", nbytes


def error_text(error: BaseException) -> str:
    """Kind and text of a user's error, whatever its `__str__` does."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    kind = type(error).__name__
    return clean(f"{kind}: {text}" if text else kind)


def clean(text: str) -> str:
    """What can be written as UTF-8, and is not endless."""
    text = text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")


def amount(nbytes: float) -> str:
    """Bytes for people: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}" if unit != "B" else f"{nbytes:g} B"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"

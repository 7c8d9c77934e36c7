"""The command line of `generate`, checked before anything is loaded."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from examples.qwen3.console import Output, OutputClosedError
from examples.qwen3.errors import OptionError, PromptError
from pypto_actors import tracing

BUNDLED = Path(__file__).parent / "models" / "tiny-shakespeare"
BACKENDS = ("inline", "thread", "process", "ray")
PARALLEL = ("data", "tensor")
MOST_THREADS = 64  # those of one process that OpenBLAS as it comes with numpy can start
MOST_DEVICES = 256  # each is a thread or a process of this machine, and with `--parallel data` a whole model too


@dataclass(frozen=True)
class Options:
    """What was asked for. One of `prompt` and `prompt_ids` is None."""

    prompt: str | None
    prompt_ids: list[int] | None
    model: Path
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    backend: str
    devices: int
    parallel: str
    blas_threads: int
    save_logits: Path | None
    trace: Path | None
    plot: Path | None
    stats: bool


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of this example."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{' '.join(message.split())}; see --help")

    def print_help(self, file: object = None) -> None:
        """On standard output, whose reader may leave and whose encoding may lack a character, as for the text itself."""
        with contextlib.suppress(OutputClosedError):
            Output().write(self.format_help())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m examples.qwen3.generate",
        description="Generate text from a Qwen3 checkpoint; what is generated goes to standard output.",
        allow_abbrev=False,
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to go on from; needs the model's tokenizer.json")
    prompt.add_argument("--prompt-ids", metavar="IDS", help="token ids to go on from, like 1,2,3; needs no tokenizer")
    parser.add_argument("--model", metavar="DIR", type=Path, default=BUNDLED, help="a Hugging Face Qwen3 directory (default: bundled)")
    parser.add_argument("--max-tokens", metavar="N", default="200", help="tokens to generate at most (default: 200)")
    parser.add_argument("--temperature", metavar="T", help="0 is greedy (default: 0, but 1 where --top-k or --top-p is given)")
    parser.add_argument("--top-k", metavar="K", default="0", help="draw from the K likeliest tokens (default: 0, off)")
    parser.add_argument("--top-p", metavar="P", default="1", help="draw from the likeliest share P (default: 1, off)")
    parser.add_argument("--seed", metavar="N", help="makes draws repeatable (default: drawn anew each time)")
    parser.add_argument("--backend", default="thread", help=f"one of {', '.join(BACKENDS)} (default: thread)")
    parser.add_argument("--devices", metavar="N", default="1", help=f"simulated devices, up to {MOST_DEVICES} (default: 1)")
    parser.add_argument(
        "--parallel",
        default="data",
        help="data: a sequence on each device, drawn with seeds N, N+1, …; tensor: one sequence over all devices (default: data)",
    )
    parser.add_argument(
        "--blas-threads",
        metavar="N",
        default="1",
        help="of each process with devices, also for a long prefill: faster on as many idle cores, far slower on busy ones (default: 1)",
    )
    parser.add_argument("--save-logits", metavar="FILE.npz", type=Path, help="write arrays tokens (n,) and logits (n, vocab)")
    tracing.add_options(parser)
    parser.add_argument("--stats", action="store_true", help="end standard error with one line of JSON")
    return parser


def _integer(option: str, text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise OptionError(f"{option} {text!r} is no integer; give one of at least {low}") from None
    if value < low:
        raise OptionError(f"{option} {value} is too small; give at least {low}")
    return value


def _threads(text: str) -> int:
    value = _integer("--blas-threads", text, 1)
    if value > MOST_THREADS:
        raise OptionError(f"--blas-threads {value} is too many; give as many as there are idle cores, and at most {MOST_THREADS}")
    return value


def _devices(text: str) -> int:
    value = _integer("--devices", text, 1)
    if value > MOST_DEVICES:
        raise OptionError(f"--devices {value} is too many, since each is a thread or a process here; give at most {MOST_DEVICES}")
    return value


def _number(option: str, text: str, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise OptionError(f"{option} {text!r} is no number; give {wanted}") from None
    if not math.isfinite(value) or value < 0:
        raise OptionError(f"{option} {text} makes no sense; give {wanted}")
    return value


def parse_ids(text: str) -> list[int]:
    """The ids in `1,2,3`. Raises `PromptError` for anything else; an empty text gives no ids."""
    ids = []
    for item in text.split(",") if text.strip() else []:
        try:
            ids.append(int(item))
        except ValueError:
            raise PromptError(f"--prompt-ids: {item.strip()!r} is no token id; give them like 1,2,3") from None
    return ids


def check_target(option: str, path: Path) -> Path:
    """The file that is meant, links followed. Raises `OptionError` unless it can be written; only looks, and so waits for no pipe."""
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # tells links that lead to themselves, as `resolve` does not from CPython 3.13 on
        target = path.resolve()
        if path.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if not path.exists() and not target.parent.is_dir():
            raise FileNotFoundError(None, f"there is no directory {str(target.parent)!r}")
        # of a pipe behind /dev/stdout the path is no file's name any more once links are followed
        if not os.access(path if path.exists() else target.parent, os.W_OK):
            raise PermissionError(None, "it may not be written")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"{option} {path}: cannot be written ({reason}); name a file in a directory you may write to") from None
    return target


def check_targets(options: Options) -> None:
    """Raise `OptionError` unless each file that is asked for can be written, and is another one than the others."""
    taken: dict[Path, str] = {}
    for option, path in (("--save-logits", options.save_logits), ("--trace", options.trace), ("--plot", options.plot)):
        if path is None:
            continue
        first = taken.setdefault(check_target(option, path), option)
        if first != option:
            raise OptionError(f"{option} {path}: {first} writes that file already; name another one")


def parse(argv: Sequence[str] | None) -> Options:
    """Options from `argv` (None: those of the process). Raises `OptionError` or `PromptError`, each one line."""
    given = _parser().parse_args(argv)
    top_k = _integer("--top-k", given.top_k, 0)
    top_p = _number("--top-p", given.top_p, "a share above 0 and up to 1")
    if not 0 < top_p <= 1:
        raise OptionError(f"--top-p {given.top_p} makes no sense; give a share above 0 and up to 1")
    drawn = top_k > 0 or top_p < 1
    temperature = given.temperature if given.temperature is not None else "1" if drawn else "0"
    if given.backend not in BACKENDS:
        raise OptionError(f"--backend {given.backend!r} is unknown; give one of {', '.join(BACKENDS)}")
    if given.parallel not in PARALLEL:
        raise OptionError(f"--parallel {given.parallel!r} is unknown; give one of {', '.join(PARALLEL)}")
    options = Options(
        prompt=given.prompt,
        prompt_ids=None if given.prompt_ids is None else parse_ids(given.prompt_ids),
        model=given.model,
        max_tokens=_integer("--max-tokens", given.max_tokens, 1),
        temperature=_number("--temperature", temperature, "0 for greedy, or a number above"),
        top_k=top_k,
        top_p=top_p,
        seed=None if given.seed is None else _integer("--seed", given.seed, 0),
        backend=given.backend,
        devices=_devices(given.devices),
        parallel=given.parallel,
        blas_threads=_threads(given.blas_threads),
        save_logits=given.save_logits,
        trace=given.trace,
        plot=given.plot,
        stats=given.stats,
    )
    check_targets(options)
    return options

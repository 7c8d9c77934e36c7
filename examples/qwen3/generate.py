"""Text from a Qwen3 checkpoint, on one device of a shared worker, or on several.

    python -m examples.qwen3.generate --prompt "First Citizen:"
    python -m examples.qwen3.generate --prompt "KING" --devices 2 --parallel data --temperature 0.8 --seed 1
    python -m examples.qwen3.generate --prompt "KING" --devices 2 --parallel tensor

With `--parallel data` each device goes on from the prompt by itself, device i with the seed N + i (without `--temperature` they all say
the same); each text stands under a line `=== i ===`. With `--parallel tensor` there is one text, and the devices share the model.
`--save-logits` then has `tokens`, `logits` of device 0 and `tokens_i`, `logits_i` of the others.

What is generated goes to standard output as it is made; everything else to standard error. Status 0, also when the
reader of the output has gone; 130 after Ctrl-C; 2, with one line that says what to do, for whatever cannot be done.
"""

from __future__ import annotations

from examples.qwen3 import interrupts

if __name__ == "__main__":  # the imports below take long
    interrupts.end_at_once()

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from examples.qwen3.checkpoint import Checkpoint
from examples.qwen3.config import Config, read_config
from examples.qwen3.console import Output, OutputClosedError, Pages, Progress, say
from examples.qwen3.errors import CheckpointError, OptionError, PromptError, remedy
from examples.qwen3.faults import TOLD, explain
from examples.qwen3.options import Options, parse
from examples.qwen3.parallel import Model, open_models
from examples.qwen3.sampling import Sampler
from examples.qwen3.text import TextStream, Tokenizer
from examples.qwen3.weights import Array
from pypto_actors import tracing

try:
    import threadpoolctl
except ImportError:
    threadpoolctl = None


@dataclass
class Stats:
    """What `--stats` prints. Decode counts the steps, one fewer than the tokens: prefill gives the first.

    Prefill lasts until the first token is there, decode from then on until the last one is. Of several sequences at once, tokens are summed
    up, and seconds are those of the slowest.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    load_seconds: float = 0.0

    def add(self, other: Stats) -> None:
        """A further sequence, which was generated at the same time."""
        self.prefill_tokens += other.prefill_tokens
        self.decode_tokens += other.decode_tokens
        self.prefill_seconds = max(self.prefill_seconds, other.prefill_seconds)
        self.decode_seconds = max(self.decode_seconds, other.decode_seconds)


@dataclass
class Chosen:
    """The tokens that were generated, and the logits (V,) that each was chosen from where they are kept."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)


def read_prompt(options: Options, config: Config) -> tuple[list[int], Tokenizer | None]:
    """The prompt's ids, and the tokenizer that shows text (None: ids are shown). Raises `PromptError`."""
    if options.prompt is not None:
        tokenizer: Tokenizer | None = Tokenizer(options.model)
        assert tokenizer is not None
        ids = tokenizer.encode(options.prompt)
    else:
        ids = options.prompt_ids or []
        try:
            tokenizer = Tokenizer(options.model)
        except CheckpointError:
            tokenizer = None
    if not ids:
        raise PromptError("the prompt is empty; give at least one token by --prompt or --prompt-ids")
    for token in ids:
        if not 0 <= token < config.vocab_size:
            raise PromptError(f"id {token} is outside the vocabulary; use ids from 0 to {config.vocab_size - 1}")
    if len(ids) >= config.max_positions:
        raise PromptError(
            f"the prompt has {len(ids)} tokens, too long for the model's context of {config.max_positions}; "
            f"give at most {config.max_positions - 1}"
        )
    return ids, tokenizer


async def timed(stream: AsyncGenerator[tuple[int, Array | None]], stats: Stats) -> AsyncGenerator[tuple[int, Array | None]]:
    """The same tokens; fills `stats` as they come."""
    start = time.perf_counter()
    async with contextlib.aclosing(stream):
        async for token, logits in stream:
            now = time.perf_counter()
            if stats.prefill_seconds:
                stats.decode_tokens += 1
                stats.decode_seconds = now - start - stats.prefill_seconds
            else:
                stats.prefill_seconds = now - start
            yield token, logits


async def generate(options: Options, output: Output, stats: Stats, chosen: list[Chosen], trace: tracing.Recorder | None = None) -> None:
    """Load the model and write what it generates to `output`. Fills `stats` and `chosen`, one for each sequence, as it goes."""
    config = read_config(options.model)
    ids, tokenizer = read_prompt(options, config)
    start = time.perf_counter()
    count = min(options.max_tokens, config.max_positions - len(ids))
    checkpoint = Checkpoint(options.model, config)
    progress = Progress(str(options.model))

    async def write(model: Model, number: int, one: Chosen, pages: Pages) -> None:
        mine = Stats(prefill_tokens=len(ids))
        shown = TextStream(tokenizer) if tokenizer else None
        seed = None if options.seed is None else options.seed + number
        sampler = Sampler(options.temperature, options.top_k, options.top_p, seed)
        keep = options.save_logits is not None
        try:
            async with contextlib.aclosing(timed(model.generate(ids, count, sampler, keep), mine)) as stream:
                async for token, logits in stream:
                    one.tokens.append(token)
                    if logits is not None:
                        one.logits.append(logits)
                    pages.write(number, shown.push(token) if shown else f"{',' if len(one.tokens) > 1 else ''}{token}")
            pages.write(number, (shown.finish() if shown else "") + "\n")
            pages.end(number)
        finally:  # the reader of the output may have gone
            stats.add(mine)

    async with open_models(options, config, len(ids) + count, lambda n: checkpoint.parts(n, progress.show), trace) as models:
        stats.load_seconds = time.perf_counter() - start
        chosen += [Chosen() for _ in models]
        pages = Pages(output, len(models))
        try:
            async with asyncio.TaskGroup() as group:
                for number, model in enumerate(models):
                    group.create_task(write(model, number, chosen[number], pages))
        except BaseExceptionGroup as several:
            first = several.exceptions[0]
            raise first from first.__cause__
    if count < options.max_tokens and any(one.tokens[-1] not in config.eos_token_ids for one in chosen):
        say(f"stopped after {count} tokens: the context of {config.max_positions} is full")


def save(options: Options, chosen: Sequence[Chosen]) -> None:
    """Write `--save-logits`. Raises `OptionError` where that fails."""
    arrays: dict[str, np.ndarray] = {}
    for number, one in enumerate(chosen):
        if one.tokens and one.logits:
            name = f"_{number}" if number else ""
            arrays |= {f"tokens{name}": np.array(one.tokens, np.int64), f"logits{name}": np.stack(one.logits)}
    if options.save_logits is None or not arrays:
        return
    try:
        with options.save_logits.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise OptionError(f"--save-logits {options.save_logits}: {error.strerror}; {remedy(error, 'name a file that fits')}") from None


@contextlib.contextmanager
def traced(options: Options) -> Iterator[tracing.Recorder | None]:
    """Records for `--trace` and `--plot`; None where neither is asked for. Raises `OptionError` where they cannot be written."""
    if options.trace is None and options.plot is None:
        yield None
        return
    try:
        tracing.check(options.trace, options.plot)
    except (tracing.TraceFileError, ImportError) as error:
        raise OptionError(str(error)) from None
    try:
        with tracing.record(options.trace, plot=options.plot, name="qwen3") as recorder:
            yield recorder
    except tracing.TraceFileError as error:
        raise OptionError(str(error)) from None


def blas_threads(count: int) -> contextlib.AbstractContextManager[object]:
    """So many threads of BLAS in this process: one unless asked, since several wait for each other, and a step takes 15 times as long where
    the cores are busy. Raises `OptionError` where they cannot be set."""
    if threadpoolctl is None:
        if count > 1:
            raise OptionError(f"--blas-threads {count} needs the package threadpoolctl; pip install threadpoolctl, or leave the option out")
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[object] = threadpoolctl.threadpool_limits(count)
    return limits


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (None: the arguments of the process); returns its exit status."""
    stats = Stats()
    chosen: list[Chosen] = []
    status = 0
    try:
        interrupts.raise_again()
        options = parse(argv)
        with blas_threads(options.blas_threads), contextlib.suppress(OutputClosedError), traced(options) as trace:
            asyncio.run(generate(options, Output(), stats, chosen, trace))
        save(options, chosen)
        if options.stats:
            say(json.dumps(asdict(stats)))
    except TOLD as error:
        say(f"error: {explain(error)}")
        status = 2
    except KeyboardInterrupt:
        status = interrupts.STATUS
    return status


if __name__ == "__main__":
    ended_with = main()
    interrupts.end_at_once()
    sys.exit(ended_with)

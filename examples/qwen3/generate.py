"""Text from a Qwen3 checkpoint, on one device of a shared worker.

    python -m examples.qwen3.generate --prompt "First Citizen:"

What is generated goes to standard output as it is made; everything else to standard error. Status 0, also when the
reader of the output has gone; 130 after Ctrl-C; 2, with one line that says what to do, for whatever cannot be done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

import pypto_actors as pa
from examples.qwen3.checkpoint import Checkpoint
from examples.qwen3.config import Config, read_config
from examples.qwen3.console import Output, OutputClosedError, Progress, say
from examples.qwen3.errors import CheckpointError, OptionError, PromptError, Qwen3Error
from examples.qwen3.options import Options, parse
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.sampling import Sampler
from examples.qwen3.text import TextStream, Tokenizer
from examples.qwen3.weights import Array

try:
    import threadpoolctl
except ImportError:
    threadpoolctl = None


@dataclass
class Stats:
    """What `--stats` prints. Decode counts the steps, one fewer than the tokens: prefill gives the first."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    load_seconds: float = 0.0


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


async def tokens(model: Qwen3, ids: list[int], count: int, sampler: Sampler, stats: Stats) -> AsyncGenerator[tuple[int, Array], None]:
    """Up to `count` tokens behind `ids`, each with the logits (V,) it was chosen from; an EOS is the last."""
    start = time.perf_counter()
    logits = await model.prefill(ids)
    stats.prefill_tokens, stats.prefill_seconds = len(ids), time.perf_counter() - start
    for position in range(len(ids), len(ids) + count):
        token = sampler.choose(logits)
        yield token, logits
        if token in model.programs.config.eos_token_ids or position + 1 == len(ids) + count:
            return
        start = time.perf_counter()
        logits = (await model.decode([token], [position]))[0]
        stats.decode_seconds += time.perf_counter() - start
        stats.decode_tokens += 1


async def generate(options: Options, output: Output, stats: Stats, chosen: Chosen) -> None:
    """Load the model and write what it generates to `output`. Fills `stats` and `chosen` as it goes."""
    config = read_config(options.model)
    ids, tokenizer = read_prompt(options, config)
    start = time.perf_counter()
    count = min(options.max_tokens, config.max_positions - len(ids))
    programs = make_programs(config, len(ids) + count)
    parts = Checkpoint(options.model, config).parts(programs.positions, Progress(str(options.model)))
    async with open_worker(programs.both, options.backend) as worker, Qwen3(worker, programs, parts) as model:
        stats.load_seconds = time.perf_counter() - start
        shown = TextStream(tokenizer) if tokenizer else None
        sampler = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
        stream = tokens(model, ids, count, sampler, stats)
        async with contextlib.aclosing(stream):
            async for token, logits in stream:
                chosen.tokens.append(token)
                if options.save_logits:
                    chosen.logits.append(logits)
                output.write(shown.push(token) if shown else f"{',' if len(chosen.tokens) > 1 else ''}{token}")
        output.write((shown.finish() if shown else "") + "\n")
    if count < options.max_tokens and chosen.tokens[-1] not in config.eos_token_ids:
        say(f"stopped after {count} tokens: the context of {config.max_positions} is full")


@contextlib.asynccontextmanager
async def open_worker(programs: Sequence[pa.Program], backend: str) -> AsyncIterator[pa.DistributedWorker]:
    """A worker with one device. Raises `OptionError` where this installation lacks the backend."""
    try:
        worker = pa.DistributedWorker(programs, backend=backend)
    except (ImportError, ValueError) as error:
        raise OptionError(f"--backend {backend}: {' '.join(str(error).split())}; use --backend thread") from None
    async with worker:
        yield worker


def save(options: Options, chosen: Chosen) -> None:
    """Write `--save-logits`. Raises `OptionError` where that fails."""
    if options.save_logits is None or not chosen.tokens:
        return
    try:
        with options.save_logits.open("wb") as file:
            np.savez(file, tokens=np.array(chosen.tokens, np.int64), logits=np.stack(chosen.logits))
    except OSError as error:
        raise OptionError(f"--save-logits {options.save_logits}: {error.strerror}; name a file that fits") from None


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """One BLAS thread for the one simulated device: two would fight over the cores with whatever else runs here."""
    return threadpoolctl.threadpool_limits(1) if threadpoolctl else contextlib.nullcontext()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (None: the arguments of the process); returns its exit status."""
    stats, chosen = Stats(), Chosen()
    status = 0
    try:
        options = parse(argv)
        with one_blas_thread(), contextlib.suppress(OutputClosedError):
            asyncio.run(generate(options, Output(), stats, chosen))
        save(options, chosen)
        if options.stats:
            say(json.dumps(asdict(stats)))
    except Qwen3Error as error:
        say(f"error: {' '.join(str(error).splitlines())}")
        status = 2
    except MemoryError as error:
        say(f"error: the model does not fit ({' '.join(str(error).split())}); use a smaller one or fewer --max-tokens")
        status = 2
    except OSError as error:
        say(f"error: {error.filename}: {error.strerror}; check the path and its permissions")
        status = 2
    except KeyboardInterrupt:
        status = 130
    return status


if __name__ == "__main__":
    sys.exit(main())

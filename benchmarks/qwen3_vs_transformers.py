"""How much faster than `transformers` `generate` does the example's worker generate, on the same cores?

Both run the same random Qwen3 of 20 M parameters in float32, with the same number of BLAS threads: decode at batch 1
and 16 behind a prompt of 128 tokens, greedy, each step's token from the step before, and prefill of 512 tokens. The
rounds alternate, so that a drift of the machine meets both; a ratio is the median of the rounds' ratios, and above 1
the worker is faster. `transformers` lives in a throw-away environment:

    python3 -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers safetensors
    python -m benchmarks.qwen3_vs_transformers --transformers-python VENV/bin/python

With more than one thread, each side begins when the threads of the other have gone to sleep: they spin for a while after their work.

Needed: 2.0 at batch 1, 1.5 at batch 16, 1.1 in prefill. The seed is fixed; one warm-up round is thrown away; the
greedy tokens of both must be equal, or there is no result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import threadpoolctl

import pypto_actors as pa
from benchmarks import harness, targets
from benchmarks.harness import Answer
from examples.qwen3.checkpoint import Checkpoint
from examples.qwen3.config import read_config
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.sampling import Sampler

PROMPT, STEPS, PREFILL = 128, 32, 512
ROUNDS = 5
PAUSE = 0.5  # seconds, for the threads of BLAS
QUICK = 8  # steps of a block with --quick, and in the pass that is traced
VOCABULARY = 6144
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "eos_token_id": None,
    "bos_token_id": None,
}
NEEDED = {"decode batch 1": (2.0, 2.6), "decode batch 16": (1.5, 1.8), "prefill 512": (1.1, 1.3)}

# Runs under the other Python. Answers each line `batch prompt tokens` with seconds and the greedy tokens.
OTHER_SIDE = """
import json, sys, time
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

directory, threads, model = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(threads)
torch.manual_seed(0)
net = Qwen3ForCausalLM(Qwen3Config(initializer_range=0.08, **model)).eval()
net.save_pretrained(directory)
print("ready", flush=True)
for line in sys.stdin:
    batch, prompt, tokens = map(int, line.split())
    ids = (torch.arange(batch * prompt).reshape(batch, prompt) * 7919) % model["vocab_size"]
    start = time.perf_counter()
    with torch.inference_mode():
        out = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, out[:, prompt:].tolist()]), flush=True)
"""


class Other:
    """`transformers` in its own process; it makes the checkpoint that both sides use."""

    def __init__(self, python: str, directory: Path, threads: int) -> None:
        command = [python, "-c", OTHER_SIDE, str(directory), str(threads), json.dumps(MODEL)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        if self._answer() != "ready":
            self.close()
            sys.exit(f"{python} cannot run transformers; see the docstring for the environment it needs")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def generate(self, batch: int, prompt: int, tokens: int) -> tuple[float, list[list[int]]]:
        """Seconds and the new tokens of each sequence."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batch} {prompt} {tokens}\n")
        self._process.stdin.flush()
        seconds, out = json.loads(self._answer())
        return seconds, out

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


async def ours(model: Qwen3, batch: int, prompt: int, tokens: int) -> tuple[float, list[list[int]]]:
    """The same by the worker: prefill of each sequence, then decode of all that there are on its device, as the example does it."""
    ids = (np.arange(batch * prompt).reshape(batch, prompt) * 7919) % VOCABULARY
    start = time.perf_counter()
    out = [[int((await model.prefill(row, slot)).argmax()) for slot, row in enumerate(ids)]]
    out += [chosen.tolist() async for chosen in model.decode_ahead(tokens - 1, Sampler())]
    return time.perf_counter() - start, np.transpose(out).tolist()


async def further_pass(directory: Path) -> None:
    """What is measured, our side, once and briefly: for a trace."""
    async with opened(directory) as models:
        for batch, prompt, tokens in ((1, PROMPT, 1 + QUICK), (16, PROMPT, 1 + QUICK), (1, PREFILL, 1)):
            await ours(models[batch], batch, prompt, tokens)


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[dict[int, Qwen3]]:
    """The worker's side, for each batch, with the checkpoint that the other side has made."""
    config = read_config(directory)
    one, many = (make_programs(config, config.max_positions, batch) for batch in (1, 16))
    parts = Checkpoint(directory, config).parts(config.max_positions)
    async with (
        pa.DistributedWorker([*one.both, *many.both], trace=harness.hook("Qwen3 20M")) as worker,
        Qwen3(worker, one, parts) as single,
        Qwen3(worker, many, single) as batched,
    ):
        yield {1: single, 16: batched}


async def compare(other: Other, directory: Path, rounds: int, steps: int, pause: float) -> dict[str, dict[str, list[float]]]:
    """For each question the seconds of both sides in each round: of a step of decode, or of a prefill."""
    results: dict[str, dict[str, list[float]]] = {name: {"ours": [], "transformers": []} for name in NEEDED}
    async with opened(directory) as models:
        for number in range(rounds + 1):
            for name, result in results.items():
                for side, seconds in (await one_round(other, models, name, steps, pause)).items():
                    if number:
                        result[side].append(seconds)
    return results


async def one_round(other: Other, models: dict[int, Qwen3], name: str, steps: int, pause: float) -> dict[str, float]:
    """Seconds of each side. A decode step is what 1 + `steps` tokens take longer than 1 token, as a share."""
    decode = name.startswith("decode")
    batch = int(name.split()[-1]) if decode else 1
    runs = [(PROMPT, 1), (PROMPT, 1 + steps)] if decode else [(PREFILL, 1)]
    sides = {}
    await asyncio.sleep(pause)
    sides["ours"] = [await ours(models[batch], batch, *run) for run in runs]
    await asyncio.sleep(pause)
    sides["transformers"] = [other.generate(batch, *run) for run in runs]
    if [out for _, out in sides["ours"]] != [out for _, out in sides["transformers"]]:
        sys.exit(f"{name}: the greedy tokens differ, so the times say nothing")
    return {side: (times[-1][0] - times[0][0]) / steps if decode else times[0][0] for side, times in sides.items()}


def answer_of(name: str, result: dict[str, list[float]], threads: int) -> Answer:
    """Larger is better."""
    how = f"{len(result['ours'])} rounds that alternate, BLAS threads of each side: {threads}"
    question = f"Qwen3 20M, {name}: times as fast as transformers"
    values = harness.ratios(result, "transformers", "ours")
    return Answer(question, "transformers", "×", *NEEDED[name], values, how, harness.microseconds(result), more=True)


def measure(options: argparse.Namespace, directory: Path) -> list[Answer]:
    """The answers to this question; the checkpoint is in `directory` afterwards."""
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    other = Other(options.transformers_python, directory, options.threads)
    try:
        pause = PAUSE if options.threads > 1 else 0
        results = asyncio.run(compare(other, directory, rounds, QUICK if options.quick else STEPS, pause))
    finally:
        other.close()
    return [answer_of(name, result, options.threads) for name, result in results.items()]


def main() -> None:
    """The command line: that of all benchmarks, and the other Python."""
    parser = harness.parser_of(__doc__)
    parser.add_argument("--transformers-python", required=True, metavar="PATH", help="python that has transformers")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each side (default: 1)")
    parser.add_argument("--rounds", type=int, help=f"measured rounds (default: {ROUNDS})")
    options = parser.parse_args()
    harness.require_targets(parser, options)
    targets.require_python(parser, options.transformers_python)
    with tempfile.TemporaryDirectory() as name, threadpoolctl.threadpool_limits(options.threads):
        directory = Path(name)
        answers = measure(options, directory)
        harness.report(__doc__, options, answers, lambda: asyncio.run(further_pass(directory)))


if __name__ == "__main__":
    main()

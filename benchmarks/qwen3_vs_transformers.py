"""How much faster than `transformers` `generate` does the example's worker generate, on the same cores?

Both run the same random Qwen3 of 20 M parameters in float32 on the same number of cores, by default all that there are, and one: decode at
batch 1 and 16 behind a prompt of 128 tokens, greedy, each step's token from the step before, and prefill of 512 tokens. The
rounds alternate, so that a drift of the machine meets both; a ratio is the median of the rounds' ratios, and above 1
the worker is faster. `transformers` lives in a throw-away environment:

    python3 -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers safetensors
    python -m benchmarks.qwen3_vs_transformers --transformers-python VENV/bin/python

Torch has as many threads as there are cores. On one core the worker has one device on `thread`, with one thread of BLAS. On several, that
device has as many threads of BLAS as there are cores, for a single sequence and for a prefill; sixteen sequences are shared out to devices
as processes (on Linux): 2, 4, 8 or 16, as many as there are cores for. There, each side begins when the threads of the other have gone to
sleep: they spin for a while after their work.

Needed: 2.0 at batch 1, 1.5 at batch 16, 1.1 in prefill. The seed is fixed; one warm-up round is thrown away; the
greedy tokens of both must be equal, or there is no result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import threadpoolctl

import pypto_actors as pa
from benchmarks import harness, targets
from benchmarks.harness import Answer
from examples.qwen3.checkpoint import Checkpoint
from examples.qwen3.config import read_config
from examples.qwen3.parallel import replicas
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.sampling import Ids, Sampler
from pypto_actors.backends import ProcessBackend

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


Models = Sequence[Qwen3]  # one on each device, which have the same number of sequences


async def ours(models: Models, batch: int, prompt: int, tokens: int) -> tuple[float, list[list[int]]]:
    """The same by the worker, each device with its share of the sequences."""
    ids = (np.arange(batch * prompt).reshape(batch, prompt) * 7919) % VOCABULARY
    start = time.perf_counter()
    out = await asyncio.gather(*(tokens_of(model, some, tokens) for model, some in zip(models, np.split(ids, len(models)), strict=True)))
    return time.perf_counter() - start, [row for some in out for row in some]


async def tokens_of(model: Qwen3, ids: Ids, tokens: int) -> list[list[int]]:
    """Prefill of each sequence, then decode of all that there are on its device, as the example does it."""
    out = [[int((await model.prefill(row, slot)).argmax()) for slot, row in enumerate(ids)]]
    out += [chosen.tolist() async for chosen in model.decode_ahead(tokens - 1, Sampler())]
    chosen_by_row: list[list[int]] = np.transpose(out).tolist()
    return chosen_by_row


async def further_pass(directory: Path, cores: int) -> None:
    """What is measured on so many cores, our side, once and briefly: for a trace."""
    async with opened(directory, cores) as models:
        for batch, prompt, tokens in ((1, PROMPT, 1 + QUICK), (16, PROMPT, 1 + QUICK), (1, PREFILL, 1)):
            await ours(models[batch], batch, prompt, tokens)


def devices_on(cores: int) -> int:
    """Over how many devices 16 sequences are shared out, as many to each."""
    return max(devices for devices in (1, 2, 4, 8, 16) if devices <= cores) if sys.platform == "linux" else 1


@asynccontextmanager
async def opened(directory: Path, cores: int) -> AsyncIterator[dict[int, Models]]:
    """The worker's side, for each batch, with the checkpoint that the other side has made."""
    devices = devices_on(cores)
    config = read_config(directory)
    one, many = (make_programs(config, config.max_positions, batch) for batch in (1, 16 // devices))
    parts = Checkpoint(directory, config).parts
    backend = ProcessBackend(blas_threads=cores // devices) if devices > 1 else "thread"
    ranks = pa.DistributedConfig(range(devices))
    async with (
        pa.DistributedWorker(one.both, trace=harness.hook("one sequence")) as worker,
        Qwen3(worker, one, parts(config.max_positions)) as single,
        pa.DistributedWorker(many.both, backend=backend, config=ranks, trace=harness.hook("16 sequences")) as wide,
        replicas(wide, many, parts(config.max_positions), devices) as models,
    ):
        yield {1: [single], 16: models}


async def compare(other: Other, directory: Path, rounds: int, steps: int, cores: int) -> dict[str, dict[str, list[float]]]:
    """For each question the seconds of both sides in each round: of a step of decode, or of a prefill."""
    results: dict[str, dict[str, list[float]]] = {name: {"ours": [], "transformers": []} for name in NEEDED}
    pause = PAUSE if cores > 1 else 0
    async with opened(directory, cores) as models:
        for number in range(rounds + 1):
            for name, result in results.items():
                for side, seconds in (await one_round(other, models, name, steps, pause)).items():
                    if number:
                        result[side].append(seconds)
    return results


async def one_round(other: Other, models: dict[int, Models], name: str, steps: int, pause: float) -> dict[str, float]:
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


def answer_of(name: str, result: dict[str, list[float]], cores: int) -> Answer:
    """Larger is better."""
    devices = devices_on(cores) if name.endswith(" 16") else 1
    how = f"{len(result['ours'])} rounds that alternate, {devices} device{'s' * (devices > 1)}, BLAS threads of each: {cores // devices}"
    question = f"Qwen3 20M, {name}, on {cores} core{'s' * (cores > 1)}: times as fast as transformers"
    values = harness.ratios(result, "transformers", "ours")
    return Answer(question, "transformers", "×", *NEEDED[name], values, how, harness.microseconds(result), more=True)


def measure(options: argparse.Namespace, directory: Path, cores: int) -> list[Answer]:
    """The answers on so many cores; the checkpoint is in `directory` afterwards."""
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    other = Other(options.transformers_python, directory, cores)
    try:
        results = asyncio.run(compare(other, directory, rounds, QUICK if options.quick else STEPS, cores))
    finally:
        other.close()
    return [answer_of(name, result, cores) for name, result in results.items()]


def cores_here() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """The command line: that of all benchmarks, and the other Python."""
    parser = harness.parser_of(__doc__)
    parser.add_argument("--transformers-python", required=True, metavar="PATH", help="python that has transformers")
    everywhere = sorted({1, cores_here()}, reverse=True)
    told = " and ".join(map(str, everywhere))
    parser.add_argument("--cores", type=int, nargs="+", default=everywhere, metavar="N", help=f"of each side (default here: {told})")
    parser.add_argument("--rounds", type=int, help=f"measured rounds (default: {ROUNDS})")
    options = parser.parse_args()
    harness.require_targets(parser, options)
    targets.require_python(parser, options.transformers_python)
    for name, least in (("cores", min(options.cores)), ("rounds", options.rounds)):
        if least is not None and least < 1:
            targets.refuse(parser, f"--{name} {least} is too few; give 1 or more")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        answers: list[Answer] = []
        for cores in dict.fromkeys(options.cores):
            with threadpoolctl.threadpool_limits(cores):
                answers += measure(options, directory, cores)
        with threadpoolctl.threadpool_limits(options.cores[0]):
            harness.report(__doc__, options, answers, lambda: asyncio.run(further_pass(directory, options.cores[0])))


if __name__ == "__main__":
    main()

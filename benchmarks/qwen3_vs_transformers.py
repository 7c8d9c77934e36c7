"""How much faster than `transformers` `generate` does the example's worker generate, on the same cores?

Both run the same random Qwen3 of 20 M parameters in float32, with the same number of BLAS threads: decode at batch 1
and 16 behind a prompt of 128 tokens, greedy, each step's token from the step before, and prefill of 512 tokens. The
rounds alternate, so that a drift of the machine meets both; a ratio is the median of the rounds' ratios, and above 1
the worker is faster. `transformers` lives in a throw-away environment:

    python3 -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers safetensors
    python -m benchmarks.qwen3_vs_transformers --transformers-python VENV/bin/python

Needed: 2.0 at batch 1, 1.5 at batch 16, 1.1 in prefill. The seed is fixed; one warm-up round is thrown away; the
greedy tokens of both must be equal, or there is no result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import pypto_actors as pa
from benchmarks import harness
from examples.qwen3.checkpoint import Checkpoint
from examples.qwen3.config import read_config
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3

PROMPT, STEPS, PREFILL = 128, 32, 512
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
    """The same by the worker: prefill of each sequence, then batched decode."""
    ids = (np.arange(batch * prompt).reshape(batch, prompt) * 7919) % VOCABULARY
    start = time.perf_counter()
    newest = [int((await model.prefill(row, slot)).argmax()) for slot, row in enumerate(ids)]
    out = [newest]
    for position in range(prompt, prompt + tokens - 1):
        newest = (await model.decode(newest, [position] * batch)).argmax(axis=1).tolist()
        out.append(newest)
    return time.perf_counter() - start, np.transpose(out).tolist()


async def further_pass(directory: Path) -> None:
    """What is measured, our side, once: for a trace."""
    config = read_config(directory)
    programs = make_programs(config, config.max_positions, batch=16)
    parts = Checkpoint(directory, config).parts(config.max_positions)
    async with (
        pa.DistributedWorker(programs.both, trace=harness.hook("Qwen3 20M")) as worker,
        Qwen3(worker, programs, parts) as model,
    ):
        for batch, prompt, tokens in ((1, PROMPT, 1 + STEPS), (16, PROMPT, 1 + STEPS), (1, PREFILL, 1)):
            await ours(model, batch, prompt, tokens)


async def compare(other: Other, directory: Path, rounds: int) -> dict[str, Any]:
    """For each question the seconds of both sides in each round, and the median of the ratios."""
    config = read_config(directory)
    programs = make_programs(config, config.max_positions, batch=16)
    results: dict[str, Any] = {name: {"ours": [], "transformers": []} for name in NEEDED}
    parts = Checkpoint(directory, config).parts(config.max_positions)
    async with pa.DistributedWorker(programs.both) as worker, Qwen3(worker, programs, parts) as model:
        for number in range(rounds + 1):
            for name, result in results.items():
                batch = int(name.split()[-1]) if name.startswith("decode") else 1
                # A decode step is what 1 + STEPS tokens take longer than 1 token.
                runs = [(PROMPT, 1), (PROMPT, 1 + STEPS)] if name.startswith("decode") else [(PREFILL, 1)]
                mine = [await ours(model, batch, *run) for run in runs]
                theirs = [other.generate(batch, *run) for run in runs]
                if [out for _, out in mine] != [out for _, out in theirs]:
                    sys.exit(f"{name}: the greedy tokens differ, so the times say nothing")
                if number:
                    steps = STEPS if len(runs) > 1 else 1
                    for side, times in (("ours", mine), ("transformers", theirs)):
                        seconds = times[-1][0] - (times[0][0] if len(runs) > 1 else 0)
                        result[side].append(seconds / steps)
    for result in results.values():
        result["ratio"] = statistics.median(b / a for a, b in zip(result["ours"], result["transformers"], strict=True))
    return results


def answer_of(name: str, result: dict[str, Any]) -> harness.Answer:
    """For the picture."""
    ratios = [theirs / mine for mine, theirs in zip(result["ours"], result["transformers"], strict=True)]
    return harness.Answer(name, "transformers", "× as fast", *NEEDED[name], ratios, "rounds that alternate")


def main() -> None:
    """Print one line for each question; with `--json`, write all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers-python", required=True, metavar="PATH", help="python that has transformers")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of each side (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the rounds there; larger is better")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="then run our side once more and write a Chrome trace of that there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, threadpoolctl.threadpool_limits(options.threads):
        other = Other(options.transformers_python, Path(directory), options.threads)
        try:
            results = asyncio.run(compare(other, Path(directory), options.rounds))
        finally:
            other.close()
        if options.trace:
            harness.trace(options.trace, lambda: asyncio.run(further_pass(Path(directory))))
    for name, result in results.items():
        mine, theirs = (1e3 * statistics.median(result[side]) for side in ("ours", "transformers"))
        must, aim = NEEDED[name]
        print(f"{name:16} ours {mine:7.2f} ms, transformers {theirs:7.2f} ms: {result['ratio']:.2f} × (must {must}, aim {aim})")
    if options.plot:
        harness.plot(options.plot, "times as fast as transformers", [answer_of(name, result) for name, result in results.items()])
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

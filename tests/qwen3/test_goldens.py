"""The direct loop and the worker give what `transformers` gives; `make_goldens.py` made what is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pypto_actors as pa
from examples.qwen3.checkpoint import Checkpoint, load_weights
from examples.qwen3.config import read_config
from examples.qwen3.direct import DirectModel
from examples.qwen3.options import BUNDLED
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.weights import Array
from tests.qwen3.support import CASES, GOLDENS, PLAIN, expected

TOLERANCE = 2e-3


def direct_greedy(directory: Path, prompt: list[int], count: int) -> tuple[list[int], Array]:
    """Greedy tokens and the logits that each was chosen from."""
    config = read_config(directory)
    model = DirectModel(config, load_weights(directory, config, len(prompt) + count))
    logits = [model.prefill(np.array(prompt))]
    tokens = [int(logits[-1].argmax())]
    for position in range(len(prompt), len(prompt) + count - 1):
        logits.append(model.decode_step(np.array([tokens[-1]]), np.array([position]))[0])
        tokens.append(int(logits[-1].argmax()))
    return tokens, np.stack(logits)


@pytest.mark.parametrize("case", CASES)
def test_a_direct_loop_equals_transformers(case: str) -> None:
    prompt, tokens, logits = expected(case)
    mine, my_logits = direct_greedy(GOLDENS / case, prompt, len(tokens))
    assert mine == tokens
    assert np.abs(my_logits - logits).max() < TOLERANCE


def test_the_bundled_model_equals_transformers_over_240_tokens() -> None:
    with np.load(GOLDENS / "tiny-shakespeare.npz") as data:
        prompt, tokens, logits, stride = data["prompt"].tolist(), data["tokens"].tolist(), data["logits"], data["stride"]
    mine, my_logits = direct_greedy(BUNDLED, prompt, len(tokens))
    assert len(tokens) == 240
    assert mine == tokens
    assert np.abs(my_logits[:: int(stride)] - logits).max() < TOLERANCE


@pytest.mark.parametrize("backend", ["inline", "thread"])
@pytest.mark.parametrize("case", CASES)
async def test_the_worker_equals_transformers(case: str, backend: str) -> None:
    prompt, tokens, logits = expected(case)
    config = read_config(GOLDENS / case)
    programs = make_programs(config, len(prompt) + len(tokens))
    parts = Checkpoint(GOLDENS / case, config).parts(programs.positions)
    async with pa.DistributedWorker(programs.both, backend=backend) as worker:
        async with Qwen3(worker, programs, parts) as model:
            got = await model.prefill(prompt)
            for position, token in enumerate(tokens, len(prompt)):
                assert int(got.argmax()) == token
                assert np.abs(got - logits[position - len(prompt)]).max() < TOLERANCE
                got = (await model.decode([token], [position]))[0]
        assert worker.statistics().devices[0].memory_used == 0


async def test_loading_that_fails_frees_what_it_had(tmp_path: Path) -> None:
    config = read_config(GOLDENS / PLAIN)
    programs = make_programs(config, 16)
    parts = Checkpoint(GOLDENS / PLAIN, config).parts(15)
    async with pa.DistributedWorker(programs.both, backend="inline") as worker:
        with pytest.raises(pa.ArgumentValueError):
            await Qwen3(worker, programs, parts).__aenter__()
        assert worker.statistics().devices[0].memory_used == 0


async def test_sequences_of_one_batch_stand_at_their_own_positions() -> None:
    prompt, tokens, _ = expected(PLAIN)
    config = read_config(GOLDENS / PLAIN)
    programs = make_programs(config, 64, batch=3)
    lengths = [2, 5, len(prompt)]
    parts = Checkpoint(GOLDENS / PLAIN, config).parts(64)
    async with pa.DistributedWorker(programs.both, backend="inline") as worker, Qwen3(worker, programs, parts) as model:
        newest = [int((await model.prefill(prompt[:n], slot)).argmax()) for slot, n in enumerate(lengths)]
        batched = [newest]
        for step in range(6):
            newest = [int(row.argmax()) for row in await model.decode(newest, [n + step for n in lengths])]
            batched.append(newest)
    alone = [direct_greedy(GOLDENS / PLAIN, prompt[:n], 7)[0] for n in lengths]
    assert np.array(batched).T.tolist() == alone
    assert alone[2] == tokens[:7]

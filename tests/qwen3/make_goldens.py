"""Make the golden checkpoints and what `transformers` generates from them.

Run it in a throw-away environment, never in the project's own:

    python3 -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers safetensors
    VENV/bin/python tests/qwen3/make_goldens.py

It rewrites `tests/qwen3/goldens/`: a small random checkpoint for each case, with `expected.npz` beside it
(`prompt`, greedy `tokens` (n,), `logits` (n, vocab) that each was chosen from), and `tiny-shakespeare.npz` for the
bundled model (`prompt`, `tokens`, and the `logits` of each `stride`-th token).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent / "goldens"
BUNDLED = Path(__file__).parents[2] / "examples" / "qwen3" / "models" / "tiny-shakespeare"
PROMPT = [5, 17, 88, 3, 3, 20, 41, 64, 9]
TOKENS = 40

BASE: dict[str, Any] = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "eos_token_id": None,
    "bos_token_id": None,
    "tie_word_embeddings": True,
}
# name: (changes of BASE, dtype of the file, shard size, dialect of config.json)
CASES: dict[str, tuple[dict[str, Any], torch.dtype, str, str]] = {
    "gqa-tied-f32": ({}, torch.float32, "1GB", "transformers-5"),
    "wide-heads-untied-bf16": (
        {"head_dim": 32, "tie_word_embeddings": False, "num_attention_heads": 3, "num_key_value_heads": 1},
        torch.bfloat16,
        "1GB",
        "released",
    ),
    "shards-untied-f16": ({"tie_word_embeddings": False, "num_hidden_layers": 3}, torch.float16, "16KB", "released"),
    "large-eps-odd-theta-bf16": (
        {"rms_norm_eps": 0.2, "rope_parameters": {"rope_type": "default", "rope_theta": 77.7}, "head_dim": 14},
        torch.bfloat16,
        "1GB",
        "transformers-5",
    ),
    "odd-theta-released-f16": (
        {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 333.25}},
        torch.float16,
        "1GB",
        "released",
    ),
    "bias-mqa-bf16": (
        {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 16},
        torch.bfloat16,
        "1GB",
        "transformers-5",
    ),
    "bias-no-gqa-shards-bf16": (
        {"attention_bias": True, "num_key_value_heads": 4, "tie_word_embeddings": False},
        torch.bfloat16,
        "14KB",
        "released",
    ),
}


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Give norms and biases values that matter; `transformers` makes them ones and zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(0.25 * noise)


def to_released_dialect(path: Path) -> None:
    """Rewrite `config.json` as the released Qwen3 models have it."""
    data = json.loads(path.read_text())
    data["torch_dtype"] = data.pop("dtype")
    data["rope_theta"] = data.pop("rope_parameters")["rope_theta"]
    data["rope_scaling"] = None
    data.pop("layer_types", None)
    path.write_text(json.dumps(data, indent=2) + "\n")


def generate(directory: Path, prompt: list[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens (count,) and their logits (count, vocab), computed in float32 without stopping at an EOS."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, len(prompt) :].numpy(), torch.cat(out.logits).float().numpy()


def main() -> None:
    """Write everything anew; seeded, so that a second run writes the same weights."""
    shutil.rmtree(HERE, ignore_errors=True)
    for seed, (name, (changes, dtype, shard, dialect)) in enumerate(CASES.items()):
        directory = HERE / name
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**{**BASE, **changes}))
        randomize(model, torch.Generator().manual_seed(seed))
        model.to(dtype).save_pretrained(directory, max_shard_size=shard)
        if dialect == "released":
            to_released_dialect(directory / "config.json")
        tokens, logits = generate(directory, PROMPT, TOKENS)
        np.savez_compressed(directory / "expected.npz", prompt=PROMPT, tokens=tokens, logits=logits)
        print(name, tokens[:8], f"{np.abs(logits).max():.1f}")
    prompt = AutoTokenizer.from_pretrained(BUNDLED).encode("First Citizen:")
    tokens, logits = generate(BUNDLED, prompt, 240)
    stride = 24
    np.savez_compressed(HERE / "tiny-shakespeare.npz", prompt=prompt, tokens=tokens, logits=logits[::stride], stride=stride)


if __name__ == "__main__":
    main()

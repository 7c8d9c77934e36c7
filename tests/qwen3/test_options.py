"""The command line, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.qwen3.errors import OptionError, PromptError
from examples.qwen3.options import BUNDLED, parse


def test_defaults_are_greedy_on_the_bundled_model() -> None:
    options = parse(["--prompt", "x"])
    assert (options.model, options.temperature, options.backend) == (BUNDLED, 0, "thread")
    assert parse(["--prompt-ids", "1, 2,3"]).prompt_ids == [1, 2, 3]


def test_asking_for_top_k_or_top_p_asks_for_draws() -> None:
    assert parse(["--prompt", "x", "--top-k", "5"]).temperature == 1
    assert parse(["--prompt", "x", "--top-p", "0.5"]).temperature == 1
    assert parse(["--prompt", "x", "--top-k", "5", "--temperature", "0"]).temperature == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "hot"], "--temperature 'hot'"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--top-k", "-1"], "--top-k -1"),
        (["--top-k", "2.5"], "--top-k '2.5'"),
        (["--top-p", "0"], "--top-p 0"),
        (["--top-p", "1.5"], "--top-p 1.5"),
        (["--seed", "-4"], "--seed -4"),
        (["--seed", "x"], "--seed 'x'"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--max-tokens", "9" * 5000], "--max-tokens"),
        (["--backend", "gpu"], "--backend 'gpu'"),
        (["--max-tok", "3"], "--max-tok"),
        (["--model"], "--model"),
        (["--prompt-ids", "1"], "not allowed with argument"),
        (["extra"], "extra"),
    ],
)
def test_a_bad_value_is_named_in_one_line(more: list[str], named: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(["--prompt", "x", *more])
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_prompt_is_needed() -> None:
    with pytest.raises(OptionError, match="--prompt"):
        parse([])


@pytest.mark.parametrize("text", ["a", "1,,2", "1,x", "1.5"])
def test_ids_that_are_none_are_named(text: str) -> None:
    with pytest.raises(PromptError, match="is no token id"):
        parse(["--prompt-ids", text])


def test_a_target_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "nowhere" / "x.npz", tmp_path / ("x" * 300)):
        with pytest.raises(OptionError, match="--save-logits"):
            parse(["--prompt", "x", "--save-logits", str(target)])
    parse(["--prompt", "x", "--save-logits", str(tmp_path / "x.npz")])
    assert list(tmp_path.iterdir()) == []

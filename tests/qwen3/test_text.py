"""Text comes out as it is made, and never with half a character."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.qwen3 import text
from examples.qwen3.errors import CheckpointError, PromptError
from examples.qwen3.options import BUNDLED
from examples.qwen3.text import REPLACEMENT, TextStream, Tokenizer

LONG = "To be, or not to be: «ça va» — naïve 😀 日本語. " * 5


def pieces_of(ids: list[int]) -> list[str]:
    stream = TextStream(Tokenizer(BUNDLED))
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("written", ["First Citizen:\nSpeak, speak.", "€", "a😀b", LONG, "  two  spaces ", "\n\n"])
def test_pieces_add_up_and_hold_only_whole_characters(written: str) -> None:
    pieces = pieces_of(Tokenizer(BUNDLED).encode(written))
    assert "".join(pieces) == written
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_text_is_not_held_back_longer_than_a_character_needs() -> None:
    ids = Tokenizer(BUNDLED).encode("ab😀c")
    pieces = pieces_of(ids)
    assert pieces[0] == "ab" or pieces[:2] == ["a", "b"]
    assert pieces[-2:] == ["c", ""]


def test_bytes_that_never_make_a_character_come_out_as_replacements() -> None:
    emoji = Tokenizer(BUNDLED).encode("😀")
    plain = Tokenizer(BUNDLED).encode("plain")
    assert "".join(pieces_of(emoji[:2])) == REPLACEMENT
    assert "".join(pieces_of([*emoji[:2], *plain])) == REPLACEMENT + "plain"
    assert "".join(pieces_of(emoji[-1:] * 40 + plain)) == REPLACEMENT * 40 + "plain"


def test_special_tokens_are_not_shown() -> None:
    assert "".join(pieces_of([0, *Tokenizer(BUNDLED).encode("Speak"), 0])) == "Speak"


def test_a_prompt_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(PromptError, match="UTF-8"):
        Tokenizer(BUNDLED).encode("\udcff")


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
        Tokenizer(tmp_path)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "tokenizers", None)
    with pytest.raises(CheckpointError, match="pip install tokenizers"):
        Tokenizer(BUNDLED)

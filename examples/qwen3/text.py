"""Text to ids and back, by the checkpoint's `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

from examples.qwen3.errors import CheckpointError, PromptError

try:
    import tokenizers
except ImportError:
    tokenizers = None  # type: ignore[assignment]

# What a decoder gives for bytes that are no whole character (yet).
REPLACEMENT = "\ufffd"
# Tokens that are decoded again for each new one, at most.
WINDOW = 16


class Tokenizer:
    """The tokenizer of a directory. Raises `CheckpointError` where the file or the package is missing or damaged."""

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if tokenizers is None:
            raise CheckpointError("--prompt needs the package tokenizers; pip install tokenizers, or use --prompt-ids")
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; download it too, or give the prompt by --prompt-ids")
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing more special
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: damaged ({reason}); download the file again") from None
        self._inner.no_truncation()
        self._inner.no_padding()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises `PromptError` for what is no Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError("the prompt is no valid UTF-8; give it in UTF-8, or by --prompt-ids") from None
        return list(self._inner.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return str(self._inner.decode(ids, skip_special_tokens=True))


class TextStream:
    """Text piece by piece: what ends inside a character is held back until the character is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that `token` completes, often a word, sometimes nothing."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip(REPLACEMENT)
        piece, self._shown = whole[self._shown :], max(self._shown, len(whole))
        if len(self._ids) > WINDOW and len(whole) == len(text):
            self._ids = self._ids[-1:]
            self._shown = len(self._tokenizer.decode(self._ids))
        return piece

    def finish(self) -> str:
        """What was held back to the end, as replacement characters."""
        text = self._tokenizer.decode(self._ids)
        piece, self._shown = text[self._shown :], len(text)
        return piece

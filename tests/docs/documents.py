"""The documents as text, and what is taken out of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOUSE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return _BLOCK.findall(text)


def blocks_in(text: str, language: str) -> list[str]:
    return [content for name, content in blocks(text) if name == language]


def section(text: str, title: str) -> str:
    """What stands under a `##` title."""
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, without heads and rulers."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rulers = [number for number, cells in enumerate(lines) if all(set(cell) <= set("-:") and cell for cell in cells)]
    return [cells for number, cells in enumerate(lines) if number not in rulers and number + 1 not in rulers]

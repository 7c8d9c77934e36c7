"""Files with programs, for the tests of files."""

from __future__ import annotations

from pathlib import Path

SOURCE = """
from typing import Annotated
import numpy as np
import pypto_actors as pa

SCALE = 2

def twice(x):
    return x * SCALE

@pa.kernel
def double(x: pa.InOutArray) -> None:
    x[...] = twice(x)

@pa.program(name="doubler", stage="decode")
def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(("n",), np.int64)]) -> None:
    orch.submit(double, x)
"""

# two programs in one file
TWO = SOURCE + SOURCE[SOURCE.index("@pa.program") :].replace("doubler", "second").replace("def program", "def second_program")


def write(directory: Path, source: str, name: str = "model.py") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / name
    file.write_text(source)
    return file

"""Programs whose annotations are text, and name what only a function knows."""

from __future__ import annotations

from typing import Annotated

import numpy as np

import pypto_actors as pa


def made_in_a_function(size: int) -> pa.Program:
    shape = (size,)
    Count = Annotated[int, pa.Static()]

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.In(shape, np.float32)], n: Count) -> None: ...

    return program


def kernel_in_a_function(size: int) -> pa.Kernel:
    class Sizes:
        width = size

    @pa.kernel
    def kernel(x: Annotated[np.ndarray, pa.Out((Sizes.width,), np.float32)]) -> None: ...

    return kernel

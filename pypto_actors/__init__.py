"""An asyncio actor-model scheduler that dispatches programs onto shared, simulated NPU devices."""

from pypto_actors.bound import BoundProgram
from pypto_actors.compiled import DistributedCompiledProgram
from pypto_actors.config import DistributedConfig
from pypto_actors.errors import (
    AmbiguousProgramError,
    ArgumentTypeError,
    ArgumentValueError,
    DeadlineExceededError,
    DependencyFailedError,
    DeviceFailedError,
    DeviceOutOfMemoryError,
    InternalError,
    KernelError,
    PlacementError,
    ProgramError,
    ProgramLoadError,
    ProgramMismatchError,
    PyptoActorsError,
    QueueFullError,
    RunCancelledError,
    StaleTensorError,
    UnknownProgramError,
    WorkerClosedError,
)
from pypto_actors.handle import DistributedRunHandle, RunResult
from pypto_actors.lifecycle import RunState
from pypto_actors.loading import load_program
from pypto_actors.parameters import In, InArray, InOut, InOutArray, Out, OutArray, Parameter, Static
from pypto_actors.policy import Arrival, Item, PhaseFair, Policy, PriorityOrder, View
from pypto_actors.program import Kernel, Program, kernel, program
from pypto_actors.recording import Orchestrator
from pypto_actors.refs import TensorRef, WindowRef
from pypto_actors.registration import RegistrationHandle
from pypto_actors.statistics import DeviceStatistics, Statistics
from pypto_actors.values import DeviceTensor, StackedDeviceTensor
from pypto_actors.worker import DistributedWorker

__all__ = [
    "AmbiguousProgramError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "Arrival",
    "BoundProgram",
    "DeadlineExceededError",
    "DependencyFailedError",
    "DeviceFailedError",
    "DeviceOutOfMemoryError",
    "DeviceStatistics",
    "DeviceTensor",
    "DistributedCompiledProgram",
    "DistributedConfig",
    "DistributedRunHandle",
    "DistributedWorker",
    "In",
    "InArray",
    "InOut",
    "InOutArray",
    "InternalError",
    "Item",
    "Kernel",
    "KernelError",
    "Orchestrator",
    "Out",
    "OutArray",
    "Parameter",
    "PhaseFair",
    "PlacementError",
    "Policy",
    "PriorityOrder",
    "Program",
    "ProgramError",
    "ProgramLoadError",
    "ProgramMismatchError",
    "PyptoActorsError",
    "QueueFullError",
    "RegistrationHandle",
    "RunCancelledError",
    "RunResult",
    "RunState",
    "StackedDeviceTensor",
    "StaleTensorError",
    "Static",
    "Statistics",
    "TensorRef",
    "UnknownProgramError",
    "View",
    "WindowRef",
    "WorkerClosedError",
    "kernel",
    "load_program",
    "program",
]

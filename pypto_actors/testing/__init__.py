"""For tests, also the users' own: a loop whose time is virtual, a loop that picks among the ready by a seed.

anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop})

with asyncio.Runner(loop_factory=functools.partial(SeededLoop, 7)) as runner:
    runner.run(main())

def pytest_asyncio_loop_factories(config, item):  # in conftest.py, for pytest-asyncio
    return {"virtual": VirtualTimeLoop}
"""

from pypto_actors.testing.deadlock import DeadlockError
from pypto_actors.testing.faults import kill_device
from pypto_actors.testing.replaying import ReplayError, replay
from pypto_actors.testing.seeded import SeededLoop
from pypto_actors.testing.virtual_time import VirtualTimeLoop

__all__ = ["DeadlockError", "ReplayError", "SeededLoop", "VirtualTimeLoop", "kill_device", "replay"]

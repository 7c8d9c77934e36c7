"""Functions by value: kernels of test files, scripts and closures run in processes that cannot import them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import pickle
import sys
import threading
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from pypto_actors.sources import is_installed

_lock = threading.Lock()  # the registration of modules is one for the whole of Python


def check_cloudpickle() -> None:
    """Is it there? An `ImportError` says how to get it. Nothing is loaded yet."""
    if importlib.util.find_spec("cloudpickle") is None:
        raise ImportError("backend='process' needs cloudpickle: pip install 'pypto_actors[process]'")


def ship(function: Callable[..., Any]) -> bytes:
    """A function as bytes that `pickle.loads` makes a function again.

    What belongs to Python or to an installed package goes by name, all else by value.

    Raises:
        TypeError: it uses something that cannot cross, such as a lock or an open file.
    """
    buffer = io.BytesIO()
    with _lock:
        pickler = _pickler()(buffer)
        try:
            pickler.dump(_bare(function))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            name = getattr(function, "__name__", repr(function))
            raise TypeError(f"kernel {name!r} cannot cross to the process of a device: {error}") from error
        finally:
            pickler.end()
    return buffer.getvalue()


def _bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without annotations, which nobody needs to call it and which name much."""
    if not isinstance(function, FunctionType) or not function.__annotations__:
        return function
    bare = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    bare.__kwdefaults__ = function.__kwdefaults__
    bare.__module__ = function.__module__
    bare.__qualname__ = function.__qualname__
    bare.__dict__.update({name: value for name, value in function.__dict__.items() if name != "__wrapped__"})
    return bare


@functools.cache
def _installed(module: str) -> bool:
    return is_installed(module)


@functools.cache
def _pickler() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Has cloudpickle take functions and classes of modules that are not installed by value, as it comes to them."""

        def __init__(self, file: io.BytesIO) -> None:
            super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
            self._registered: list[Any] = []

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, (FunctionType, type)):
                name = getattr(value, "__module__", None)
                module = sys.modules.get(name) if isinstance(name, str) else None
                if module is not None and not _installed(module.__name__) and module not in self._registered:
                    known = cloudpickle.list_registry_pickle_by_value()
                    if module.__name__ not in known and module.__name__ != "__main__":
                        cloudpickle.register_pickle_by_value(module)
                        self._registered.append(module)
            elif isinstance(value, ModuleType) and value.__name__ in sys.modules:
                return importlib.import_module, (value.__name__,)  # there is the same path there; a copy would be another module
            return super().reducer_override(value)

        def end(self) -> None:
            for module in self._registered:
                cloudpickle.unregister_pickle_by_value(module)

    return Pickler

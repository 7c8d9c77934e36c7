"""Whoever looks the public names up (`help`, a notebook, a page of documentation) finds their signatures and a text."""

from __future__ import annotations

import inspect
import pydoc
import typing

import pytest

import pypto_actors as pa
import pypto_actors.testing
import pypto_actors.tracing

MODULES = (pa, pypto_actors.testing, pypto_actors.tracing)
PUBLIC = sorted({(module.__name__, name) for module in MODULES for name in module.__all__})


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_what_is_public_tells_of_itself(module: str, name: str) -> None:
    value = getattr(next(each for each in MODULES if each.__name__ == module), name)
    assert pydoc.render_doc(value)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    assert value.__doc__
    typing.get_type_hints(value)
    if not issubclass(value, BaseException) if inspect.isclass(value) else True:
        inspect.signature(value)
    members = vars(value).items() if inspect.isclass(value) else ()
    for key, member in members:
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and not key.startswith("_"):
            typing.get_type_hints(function)
            assert function.__doc__, f"{name}.{key} has no docstring"

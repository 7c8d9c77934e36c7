"""ARCHITECTURE.md is held against the code: rooms, messages, the table of states, and every name and link."""

from __future__ import annotations

import re
import typing

import pytest

from pypto_actors import coordinator, lifecycle, messages, system
from pypto_actors.lifecycle import TABLE, RunEvent, RunState
from tests.docs.documents import DOCUMENTS, HOUSE, ROOT, rows, section

PACKAGE = ROOT / "pypto_actors"


def test_every_module_has_one_room() -> None:
    named = [name for cells in rows(section(HOUSE, "Rooms, from the ground up")) for name in re.findall(r"`([\w/]+)`", cells[0])]
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    rooms = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(named) == sorted(modules | rooms)


def test_the_table_of_messages_is_that_of_the_code() -> None:
    receivers = {"coordinator": messages.ToCoordinator, "device": messages.ToDevice, "host": messages.ToHost}
    expected = [(kind.__name__, to) for to, kinds in receivers.items() for kind in typing.get_args(kinds) or (kinds,)]
    table = rows(section(HOUSE, "Messages"))
    assert [(name.strip("`"), to) for name, to, _ in table] == expected
    assert all(says for *_, says in table)
    bases = (messages.Message, messages.Request)
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, messages.Message)]
    assert {kind.__name__ for kind in kinds if kind not in bases} == {name for name, _ in expected}


def test_the_table_of_states_is_that_of_the_code() -> None:
    text = section(HOUSE, "The life of a dispatch")
    head = "| state | " + " | ".join(event.name.lower().replace("_", " ") for event in RunEvent) + " |"
    assert head in text
    expected = []
    for state in RunState:
        ways = TABLE.get(state, {})
        expected.append([state.value, *(ways[event].value if event in ways else "" for event in RunEvent)])
    assert rows(text) == expected


def test_the_names_of_classes_exist() -> None:
    owners = {"Coordinator": coordinator.Coordinator, "System": system.System, "Failure": lifecycle.Failure}
    found = re.findall(rf"`({'|'.join(owners)})\.(\w+)`", HOUSE)
    assert len(found) >= 3
    assert not [f"{owner}.{name}" for owner, name in found if not hasattr(owners[owner], name)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s#]+)\)", text)
    assert not [target for target in targets if "://" not in target and not (ROOT / target).exists()]

"""Documentation stays true: public names are documented, documented names exist, rooms are described."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import innerloop

ROOT = Path(__file__).parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(innerloop.__path__, "innerloop."))


@pytest.mark.parametrize("name", innerloop.__all__)
def test_public_name_is_documented(name):
    value = getattr(innerloop, name)
    if not isinstance(value, dict):
        assert value.__doc__
        assert value.__doc__.strip()


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_module_opens_with_its_idea(name):
    assert importlib.import_module(name).__doc__


def test_every_room_is_described():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {name.split(".")[1] for name in MODULES} - {"__main__"}
    assert {room for room in rooms if f"`{room}`" not in text and f"`{room}/`" not in text} == set()


def test_notation_names_exist():
    """Names like ``Problem.context_inputs`` in the dictionary are attributes of public classes."""
    text = (ROOT / "docs" / "notation.md").read_text()
    modules = [importlib.import_module(name) for name in MODULES if not name.endswith("__main__")]
    for owner, field in re.findall(r"`([A-Z]\w+)\.(\w+)", text):
        (cls,) = {getattr(module, owner) for module in modules if hasattr(module, owner)}
        fields = set(getattr(cls, "__dataclass_fields__", ())) | set(getattr(cls, "_fields", ())) | set(dir(cls))
        assert field in fields, f"{owner}.{field} is in docs/notation.md but not in the code"

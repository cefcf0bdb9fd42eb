"""Imports point upward in the list of rooms only."""

import ast
from pathlib import Path

import innerloop

ROOMS = [
    "checks",
    "keys",
    "problem",
    "tasks",
    "tokens",
    "models",
    "algorithms",
    "constructions",
    "exact",
    "kernels",
    "training",
    "store",
    "runs",
    "analysis",
    "claims",
    "plots",
    "experiments",
    "report",
    "cli",
]
SOURCE = Path(innerloop.__file__).parent


def room_of(module: str) -> str | None:
    """The room of ``innerloop.room.part``; None for the package itself and its entry point, which may import all."""
    parts = module.split(".")
    return None if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def imported_modules(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Every ``innerloop...`` name that a module's source imports, inside functions and type-checking blocks too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            else:
                base = node.module
            # `from innerloop import keys` imports a room; `from innerloop import __version__` does not.
            found |= {f"{base}.{alias.name}" if base == "innerloop" else base for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name for name in found if name.split(".")[0] == "innerloop" and not name.endswith(".__version__")}


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    room = room_of(module)
    if room is None:
        return []
    if room not in ROOMS:
        return [f"{module} is in no room of the list; add {room!r} to the list (and to the design) first"]
    found = []
    for name in sorted(imported_modules(source, module, is_package=is_package)):
        other = room_of(name)
        if other is None:
            found.append(f"{module} imports the whole package; import from a room instead")
        elif other not in ROOMS:
            found.append(f"{module} imports {name}, which is in no room of the list")
        elif ROOMS.index(other) > ROOMS.index(room):
            found.append(f"{module} imports {name}, but {other} comes after {room}")
    return found


def test_imports_point_upward():
    found, seen = [], set()
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(path.read_text(encoding="utf-8"), module, is_package=is_package)
        seen.add(room_of(module))
    assert not found, "\n".join(found)
    assert {"keys", "tasks", "models", "kernels"} <= seen  # the walk did find the package


def test_checker_catches_violations():
    downward = {
        "import innerloop.training": "innerloop.models.stack",
        "from innerloop.training.loop import train": "innerloop.models.stack",
        "def f():\n    from innerloop.algorithms import Ridge": "innerloop.tasks.task",
        "from innerloop import kernels": "innerloop.exact.spectrum",
        "from ..models import StackConfig": "innerloop.tokens.encode",
        "import importlib\nimportlib.import_module('innerloop.cli')": "innerloop.report.page",
        "import innerloop": "innerloop.tasks.task",
        "import jax": "innerloop.attic",
        "from innerloop.attic import x": "innerloop.cli",
    }
    for source, module in downward.items():
        assert len(violations(source, module)) == 1, (source, module)
    assert violations("from .loop import train\nfrom ..cli import main", "innerloop.training", is_package=True) == [
        "innerloop.training imports innerloop.cli, but cli comes after training"
    ]


def test_checker_accepts_upward_imports():
    upward = {
        "import jax, innerloop.keys": "innerloop.tasks.task",
        "from innerloop.models import StackConfig": "innerloop.models.transformer",
        "from .stack import StackConfig": "innerloop.models.transformer",
        "from innerloop import __version__": "innerloop.store.environment",
        "from innerloop.cli import main": "innerloop.__main__",
    }
    for source, module in upward.items():
        assert violations(source, module) == []

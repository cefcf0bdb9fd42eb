"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import innerloop


def module_names():
    """All modules; a package that cannot be imported is listed itself, and fails below."""
    yield "innerloop"
    for info in pkgutil.walk_packages(innerloop.__path__, "innerloop.", onerror=lambda name: None):
        if not info.name.endswith(".__main__"):
            yield info.name


def source_of(name):
    base = Path(innerloop.__file__).parent.joinpath(*name.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@pytest.mark.parametrize("name", list(module_names()))
def test_examples(name):
    if not source_of(name).exists():
        pytest.skip("the file is gone")
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report = []
    attempted = 0
    for test in finder.find(module, name):
        result = runner.run(test, out=report.append)
        attempted += result.attempted
        assert result.failed == 0, "".join(report)
    # The finder skips what it cannot attribute to the module: count, so that no example is passed over in silence.
    assert attempted == source_of(name).read_text(encoding="utf-8").count(">>> ")

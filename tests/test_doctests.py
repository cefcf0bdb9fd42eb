"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import innerloop

ROOT = Path(innerloop.__file__).parent
SOURCES = {
    ".".join(["innerloop", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__main__.py"
}


@pytest.mark.parametrize("name", SOURCES)
def test_examples(name):
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
    assert attempted == SOURCES[name].read_text(encoding="utf-8").count(">>> ")

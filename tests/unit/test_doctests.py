"""Every example in a docstring of herl is run, and shows what the code returns."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import herl

ROOT = Path(herl.__file__).parent
EXAMPLES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): text.count(
        ">>> "
    )
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in (text := path.read_text())
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_shows_what_the_code_returns(name):
    module = import_module(name)
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    # An example where doctest does not look, in a function within a function say, would never be run.
    assert sum(len(test.examples) for test in found) == EXAMPLES[name], inspect.getsourcefile(module)
    report: list[str] = []
    failed = sum(doctest.DocTestRunner().run(test, out=report.append).failed for test in found)
    assert not failed, "".join(report)


def test_there_are_examples():
    assert len(EXAMPLES) > 30

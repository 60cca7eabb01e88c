"""What is said where the package `verifiers` is missing or has another interface."""

import sys
from types import ModuleType

import pytest

from herl.errors import ConfigError
from herl.verifiers.loading import loaded


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"pip install 'herl\[verifiers\]'"),
        (ModuleType("verifiers"), "expected verifiers 0.3 .* got another"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_imported(monkeypatch, found, message):
    monkeypatch.setitem(sys.modules, "verifiers", found)
    with pytest.raises(ConfigError, match=message):
        loaded("wordle")

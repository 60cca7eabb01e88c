"""Types that are read from source are those that an import shows."""

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from herl.config import conf_dir
from herl.config.check import _hints
from herl.config.signatures import argument_type
from herl.targets import located

TARGETS = sorted(
    {
        target
        for path in conf_dir().rglob("*.yaml")
        for target in re.findall(
            r"_target_: ((?:herl|lightning|torch)\.[\w.]+)$", path.read_text(), flags=re.MULTILINE
        )
        if "wandb" not in target.lower() and "mlflow" not in target.lower()  # packages that may be missing
    }
)
VALUES = ("abc", 1, 0.5, True, None, -1, "auto", ["a"])


def takes(hint, value):
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("target", TARGETS)
def test_no_value_is_refused_that_the_signature_takes(target):
    found = located("target", target)
    for name, hint in _hints(found).items():
        read = argument_type(target, name)
        if inspect.isclass(hint) and hint.__module__ not in ("builtins", "pathlib"):
            continue  # an object, which no value on the command line is
        try:
            expected = {repr(value): takes(hint, value) for value in VALUES}
        except Exception:  # a type that pydantic cannot check is left to the check after the import
            continue
        got = {repr(value): takes(read, value) for value in VALUES}
        assert not [value for value, taken in expected.items() if taken and not got[value]], name


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("torch.optim.AdamW", "lr", "abc"),
        ("lightning.Trainer", "max_epochs", "two"),
        ("lightning.Trainer", "precision", "fp8"),
        ("herl.types.Sampling", "temperature", "warm"),
        ("herl.rollout.stages.RolloutPlan", "attempts_per_prompt", "many"),
        ("herl.module.HerlModule", "schedule", "cosin"),
        ("herl.module.HerlModule", "micro_batch_tokens", "lots"),
        ("herl.callbacks.Alarms", "patience", None),
        ("herl.models.lora.Lora", "rank", 0.5),
        ("herl.judge.JudgeRunner", "concurrency", "x"),
        ("herl.update.loss.policy.PolicyLoss", "kl_coef", "x"),
    ],
)
def test_a_mistyped_value_is_refused_by_what_the_source_says(target, name, value):
    assert not takes(argument_type(target, name), value)


def test_nothing_is_imported():
    code = (
        "import sys; from herl.config.signatures import argument_type\n"
        "for one in (('torch.optim.AdamW', 'lr'), ('lightning.Trainer', 'devices')): argument_type(*one)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "target", ["herl.no_such.Thing", "no_such_package.Thing", "herl.types.NoSuch", "json.dumps"]
)
def test_what_cannot_be_read_takes_everything(target):
    assert argument_type(target, "anything") is Any

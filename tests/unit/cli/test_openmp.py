"""The command line's OpenMP settings, in separate processes because libraries read them when loaded."""

import json
import os
import subprocess
import sys

import pytest

from herl.cli.openmp import SPINS

pytestmark = pytest.mark.integration
SHOW = """
import json, os, sys
sys.argv = ["herl", "--version"]
from herl.cli.main import main
main()
names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
print(json.dumps([{name: os.environ.get(name) for name in names}, "torch" in sys.modules, "vllm" in sys.modules]))
"""


def set_by_the_command_line(**given):
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, env=inherited | given
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_threads_spin_only_briefly_from_before_torch_is_loaded():
    variables, torch_loaded, vllm_loaded = set_by_the_command_line()
    assert variables == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": SPINS}
    assert not torch_loaded
    assert not vllm_loaded


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}])
def test_what_a_user_set_stays_alone(given):
    variables, _, _ = set_by_the_command_line(**given)
    assert {name: value for name, value in variables.items() if value is not None} == given

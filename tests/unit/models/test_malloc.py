import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration
SCRIPT = """
import resource, sys, torch
from herl.models.malloc import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [torch.ones(2**22) for _ in range(8)]  # 16 MiB each, 32 768 pages in all
    del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
keep_freed_memory()
faults()
print(sorted(faults() for _ in range(5))[2])  # the median: a busy machine may take pages away once
"""


def faults(**environment):
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again():
    before, after = faults()
    assert before > 10_000
    assert after < 100


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_thresholds_of_the_user_are_kept(name):
    before, after = faults(**{name: "131072"})
    assert before > 10_000
    assert after > 10_000

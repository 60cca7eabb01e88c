"""What herl is on one GPU: right or not, how fast, how much memory. One table, JSON beside it.

    python tools/bench/gpu [--minutes 8] [--only rows update-0.5b ...] [--out gpu.json] [--tokenizer PATH]
    python tools/bench/gpu --list

Sections are processes of their own, each with its own limit of seconds; one that fails, or takes too long, stops
no other, and what it had measured by then stands in the table. Sections that time nothing run side by side,
then the others one after the other, alone on the card; each imports its packages while the one before it is
measured. Models are random in the shapes of real ones, with the tokenizer of SmolLM2 (or the tiny model's): no hub
is asked. Where vLLM or TRL is not installed, the table says so.

Without a GPU all sections run in small on the CPU. That tries their logic, and the table says that nothing
was measured.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this folder as the package `gpu`, workload beside it

from gpu.driver import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__)

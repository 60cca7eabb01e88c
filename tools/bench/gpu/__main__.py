"""What herl is on one GPU: right or not, how fast, how much memory. One table, JSON beside it.

    python tools/bench/gpu [--minutes 8] [--only rows update-0.5b ...] [--out gpu.json] [--tokenizer PATH]
    python tools/bench/gpu --list

Each section is a process with its own time limit. If it fails or runs out of time, the others go on, and the
table keeps what it had measured by then. Sections that time nothing run side by side; the others follow one
by one, alone on the card, each importing its packages while the previous one is being measured. Models are
random, in the shapes of real ones, with SmolLM2's tokenizer (or the tiny model's): no hub is asked. Where
vLLM or TRL is not installed, the table says so.

Without a GPU all sections run in small on the CPU. That tries their logic, and the table says that nothing
was measured.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this folder as the package `gpu`, workload beside it

from gpu.driver import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__)

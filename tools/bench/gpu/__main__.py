"""Measures herl on one GPU: correctness, speed, memory. Prints one table, and writes it as JSON.

    python tools/bench/gpu [--minutes 15] [--only rows update-0.5b ...] [--out gpu.json] [--tokenizer PATH]
    python tools/bench/gpu --list

Each section is a process with its own time limit. If it fails or runs out of time, the others continue, and
the table keeps the figures it had measured by then. Sections that time nothing run side by side; the others
follow one by one, alone on the GPU, each importing its packages while the previous one is measured. Models
are random, with the shapes of real ones and SmolLM2's tokenizer (or the tiny model's), so no hub is needed.
If vLLM or TRL is not installed, the table says so.

Without a GPU, all sections run at a small size on the CPU. That only tests their logic, and the table says
that nothing was measured.
"""

import sys
from pathlib import Path

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # this folder becomes the package `gpu`, next to workload

from gpu.driver import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__)

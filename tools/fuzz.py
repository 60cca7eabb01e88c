"""Tries random rows, configurations and judge replies; each must result in a valid object or a HerlError.

Any other exception ends the run with its traceback.

python tools/fuzz.py --cases 10000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.fuzz import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, ended in run(arguments.cases, arguments.seed).items():
        counts = ", ".join(f"{count} {result}" for result, count in ended.most_common())
        print(f"{name}: {sum(ended.values())} cases: {counts}")


if __name__ == "__main__":
    main()

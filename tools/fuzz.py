"""Tries random rows, configurations, targets, patterns, answers, judge replies, endpoints and run folders.

Each case must end in a value, in an abstention with its cause or in a HerlError, within its time limit, and
must start no program. The first that does not ends the program with
its traceback and its smallest form.

python tools/fuzz.py --cases 10000
python tools/fuzz.py --cases 100000 --kinds answers endpoints
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.fuzz import KINDS, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| kind | cases | slowest | minutes | how they ended |\n|---|---|---|---|---|", flush=True)
    for kind in arguments.kinds:
        started = time.perf_counter()
        outcome = run(arguments.cases, arguments.seed, [kind])[kind]
        minutes = (time.perf_counter() - started) / 60
        counts = ", ".join(f"{count} {result}" for result, count in outcome.counts.most_common())
        print(
            f"| {kind} | {outcome.counts.total()} | {outcome.slowest:.2f} s | {minutes:.1f} | {counts} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

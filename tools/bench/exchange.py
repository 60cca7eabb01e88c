"""Measures how ranks exchange the judged answers of a batch: as records, and with their tokens as arrays.

    python tools/bench/exchange.py [--answers 16384] [--tokens 1000] [--ranks 2] [--prompt 200] [--criteria 5]

Each rank is a process on this machine and has its share of --answers, with texts of 4 characters per token.
MB: what one rank sends and receives, pickled. seconds: of the slowest rank. GiB: growth of a rank's memory
by what it received, and at the peak of the exchange.
"""

import gc
import multiprocessing
import pickle
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from workload import arguments_of, report, write

from herl.distributed import gather
from herl.rollout.exchange import _packed, exchanged
from herl.types import Judged, Judgement, Rollout, SampleRequest, Sampling, Verdict


def answers_of(rank: int, count: int, tokens: int, prompt: int, criteria: int) -> list[Judged]:
    draw = random.Random(rank)
    judged = []
    for number in range(count):
        if number % 64 == 0:
            request = SampleRequest(
                task_id=f"task-{rank}-{number}",
                group_id=f"0:0:0:task-{rank}-{number}",
                prompt_ids=tuple(draw.choices(range(1000, 100_000), k=prompt)),
                n=64,
                sampling=Sampling(),
                seed=0,
            )
        rollout = Rollout.answering(
            request,
            number % 64,
            token_ids=tuple(draw.choices(range(1000, 100_000), k=tokens)),
            logprobs=tuple(-draw.random() for _ in range(tokens)),
            text=draw.randbytes(2 * tokens).hex(),
        )
        verdicts = tuple(
            Verdict(criterion_id=f"c{place}", met=draw.random() < 0.5, reason=f"reason {number}/{place}")
            for place in range(criteria)
        )
        judgement = Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=0.5, usage={"seconds": 0.1})
        judged.append(Judged(rollout=rollout, judgement=judgement))
    return judged


def resident_gib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


WAYS: dict[str, tuple[Callable[[Sequence[Judged]], Any], Callable[[Sequence[Judged]], Any]]] = {
    "records": (gather, lambda own: own),
    "arrays": (exchanged, _packed),
}


def _rank(rank: int, ranks: int, way: str, store: str, sizes: Sequence[int], found: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    answers, *rest = sizes
    own = answers_of(rank, answers // ranks, *rest)
    exchange, sent = WAYS[way]
    megabytes = len(pickle.dumps(sent(own))) / 1e6
    gc.collect()
    before = resident_gib("VmRSS")
    dist.barrier()
    started = time.perf_counter()
    everything = exchange(own)
    seconds = time.perf_counter() - started
    after, peak = resident_gib("VmRSS"), resident_gib("VmHWM")
    found.put((seconds, megabytes, after - before, peak - before))
    assert everything
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    arguments = arguments_of(__doc__, answers=16384, tokens=1000, ranks=2, prompt=200, criteria=5, ways="")
    sizes = (arguments.answers, arguments.tokens, arguments.prompt, arguments.criteria)
    rows = []
    processes = multiprocessing.get_context("spawn")
    for way in arguments.ways.split(",") if arguments.ways else WAYS:
        with tempfile.TemporaryDirectory() as folder:
            found = processes.SimpleQueue()
            workers = [
                processes.Process(
                    target=_rank, args=(rank, arguments.ranks, way, f"{folder}/store", sizes, found)
                )
                for rank in range(arguments.ranks)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            reports = [found.get() for _ in workers]
        seconds, megabytes, grown, peak = map(max, zip(*reports, strict=True))
        rows.append([way, megabytes, megabytes * arguments.ranks, seconds, grown, peak])
    title = f"{arguments.answers} answers of {arguments.tokens} tokens on {arguments.ranks} ranks"
    report(title, ["way", "MB sent", "MB received", "seconds", "GiB kept", "GiB at the peak"], rows)
    write(arguments.json, {"way, MB sent, MB received, seconds, GiB kept, GiB at the peak": rows})


if __name__ == "__main__":
    main()

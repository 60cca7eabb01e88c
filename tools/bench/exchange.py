"""Measures how ranks exchange the judged answers of a batch: as records, and with their tokens as arrays.

    python tools/bench/exchange.py [--answers 16384] [--tokens 1000] [--ranks 2] [--prompt 200] [--criteria 5]
        [--ways arrays] [--repeats 3]

Each rank is a process on this machine and has its share of --answers, with texts of 4 characters per token;
--answers, --tokens and --ranks may be lists. MB: what one rank sends and receives, pickled. seconds and CPU
seconds: of the slowest rank, medians of the repeats. More ranks than cores make seconds longer, but hardly
CPU seconds. GiB: growth of a rank's memory by what it received first, and at the peak of that exchange.
"""

import gc
import itertools
import multiprocessing
import pickle
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
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


def _rank(
    rank: int, ranks: int, way: str, store: str, sizes: Sequence[int], repeats: int, found: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    answers, *rest = sizes
    own = answers_of(rank, answers // ranks, *rest)
    exchange, sent = WAYS[way]
    megabytes = len(pickle.dumps(sent(own))) / 1e6
    gc.collect()
    before = resident_gib("VmRSS")
    seconds, cpu_seconds, kept, peak = [], [], 0.0, 0.0
    for number in range(repeats):
        dist.barrier()
        started, cpu = time.perf_counter(), time.process_time()
        everything = exchange(own)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu)
        if number == 0:
            kept, peak = resident_gib("VmRSS") - before, resident_gib("VmHWM") - before
        assert len(everything) >= len(own)
        del everything
    found.put((statistics.median(seconds), statistics.median(cpu_seconds), megabytes, kept, peak))
    dist.barrier()
    dist.destroy_process_group()


def exchange_among(ranks: int, way: str, sizes: Sequence[int], repeats: int) -> list[float]:
    """Returns seconds, CPU seconds, MB sent, GiB kept and GiB at the peak, each the largest of all ranks."""
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        found = processes.SimpleQueue()
        workers = [
            processes.Process(target=_rank, args=(rank, ranks, way, f"{folder}/store", sizes, repeats, found))
            for rank in range(ranks)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return list(map(max, zip(*(found.get() for _ in workers), strict=True)))


def main() -> None:
    arguments = arguments_of(
        __doc__, answers="16384", tokens="1000", ranks="2", prompt=200, criteria=5, ways="", repeats=3
    )
    columns = [
        "way",
        "answers",
        "tokens",
        "ranks",
        "MB sent",
        "MB received",
        "seconds",
        "CPU seconds",
        "GiB kept",
        "GiB at the peak",
    ]
    rows: list[list[object]] = []
    for answers, tokens, ranks, way in itertools.product(
        map(int, arguments.answers.split(",")),
        map(int, arguments.tokens.split(",")),
        map(int, arguments.ranks.split(",")),
        arguments.ways.split(",") if arguments.ways else WAYS,
    ):
        sizes = (answers, tokens, arguments.prompt, arguments.criteria)
        seconds, cpu, megabytes, kept, peak = exchange_among(ranks, way, sizes, arguments.repeats)
        rows.append([way, answers, tokens, ranks, megabytes, megabytes * ranks, seconds, cpu, kept, peak])
    report("exchange", columns, rows)
    write(arguments.json, {", ".join(columns): rows})


if __name__ == "__main__":
    main()

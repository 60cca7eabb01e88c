"""Measures what a rank plans between the judged answers of a batch and its first forward pass, on one core.

    python tools/bench/planning.py [--prompts 1024] [--answers 64] [--tokens 1000] [--ranks 1,8,1024]
        [--rows 8192] [--packing shared] [--scale group_std] [--replay 1] [--profile 1] [--repeats 3]

--prompts and --tokens may be lists. Figures are CPU seconds, medians of the repeats.

Answers have log-normal lengths with this mean, 5 criteria each, and rewards by chance. Sampling, judging and
the exchange between ranks are left out. By rank count: planning the rows of one optimizer step, of a batch
with two, and filling the first row. The last line is what a batch takes: all stages, both steps, one row.
"""

import argparse
import cProfile
import itertools
import pstats
import random
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from workload import arguments_of, median, report, write

from herl.advantages import group_advantages
from herl.judge import JudgeRunner
from herl.models.pretrained import PretrainedModel
from herl.replay import NoReplay, ReplayBuffer
from herl.rollout.collect import _grown, compare, experiences_of, settle
from herl.rollout.stages import RolloutPlan, Stages
from herl.rollout.streaming import _in_order
from herl.sampler.scripted import ScriptedSampler
from herl.selection import form_group
from herl.testing import FakeJudge, make_task
from herl.types import Group, Judged, Judgement, Rollout, SampleRequest, Sampling, Verdict
from herl.update.batch import micro_batches, split_by_group

T = TypeVar("T")
CRITERIA = {f"c{number}": 1.0 for number in range(5)}


def judged_groups(
    prompts: int, answers: int, mean: int
) -> tuple[list[Group], list[SampleRequest], list[Judged]]:
    """Returns opened groups, their requests, and judged answers in an order as they come from ranks."""
    draw = random.Random(0)
    texts: dict[int, tuple[tuple[int, ...], tuple[float, ...]]] = {}  # answers of a length share their tokens
    groups, requests, judged = [], [], []
    for number in range(prompts):
        task = make_task(CRITERIA, id=f"t{number}")
        prompt_ids = tuple(draw.randrange(30_000) for _ in range(200))
        group = Group(id=f"0:0:0:{task.id}", task=task, prompt_ids=prompt_ids)
        request = SampleRequest(
            task_id=task.id,
            group_id=group.id,
            prompt_ids=prompt_ids,
            n=answers,
            sampling=Sampling(),
            seed=number,
        )
        groups.append(group)
        requests.append(request)
        for index in range(answers):
            length = max(1, min(8 * mean, round(0.7 * mean * 2.718281828 ** draw.gauss(0.0, 0.85))))
            if length not in texts:
                texts[length] = tuple(draw.choices(range(30_000), k=length)), (-1.0,) * length
            token_ids, logprobs = texts[length]
            rollout = Rollout.answering(
                request, index, token_ids=token_ids, logprobs=logprobs, text="An answer."
            )
            verdicts = tuple(Verdict(criterion_id=name, met=draw.random() < 0.5) for name in CRITERIA)
            reward = sum(bool(verdict.met) for verdict in verdicts) / len(verdicts)
            usage = {"seconds": 0.1, "tokens": 100.0}
            judgement = Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=reward, usage=usage)
            judged.append(Judged(rollout=rollout, judgement=judgement))
    draw.shuffle(judged)
    return groups, requests, judged


def planned(arguments: argparse.Namespace, prompts: int, tokens: int) -> dict[str, float]:
    """Returns the CPU seconds of each stage."""
    groups, requests, judged = judged_groups(prompts, arguments.answers, tokens)
    runner = JudgeRunner(FakeJudge())
    stages = Stages(
        tokenizer=PretrainedModel(path=arguments.model).tokenizer(),
        sampler=ScriptedSampler({}),
        judge_runner=runner,
        plan=RolloutPlan(attempts_per_prompt=arguments.answers),
        selection=form_group,
        advantages=partial(group_advantages, scale=arguments.scale),
        replay=ReplayBuffer(of="best") if arguments.replay else NoReplay(),
    )
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        profile = cProfile.Profile() if arguments.profile else None
        started = time.process_time()
        result = profile.runcall(work) if profile else work()
        seconds[name] = time.process_time() - started
        if profile:
            print(name)
            pstats.Stats(profile).sort_stats("tottime").print_stats(8)
        return result

    ordered = timed("order", lambda: _in_order(groups, requests, judged))
    timed("watch the judge", lambda: runner.watch(ordered))
    grown = timed("groups", lambda: _grown(groups, ordered))
    settled = timed("replay and selection", lambda: settle(grown, stages, (0, 0, 0)))
    compared = timed("advantages", lambda: compare(settled, stages, 0))
    experiences = timed("experiences", lambda: experiences_of(compared, stages.plan, {}))
    parts = timed("optimizer steps", lambda: split_by_group(experiences, 2))
    common = sum(seconds.values())
    for ranks in map(int, arguments.ranks.split(",")):
        batches = micro_batches(
            parts[0],
            max_tokens=arguments.rows,
            aggregation="token_mean",
            rank=0,
            world_size=ranks,
            packing=arguments.packing,
        )
        first = timed(f"first row, {ranks} ranks", lambda batches=batches: next(batches))
        second = timed(f"second row, {ranks} ranks", lambda batches=batches: next(batches, None))
        row = seconds.pop(f"second row, {ranks} ranks") if second is not None else 0.0
        plan = max(0.0, seconds.pop(f"first row, {ranks} ranks") - row)
        seconds |= {f"rows of a step, {ranks} ranks": plan, f"a row, {ranks} ranks": row}
        seconds[f"a batch, {ranks} ranks"] = common + 2 * plan + row
        assert first is not None
    return seconds


def main() -> None:
    arguments = arguments_of(
        __doc__, model="tiny", prompts="1024", answers=64, tokens="1000", ranks="1,8,1024", rows=8192,
        packing="shared", scale="group_std", replay=0, profile=0, repeats=1,
    )  # fmt: skip
    figures = {}
    for prompts, tokens in itertools.product(
        map(int, arguments.prompts.split(",")), map(int, arguments.tokens.split(","))
    ):
        found = [planned(arguments, prompts, tokens) for _ in range(arguments.repeats)]
        seconds = {name: median([one[name] for one in found]) for name in found[0]}
        title = f"{prompts} x {arguments.answers} answers of {tokens} tokens"
        report(title, ["stage", "seconds"], list(seconds.items()))
        figures[title] = seconds
    write(arguments.json, {"seconds": figures})


if __name__ == "__main__":
    main()

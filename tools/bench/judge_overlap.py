"""Measures how much of a slow judge's time collect() hides behind sampling, in a step with revisions.

    python tools/bench/judge_overlap.py [--prompts 16] [--answers 4] [--seconds 0.2] [--slots 8]

The judge takes --seconds per answer, for --slots answers at a time. in turn: attempts are sampled, then
judged; then revisions are sampled, then judged. by answer: each answer is judged while others are sampled. by
group: in addition, each group is revised as soon as it is judged, as vLLM samplers do. hidden: the time saved
compared with sampling and then judging, as a share of the shorter of the two.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

from workload import arguments_of, median, report, tasks_of, write

from herl.advantages import group_advantages
from herl.hindsight.revision import RevisionBuilder
from herl.judge import Judge, JudgeRunner
from herl.models.pretrained import PretrainedModel
from herl.models.weights import named_weights
from herl.rollout.collect import collect
from herl.rollout.stages import RolloutPlan, Stages
from herl.sampler import Sampler
from herl.sampler.vllm import VLLMSampler
from herl.selection import form_group
from herl.testing import FakeJudge
from herl.types import Judgement, Rollout, SampleRequest, Sampling, Task


class FixedTimeJudge(FakeJudge):
    """Looks for the ids of criteria in the answer, after a fixed time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.judged = 0

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        self.judged += 1
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return await super().judge(task, rollout)


class ByAnswer(Sampler):
    """The engine without follow-ups."""

    def __init__(self, engine: Sampler, at_once: bool) -> None:
        self.engine = engine
        self.at_once = at_once

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        answers = self.engine.generate(requests)
        return iter(list(answers)) if self.at_once else answers

    start = load_weights = None  # type: ignore[assignment]  # the engine is ready


def main() -> None:
    arguments = arguments_of(
        __doc__, model="tiny", prompts=16, answers=4, seconds=0.2, slots=8, new_tokens=32, running=8, rounds=3
    )
    model = PretrainedModel(path=arguments.model)
    tokenizer, policy = model.tokenizer(), model.load().eval()
    engine = VLLMSampler(max_model_len=512, kv_cache_gib=0.5, max_num_seqs=arguments.running)
    engine.start(policy, tokenizer)
    engine.load_weights(named_weights(policy), 0)
    sampling = Sampling(max_new_tokens=arguments.new_tokens)
    tasks = tasks_of(arguments.prompts, 12)

    def run(sampler: Sampler, judge: Judge) -> float:
        with JudgeRunner(judge, concurrency=arguments.slots) as runner:
            stages = Stages(
                tokenizer=tokenizer,
                sampler=sampler,
                judge_runner=runner,
                plan=RolloutPlan(attempts_per_prompt=arguments.answers, attempt=sampling, revision=sampling),
                selection=form_group,
                advantages=partial(group_advantages),
                hindsight=RevisionBuilder(),
            )
            started = time.perf_counter()
            collect(tasks, stages, (0,))
            return time.perf_counter() - started

    ways = {
        "instant judge": (engine, 0.0),
        "in turn": (ByAnswer(engine, at_once=True), arguments.seconds),
        "by answer": (ByAnswer(engine, at_once=False), arguments.seconds),
        "by group": (engine, arguments.seconds),
    }
    run(engine, FixedTimeJudge(0.0))  # warms up
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(arguments.rounds):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            sampler, latency = ways[way]
            judge = FixedTimeJudge(latency)
            seconds[way].append(run(sampler, judge))
    own = judge.judged * arguments.seconds / arguments.slots
    instant = median(seconds["instant judge"])
    hidden = {way: (own + instant - median(found)) / min(own, instant) for way, found in seconds.items()}
    hidden["instant judge"] = math.nan
    rows = [[way, median(found), hidden[way]] for way, found in seconds.items()]
    report(
        f"{arguments.model}, {judge.judged} answers, {arguments.running} sampled and {arguments.slots} "
        f"judged at a time, {arguments.seconds} s each; the judge alone takes {own:.1f} s; medians of "
        f"{arguments.rounds}",
        ["way", "seconds", "hidden"],
        rows,
    )
    write(arguments.json, {"seconds": seconds, "judge_seconds": own})
    engine.close()


if __name__ == "__main__":
    main()

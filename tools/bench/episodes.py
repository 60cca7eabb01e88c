"""Measures the rate of sampled tokens in episodes whose tool takes no time, and whose tool takes a second.

    python tools/bench/episodes.py [--model tiny] [--sampler vllm] [--episodes 64] [--turns 3] [--seconds 1.0]

While one episode waits for its tool, the turns of others are sampled. Turns end at a full stop, so they have
various lengths. With `--sampler transformers`, which takes no requests while it works, all episodes wait for
the slowest tool after each turn.
"""

import asyncio
import time
from collections import Counter

import torch
from workload import arguments_of, median, report, write

from herl.advantages import group_advantages
from herl.clock import PhaseClock
from herl.data.animals import animals
from herl.environment import Conversation, Environment, Reply
from herl.environment.runner import EnvironmentRunner
from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.models.pretrained import PretrainedModel
from herl.models.weights import named_weights
from herl.rollout.collect import Collection, collect
from herl.rollout.stages import RolloutPlan, Stages
from herl.sampler import RunLimits, Sampler
from herl.sampler.transformers import TransformersSampler
from herl.sampler.vllm import VLLMSampler
from herl.selection import form_group
from herl.types import Sampling

REPEATS = 3


class SlowTool(Environment):
    """Asks for more until an episode has all its turns."""

    def __init__(self, turns: int) -> None:
        super().__init__(max_turns=turns + 1, max_tokens=400)
        self.turns = turns
        self.seconds = 0.0

    async def step(self, conversation: Conversation, answer: str) -> Reply | None:
        if conversation.turn + 1 >= self.turns:
            return None
        await asyncio.sleep(self.seconds)
        return Reply([{"role": "user", "content": "Go on, in one sentence."}])


def run(stages: Stages, prompts: int, seconds: float) -> tuple[Collection, PhaseClock, float]:
    """Plays the same episodes with a tool that takes this long."""
    environment = stages.environment_runner.environment
    assert isinstance(environment, SlowTool)
    environment.seconds = seconds
    clock, started = PhaseClock(), time.perf_counter()
    collection = collect(animals().train[:prompts], stages, (0, 0, 0), clock)
    return collection, clock, time.perf_counter() - started


def main() -> None:
    arguments = arguments_of(
        __doc__, model="tiny", sampler="vllm", episodes=64, turns=3, seconds=1.0, tokens=64
    )
    model = PretrainedModel(path=arguments.model)
    policy, tokenizer = model.load(), model.tokenizer()
    sampler: Sampler = VLLMSampler(kv_cache_gib=1.0) if arguments.sampler == "vllm" else TransformersSampler()
    sampler.prepare(RunLimits(longest_tokens=512, dtype=torch.float32, refreshed_every_batch=True))
    sampler.start(policy, tokenizer)
    sampler.load_weights(named_weights(policy, sampler.weights_dtype, checkpoint=sampler.checkpoint_names), 0)
    environment = EnvironmentRunner(SlowTool(arguments.turns))
    environment.open()
    with JudgeRunner(RuleJudge()) as judge:
        stages = Stages(
            tokenizer=tokenizer,
            sampler=sampler,
            judge_runner=judge,
            plan=RolloutPlan(
                attempts_per_prompt=8, attempt=Sampling(max_new_tokens=arguments.tokens, stop=["."])
            ),
            selection=form_group,
            advantages=group_advantages,
            environment_runner=environment,
        )
        prompts = arguments.episodes // 8
        run(stages, prompts, 0.0)  # warm
        rates: dict[float, list[float]] = {0.0: [], arguments.seconds: []}
        waits: dict[float, list[float]] = {0.0: [], arguments.seconds: []}
        turns: Counter[int] = Counter()
        for _ in range(REPEATS):
            for seconds in rates:
                collection, clock, spent = run(stages, prompts, seconds)
                answers = [one.rollout for group in collection.groups for one in group.attempts]
                rates[seconds].append(sum(len(one.token_ids) for one in answers) / spent)
                waits[seconds].append(clock.seconds["environment"] / spent)
                turns.update(len(one.turns) + 1 for one in answers)
    environment.close()
    sampler.close()
    idle = median(rates[0.0])
    mean_turns = sum(n * count for n, count in turns.items()) / turns.total()
    report(
        f"{arguments.episodes} episodes of up to {arguments.turns} turns ({mean_turns:.1f} on average), "
        f"{arguments.model}, sampler={arguments.sampler}; medians of {REPEATS}",
        ["seconds of the tool", "tokens/s", "share of the rate without", "share of the time waiting"],
        [
            [seconds, median(found), median(found) / idle, median(waits[seconds])]
            for seconds, found in rates.items()
        ],
    )
    write(arguments.json, {"rates": rates, "waits": waits, "turns": dict(turns)})


if __name__ == "__main__":
    main()

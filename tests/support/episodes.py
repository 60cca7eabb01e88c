"""An environment that asks further questions, and episodes written out one token after the other."""

import asyncio

import torch

from herl.advantages import group_advantages
from herl.clock import PhaseClock
from herl.environment import Environment, Reply
from herl.environment.runner import EnvironmentRunner
from herl.hindsight import NoHindsight
from herl.judge import JudgeRunner
from herl.rollout.collect import collect
from herl.rollout.stages import RolloutPlan, Stages
from herl.selection import form_group
from herl.testing import FakeJudge, make_task
from herl.types import Sampling, ToolCall

TASKS = [make_task(id=name, request=f"Describe the {name}, a mammal.") for name in ("otter", "fox")]
TALKS = {name: Sampling(max_new_tokens=24, stop=(" ",)) for name in ("attempt", "revision")}
"""Sampling whose turns end at a space."""


class FakeQuiz(Environment):
    """Asks two more questions, after waiting."""

    seconds = 0.0

    async def step(self, conversation, answer):
        await asyncio.sleep(self.seconds * (conversation.task.id == "otter"))
        if conversation.turn >= 2:
            return None
        conversation.state["seen"] = [*conversation.state.get("seen", ()), answer]
        question = {"role": "user", "content": f"Question {conversation.turn}: {answer[:5]}?"}
        return Reply([question], [ToolCall(name="ask", arguments={"turn": conversation.turn})])


def played(environment, sampler, tokenizer, *, judge=None, tasks=TASKS, plan=TALKS, **stages):
    """The batch that a started sampler and this environment give."""
    runner, of_environment = JudgeRunner(judge or FakeJudge()), EnvironmentRunner(environment)
    parts = {
        "tokenizer": tokenizer, "sampler": sampler, "judge_runner": runner, "selection": form_group,
        "plan": RolloutPlan(attempts_per_prompt=3, **plan).within(None, environment),
        "advantages": group_advantages, "environment_runner": of_environment, "hindsight": NoHindsight(),
    }  # fmt: skip
    of_environment.open()
    try:
        with runner:
            return collect(tasks, Stages(**(parts | stages)), (0, 0, 0), PhaseClock())
    finally:
        of_environment.close()


def rollouts(collection):
    return [one.rollout for group in collection.groups for one in (*group.attempts, *group.revisions)]


def naive_logprobs(policy, rollout):
    """Log-probs of the sampled tokens, by a forward pass over prompt, turns and replies written one by one."""
    ids, sampled, start = list(rollout.prompt_ids), [], 0
    for turn in rollout.turns:
        sampled += range(len(ids), len(ids) + turn.end - start)
        ids += [*rollout.token_ids[start : turn.end], *turn.reply_ids]
        start = turn.end
    sampled += range(len(ids), len(ids) + len(rollout.token_ids) - start)
    ids += rollout.token_ids[start:]
    logprobs = policy(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return torch.stack([logprobs[place - 1, ids[place]] for place in sampled])

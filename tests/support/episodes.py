"""An environment that asks further questions; an episode that is made up; episodes written out token by token."""

import asyncio
from dataclasses import replace

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
from herl.testing import FakeJudge, make_rollout, make_task
from herl.types import Sampling, ToolCall, Turn

ARGUMENTS = {"name": "otter", "more": {"deep": [1, None, {"x": 0.5}]}}
TASKS = [make_task(id=name, request=f"Describe the {name}, a mammal.") for name in ("otter", "fox")]
TALKS = {name: Sampling(max_new_tokens=24, stop=(" ",)) for name in ("attempt", "revision")}
"""Sampling whose turns end at a space."""


def an_episode(text="It eats fish.", finish_reason="stop", **changes):
    """Three turns of 2, 3 and 1 tokens, with replies of 2 and 4."""
    turns = (
        Turn(
            text="Look up otter.", end=2, reply=({"role": "tool", "name": "lookup", "content": "otter: <b>fish</b>"},),
            reply_ids=(90, 91), calls=(ToolCall(name="lookup", arguments=ARGUMENTS),), thinking="Hm.", thinking_tokens=1,
        ),
        Turn(
            text="Look up.", end=5, reply=({"role": "tool", "content": "what?\x1b[31m"}, {"role": "user", "content": "Go on."}),
            reply_ids=(92, 93, 94, 95), calls=(ToolCall(name="", error="malformed"), ToolCall(name="lookup", arguments={"name": 3})),
        ),
    )  # fmt: skip
    made = make_rollout(text, token_ids=(4, 5, 6, 7, 8, 9), thinking_tokens=1, turns=turns, **changes)
    return replace(made, finish_reason=finish_reason)


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

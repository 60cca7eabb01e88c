"""Plays an episode of an environment of the package `verifiers`, as the player does."""

import asyncio
from concurrent.futures import wait
from contextlib import contextmanager

import pytest

from herl.environment import Conversation, opened
from herl.environment.runner import EnvironmentRunner
from herl.types import Rollout, Turn
from herl.verifiers.data import environment_rows
from herl.verifiers.environment import VerifiersEnvironment
from herl.verifiers.judge import VerifiersJudge
from tests.support.verifiers_rooms import GUESS, SHOP

PRICE = '<tool_call>{"name": "price", "arguments": {"fruit": "%s"}}</tool_call>'


@contextmanager
def installed(folder):
    """Puts the small environments on the path, and allows them."""
    (folder / "herl_shop.py").write_text(SHOP)
    (folder / "herl_guess.py").write_text(GUESS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("HERL_ALLOW_TARGETS", "herl_shop,herl_guess")
        yield


def play(name, answers, arguments=None, place=0, limits=None, cut_off=False, **judge):
    """Plays an episode with these answers, as the player does; returns its answer, steps and judgement."""
    arguments = arguments or {}
    judge = VerifiersJudge(name, arguments, **judge)
    environment = VerifiersEnvironment(name, arguments, **(limits or {}))
    environment.roles = ("tool", "user")
    task = opened(environment, environment_rows(name, arguments, heldout_share=0).train[place])
    runner = EnvironmentRunner(environment)
    runner.open()
    conversation = Conversation(id=f"{name}{answers}{arguments}", task=task, messages=task.messages)
    turns, steps = [], []
    try:
        for text in answers:
            if cut_off and text is answers[-1]:
                break
            step = runner.step(conversation, text, 0.0).result(20)
            steps.append(step)
            if step.reply is None or text is answers[-1]:
                break
            turns.append(
                Turn(text=text, end=0, reply=tuple(step.reply.messages), reply_ids=(), calls=step.reply.calls)
            )
            said = {"role": "assistant", "content": text}
            conversation = Conversation(
                id=conversation.id, task=task, state=conversation.state, turn=conversation.turn + 1,
                messages=(*conversation.messages, said, *step.reply.messages),
            )  # fmt: skip
        spoken = (*conversation.messages, {"role": "assistant", "content": text})
        ended = Conversation(
            id=conversation.id, task=task, state=conversation.state, turn=conversation.turn, messages=spoken
        )
        runner.end(ended)
        wait(list(runner._ending), 20)
        finish = "length" if cut_off else steps[-1].ended if steps[-1].reply is None else "turns"
        rollout = answer_of(text, turns, finish, conversation.id)
        judgement = None if finish == "failed" else asyncio.run(judge.judge(task, rollout))
    finally:
        runner.close()
    return rollout, steps, judgement


def answer_of(text, turns=(), finish="stop", id="elsewhere"):
    return Rollout(
        id=id, task_id="t", group_id="g", prompt_ids=(), token_ids=(), logprobs=(), text=text,
        finish_reason=finish, policy_version=0, index=0, turns=tuple(turns),
    )  # fmt: skip


def scores(judgement):
    return {one.criterion_id: one.score for one in judgement.verdicts}

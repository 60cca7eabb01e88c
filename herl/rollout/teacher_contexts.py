"""Renders the prompts under which the told policy scores attempts of a batch (`herl.hindsight.teacher`)."""

from __future__ import annotations

from collections.abc import Sequence

from herl.models.chat_template import render_revision
from herl.rollout.stages import Stages
from herl.types import Group, Message


def teacher_contexts(groups: Sequence[Group], stages: Stages) -> tuple[dict[str, tuple[int, ...]], int]:
    """Returns the teacher's context for each attempt that it teaches, by rollout id, and how many attempts
    are not taught because their context is longer than `max_prompt_tokens`.

    Args:
        groups: The groups, with their advantages. Those without signal have no teacher by default.
        stages: The teacher, the tokenizer and the limit on prompt length.
    """
    contexts: dict[str, tuple[int, ...]] = {}
    over_long = 0
    if not stages.teacher.teaches:
        return contexts, over_long
    for group in groups:
        if not any(group.advantages) and not stages.teacher.flat_groups:
            continue
        rendered: dict[str, tuple[int, ...]] = {}  # by its text, which attempts may share
        for member in group.members:
            if member.origin != "policy":
                continue
            messages = stages.teacher.prompt(group.task, member.judged)
            if messages is None:
                continue
            content = messages[-1]["content"]
            if content not in rendered:
                rendered[content] = _rendered(messages, group, stages)
            if len(rendered[content]) > stages.plan.max_prompt_tokens:
                over_long += 1
            else:
                contexts[member.judged.rollout.id] = rendered[content]
    return contexts, over_long


def _rendered(messages: Sequence[Message], group: Group, stages: Stages) -> tuple[int, ...]:
    return render_revision(stages.tokenizer, messages, group.task, stages.today.started)

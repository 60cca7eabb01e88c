"""Tasks -> groups -> requests for attempts and revisions. Prompts that are too long are dropped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from herl.environment import opened
from herl.models.chat_template import render_prompt, render_revision
from herl.rollout.stages import Stages
from herl.seeds import derive_seed
from herl.types import Group, Judged, SampleRequest, Sampling, Task


def open_groups(tasks: Sequence[Task], stages: Stages, name: str) -> tuple[list[Group], int]:
    """Renders each prompt once.

    Args:
        tasks: The prompts.
        stages: The environment that begins their conversations, the tokenizer, the limit on prompt length.
        name: Name of the batch, with which group ids begin.

    Returns:
        A group for each prompt within the limit, and the number of prompts over it.
    """
    started = [opened(stages.environment, task) for task in tasks]
    groups = [
        Group(
            id=f"{name}:{task.id}",
            task=task,
            prompt_ids=render_prompt(stages.tokenizer, task, stages.today.started),
        )
        for task in started
    ]
    fitting = [group for group in groups if len(group.prompt_ids) <= stages.plan.max_prompt_tokens]
    return fitting, len(groups) - len(fitting)


def attempt_request(group: Group, n: int, sampling: Sampling, seed: int) -> SampleRequest:
    """Returns a request for `n` attempts at a group's prompt."""
    return SampleRequest(
        task_id=group.task.id,
        group_id=group.id,
        prompt_ids=group.prompt_ids,
        n=n,
        sampling=sampling,
        seed=seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionRequests:
    """Requests for revisions."""

    requests: tuple[SampleRequest, ...] = ()
    over_long: int = 0
    """Revision prompts that were dropped because they exceed `max_prompt_tokens`."""


def revision_requests(
    task: Task, drafts: Sequence[Judged], stages: Stages, *, n: int, key: Sequence[int | str]
) -> RevisionRequests:
    """Stage 4: writes revision prompts for some of these drafts and requests `n` revisions of each.

    Args:
        task: The prompt and its rubric.
        drafts: Judged answers; the hindsight builder chooses among them.
        stages: The hindsight builder, the tokenizer and the rollout plan.
        n: Revisions per draft.
        key: All randomness is a hash of it.
    """
    hindsights = {hindsight.parent.id: hindsight for hindsight in stages.hindsight.build(task, drafts)}
    requests = [
        SampleRequest(
            task_id=task.id,
            group_id=hindsight.parent.group_id,
            prompt_ids=render_revision(stages.tokenizer, hindsight.messages, task, stages.today.started),
            n=n,
            sampling=stages.plan.revision,
            seed=derive_seed(*key, hindsight.parent.id, "revision"),
            parent_id=hindsight.parent.id,
        )
        for hindsight in hindsights.values()
    ]
    return _fitting(requests, stages)


def told_requests(groups: Sequence[Group], stages: Stages, key: Sequence[int | str]) -> RevisionRequests:
    """Requests answers that need no attempts (`HindsightBuilder.tells`): `revisions_per_candidate` per group.

    Args:
        groups: The opened groups.
        stages: The hindsight builder, the tokenizer and the rollout plan.
        key: All randomness is a hash of it.
    """
    if not stages.hindsight.tells:
        return RevisionRequests()
    prompts = [(group, stages.hindsight.tell(group.task)) for group in groups]
    requests = [
        SampleRequest(
            task_id=group.task.id,
            group_id=group.id,
            prompt_ids=render_revision(stages.tokenizer, messages, group.task, stages.today.started),
            n=stages.plan.revisions_per_candidate,
            sampling=stages.plan.revision,
            seed=derive_seed(*key, group.task.id, "told"),
            told=True,
        )
        for group, messages in prompts
        if messages is not None
    ]
    return _fitting(requests, stages)


def _fitting(requests: Sequence[SampleRequest], stages: Stages) -> RevisionRequests:
    fitting = [one for one in requests if len(one.prompt_ids) <= stages.plan.max_prompt_tokens]
    return RevisionRequests(requests=tuple(fitting), over_long=len(requests) - len(fitting))

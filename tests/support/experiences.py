"""Experiences with random tokens."""

import random

import torch

from herl.testing import make_experience, make_rollout

PACKINGS = ("shared", "packed", "single")


def experience(context, answer, *, advantage=1.0, index=0, parent=None):
    rollout = make_rollout(
        id=f"group/{index}",
        prompt_ids=context,
        token_ids=answer,
        logprobs=[-0.1 * t for t in range(1, len(answer) + 1)],
        parent_id=parent,
    )
    return make_experience(rollout, reward=0.5, advantage=advantage)


def several(groups=3, answers=4, seed=0):
    """Answers of 1 to 20 tokens to prompts of 4 to 30; one in three is a revision."""
    rng = random.Random(seed)
    found = []
    for _ in range(groups):
        context = [rng.randrange(3, 900) for _ in range(rng.randint(4, 30))]
        for _ in range(answers):
            index = len(found)
            found.append(
                experience(
                    context,
                    [rng.randrange(3, 900) for _ in range(rng.randint(1, 20))],
                    advantage=rng.uniform(-1, 1),
                    index=index,
                    parent="group/9" if index % 3 == 0 else None,
                )
            )
    return found


def in_order(batches, compute):
    """The results of `compute` for each micro-batch, [N] each, in the order of the experiences."""
    found = {}
    for batch in batches:
        found.update(zip(batch.rows, compute(batch).split(batch.answer_lengths), strict=True))
    return torch.cat([found[row] for row in sorted(found)])

"""HeRL on one page: one training step, written naively, to be read from top to bottom.

The method is hindsight experience (arXiv:2603.20046) with the settings that `herl fit` has by default. In its
notation, x is a prompt, y an attempt at it, r its reward, h the hindsight that asks for a revision of y, A an
advantage, and rho a probability ratio. Every part names the file in which herl does the
same, with all its options. The page shares no code with those files: a test gives both the same answers and
compares their gradients (tests/unit/test_one_page.py), so the page also defines what herl computes.

What the page leaves out, and why:
- Everything that only adds speed: engines, caches, packed rows, micro-batches, ranks. Here every answer
  is one forward pass. None of it may change the result, apart from rounding.
- Options: conf/ lists them, with the values used here as defaults.
- One seed per answer (herl/seeds.py). Here all answers come from torch's global generator.
- The run around the step: learning-rate schedule, validation, checkpoints, curves, and the guards that drop
  over-long prompts and skip a step whose gradient is not finite.

A suffix gives a tensor's shape: B answers, T tokens of a context and its answer, N tokens of the answer
alone, V entries of the vocabulary. `python tests/one_page.py` takes one step and prints a group.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from herl.types import Criterion, Rubric, Task

HERL = Path(__file__).parents[1] / "herl"
ATTEMPTS = 8  # attempts at each prompt: rollout.attempts_per_prompt
MAX_NEW_TOKENS = 64  # tokens of an answer: rollout.attempt.max_new_tokens
ALPHA = 0.05  # share of a revision's gain that is paid to its draft: bonus.alpha
FLAT = 1e-4  # spread of rewards below which a group teaches nothing: advantages.tolerance
CLIP = 0.2  # PPO's range around a ratio of 1: loss.clip_low, loss.clip_high
DUAL_CLIP = 3.0  # bound of the loss at negative advantages: loss.dual_clip
ENTROPY_COEF = 0.01  # weight of the entropy bonus: loss.entropy_coef
UPDATES = 4  # optimizer steps on each batch of prompts: module.updates_per_batch
MAX_GRAD_NORM = 1.0  # module.max_grad_norm


@dataclass
class Answer:
    """An attempt or a revision, judged."""

    token_ids: list[int]  # as they were sampled; text is never tokenized again
    text: str
    fulfilled: list[tuple[Criterion, bool]]  # without the criteria on which the judge abstained
    reward: float | None  # r; None if the judge abstained on everything
    bonus: float = 0.0


def herl_step(policy, tokenizer, optimizer, tasks):
    """Takes one step on a batch of prompts. Returns its groups of (x, answer, advantage)."""
    groups = [collect(policy, tokenizer, task) for task in tasks]
    groups = [group for group in groups if group]
    update(policy, optimizer, groups)
    return groups


def collect(policy, tokenizer, task):
    """One prompt's way from attempts to advantages (herl/rollout/collect.py)."""
    # 1. Sample attempts and judge them. An answer that cannot be judged is dropped; it does not score 0.
    x = render(tokenizer, task.messages)
    attempts = [judge(task, tokenizer, ids) for ids in sample(policy, tokenizer, x, ATTEMPTS)]
    members = [y for y in attempts if y.reward is not None]
    if not members:
        return []

    # 2. The best attempt is the draft; among equals, the one that fulfills more criteria, then the one that was
    # sampled first (herl/hindsight/candidates.py). Unless it is perfect, the same policy revises it.
    draft = max(members, key=lambda y: (y.reward, sum(good for _, good in y.fulfilled)))
    if draft.reward < 1.0:
        h = render(tokenizer, revision_prompt(task, draft))
        [ids] = sample(policy, tokenizer, h, 1)
        revision = judge(task, tokenizer, ids)  # by the same rubric as the attempts
        if revision.reward is not None:
            # 3. Bonus: the draft is paid for its potential to improve, and charged if its revision is worse
            # (herl/bonus/improvement.py).
            draft.bonus = ALPHA * (revision.reward - draft.reward)
            # 4. Select: a revision joins only if it beats every attempt; it replaces the worst
            # (herl/selection.py).
            if revision.reward > draft.reward:
                rewards = [y.reward for y in members]
                members[rewards.index(min(rewards))] = revision

    # 5. Advantages: how far each answer is above its group's mean, in standard deviations
    # (herl/advantages.py). A group whose members are all alike teaches nothing. The bonus alone does not make them
    # differ: divided by its own deviation, it would weigh as much as any reward (herl/rollout/collect.py).
    rewards, totals = [y.reward for y in members], [y.reward + y.bonus for y in members]
    if any(max(earned) - min(earned) < FLAT for earned in (rewards, totals)):
        return []
    return [(x, y, (y.reward + y.bonus - mean(totals)) / (stdev(totals) + 1e-6)) for y in members]


def render(tokenizer, messages):
    """A conversation as token ids, up to where the assistant's answer begins (herl/models/chat_template.py)."""
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def sample(policy, tokenizer, context, n):
    """The token ids of n answers, drawn at temperature 1, each with its end token (herl/sampler)."""
    ids_BT, end = torch.tensor([context] * n), tokenizer.eos_token_id
    for _ in range(MAX_NEW_TOKENS):
        logits_BV = policy(input_ids=ids_BT).logits[:, -1]
        ids_BT = torch.cat([ids_BT, torch.multinomial(logits_BV.softmax(-1), num_samples=1)], dim=1)
        if (ids_BT[:, len(context) :] == end).any(dim=1).all():
            break
    answers = ids_BT[:, len(context) :].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]


def judge(task, tokenizer, ids):
    """An answer's share of the rubric's points (herl/judge/rule.py, herl/judge/aggregation.py)."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    verdicts = [(criterion, meets(criterion, text)) for criterion in task.rubric.criteria]
    # An undesirable criterion is fulfilled by not being met. It has a negative weight, which is the price of
    # meeting it; not meeting it earns nothing.
    fulfilled = [(c, met != c.undesirable) for c, met in verdicts if met is not None]
    earned = sum(c.weight for c, good in fulfilled if good == (c.weight > 0))
    possible = sum(c.weight for c, _ in fulfilled if c.weight > 0)
    reward = min(1.0, max(0.0, earned / possible)) if possible > 0 else None
    return Answer(ids, text, fulfilled, reward)


def meets(criterion, text):
    """The verdict on one criterion, by its check in the data; None if the check is unknown."""
    match criterion.check:
        case {"kind": "contains", "text": phrase}:
            return phrase.lower() in text.lower()
        case {"kind": "max_words", "count": count}:
            return len(text.split()) <= count
    return None


def revision_prompt(task, draft):
    """The hindsight: the request, and what the draft met and missed (herl/hindsight/revision.py).

    It does not show the draft, so the revision is written from scratch. On the embedded task this is better.
    """
    lines = [(f"- {c.wish} ({abs(c.weight):g})", good) for c, good in draft.fulfilled]
    met = "\n".join(line for line, good in lines if good) or "- nothing"
    missed = "\n".join(line for line, good in lines if not good) or "- nothing"
    words = (HERL / "hindsight" / "rewrite.txt").read_text().strip()
    content = words.format(request=task.request, met=met, missed=missed)
    return [*task.messages[:-1], {"role": "user", "content": content}]


def update(policy, optimizer, groups):
    """Several optimizer steps, each on its share of the groups (herl/module.py)."""
    # 6. A revision is trained under x, like every member, although it was sampled under h: the policy is to
    # answer that well without the hindsight. The old policy is the one before the first of these steps.
    groups = [[(x, y, A, logprobs(policy, x, y.token_ids)[0].detach()) for x, y, A in g] for g in groups]
    steps = min(UPDATES, len(groups))
    for step in range(steps):
        share = groups[round(step * len(groups) / steps) : round((step + 1) * len(groups) / steps)]
        members = [member for group in share for member in group]
        tokens = sum(len(y.token_ids) for _, y, _, _ in members)
        for x, y, A, old_N in members:
            loss_N = token_losses(*logprobs(policy, x, y.token_ids), old_N, A)
            (loss_N.sum() / tokens).backward()  # every answer token of the step weighs the same
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()


def logprobs(policy, context, ids):
    """Log-probabilities of an answer's tokens, and the entropy at each (herl/update/logprobs.py)."""
    ids_1T = torch.tensor([context + ids])
    logits_NV = policy(input_ids=ids_1T).logits[0, len(context) - 1 : -1]  # column t predicts token t + 1
    logprobs_NV = logits_NV.log_softmax(-1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_NV[range(len(ids)), ids], entropy_N


def token_losses(logprobs_N, entropy_N, old_N, A):
    """PPO's clipped loss and an entropy bonus, for each token of one answer (herl/update/loss/policy.py)."""
    rho_N = (logprobs_N - old_N).exp()
    loss_N = torch.maximum(-A * rho_N, -A * rho_N.clamp(1 - CLIP, 1 + CLIP))
    if A < 0:
        loss_N = loss_N.clamp(max=-A * DUAL_CLIP)
    return loss_N - ENTROPY_COEF * entropy_N


def main(prompts=16):
    """Takes one step on the embedded task, and prints the group of the first prompt."""
    torch.manual_seed(0)
    rows = [json.loads(line) for line in (HERL / "assets" / "animals.jsonl").read_text().splitlines()]
    tasks = []
    for row in rows[:prompts]:
        rubric = Rubric(criteria=tuple(Criterion(**criterion) for criterion in row["rubric"]))
        tasks.append(Task(id=row["id"], messages=tuple(row["messages"]), rubric=rubric))
    policy = AutoModelForCausalLM.from_pretrained(HERL / "assets" / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(HERL / "assets" / "tiny")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)
    [group, *_] = herl_step(policy, tokenizer, optimizer, tasks)
    print(tokenizer.decode(group[0][0]))
    for _, y, A in group:
        print(f"A = {A:+.2f}  r = {y.reward:.2f}  bonus = {y.bonus:+.3f}  {y.text}")


if __name__ == "__main__":
    main()

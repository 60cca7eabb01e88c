import random

import pytest
import torch

from herl.batch import micro_batches
from herl.logprobs import answer_logprobs
from herl.loss import PolicyLoss, Tokens
from herl.testing import make_experience, make_rollout


def experience(context, answer, *, advantage=1.0, index=0, parent=None):
    rollout = make_rollout(
        id=f"group/{index}",
        prompt_ids=context,
        token_ids=answer,
        logprobs=[-0.1 * t for t in range(1, len(answer) + 1)],
        parent_id=parent,
    )
    return make_experience(rollout, reward=0.5, advantage=advantage)


def several(count=7, seed=0):
    rng = random.Random(seed)
    return [
        experience(
            [rng.randrange(3, 900) for _ in range(rng.randint(4, 30))],
            [rng.randrange(3, 900) for _ in range(rng.randint(1, 20))],
            advantage=rng.uniform(-1, 1),
            index=i,
            parent="group/9" if i % 3 == 0 else None,
        )
        for i in range(count)
    ]


def test_layout_of_one_micro_batch():
    experiences = [experience([7, 8, 9], [1, 2]), experience([5], [3, 4, 6], advantage=-2.0, parent="p")]
    [batch] = micro_batches(experiences, max_tokens=100, aggregation="token_mean")
    assert batch.rows == (1, 0)  # shortest first
    assert batch.input_ids.tolist() == [[0, 0, 5, 3, 4, 6], [7, 8, 9, 1, 2, 0]]
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 4]]
    assert batch.answer_ids.tolist() == [3, 4, 6, 1, 2]
    assert batch.row.tolist() == [0, 0, 0, 1, 1]
    assert batch.advantage.tolist() == [-2.0, -2.0, -2.0, 1.0, 1.0]
    assert batch.revision.tolist() == [True, True, True, False, False]
    assert batch.weight.tolist() == pytest.approx([0.2] * 5)
    assert batch.sampler_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.1, -0.2])


def test_the_sampled_ids_are_the_trained_ids():
    experiences = several()
    for batch in micro_batches(experiences, max_tokens=90, aggregation="token_mean"):
        ids = batch.answer_ids.split(batch.answer_mask.sum(1).tolist())
        for row, trained in zip(batch.rows, ids, strict=True):
            assert tuple(trained.tolist()) == experiences[row].rollout.token_ids


def test_micro_batches_keep_to_the_budget_and_lose_nothing():
    experiences = several(20)
    batches = list(micro_batches(experiences, max_tokens=120, aggregation="token_mean"))
    assert len(batches) > 3
    assert sorted(row for batch in batches for row in batch.rows) == list(range(20))
    assert all(batch.input_ids.numel() <= 120 or len(batch.rows) == 1 for batch in batches)
    assert sum(float(batch.weight.sum()) for batch in batches) == pytest.approx(1.0)


def test_context_tokens_never_carry_loss(policy):
    batch = next(micro_batches(several(), max_tokens=10**6, aggregation="token_mean"))
    logits = policy(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits
    logits.retain_grad()
    width = batch.answer_mask.shape[1]
    loss = 0.0
    kept = torch.log_softmax(logits[:, -width - 1 : -1][batch.answer_mask], -1)
    loss = kept.gather(-1, batch.answer_ids[:, None]).sum()
    loss.backward()
    touched = logits.grad.abs().sum(-1) > 0
    predicts_answer = torch.zeros_like(touched)
    predicts_answer[:, -width - 1 : -1] = batch.answer_mask
    assert torch.equal(touched, predicts_answer)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_equal_those_of_each_answer_alone_without_padding(policy, temperature):
    experiences = several()
    batch = next(micro_batches(experiences, max_tokens=10**6, aggregation="token_mean"))
    logprobs, entropy = answer_logprobs(policy, batch, temperature)
    expected, entropies = [], []
    for row in batch.rows:
        ids = [*experiences[row].context_ids, *experiences[row].rollout.token_ids]
        logits = policy(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double() / temperature
        for place in range(len(experiences[row].context_ids), len(ids)):
            distribution = torch.log_softmax(logits[place - 1], -1)
            expected.append(distribution[ids[place]])
            entropies.append(-(distribution.exp() * distribution).sum())
    torch.testing.assert_close(logprobs.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), torch.stack(entropies), rtol=1e-5, atol=1e-5)


def loss_and_gradient(policy, experiences, max_tokens, aggregation):
    policy.zero_grad()
    loss = PolicyLoss(entropy_coef=0.01, revision_shaping="shaped", aggregation=aggregation)
    total = 0.0
    for batch in micro_batches(
        experiences, max_tokens=max_tokens, aggregation=aggregation, constant_length=32
    ):
        logprobs, entropy = answer_logprobs(policy, batch, 1.0, entropy_grad=True)
        value, _ = loss(
            Tokens(
                logprobs=logprobs,
                entropy=entropy,
                old_logprobs=logprobs.detach() - 0.05,
                sampler_logprobs=batch.sampler_logprobs,
                advantage=batch.advantage,
                weight=batch.weight,
                revision=batch.revision,
                row=batch.row,
            )
        )
        value.backward()
        total += float(value.detach())
    return total, torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_loss_does_not_depend_on_micro_batch_size_order_or_padding(policy, aggregation):
    experiences = several(9)
    loss, gradient = loss_and_gradient(policy, experiences, 10**6, aggregation)
    shuffled = list(experiences)
    random.Random(1).shuffle(shuffled)
    for order, budget in ((experiences, 1), (experiences, 100), (shuffled, 60), (shuffled, 10**6)):
        other_loss, other = loss_and_gradient(policy, order, budget, aggregation)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert float((other - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("max_tokens", [1, 40, 10**6])
def test_ranks_share_the_rows_and_keep_step(world_size, max_tokens):
    experiences = several(11)
    shares = [
        list(
            micro_batches(
                experiences, max_tokens=max_tokens, aggregation="token_mean", rank=rank, world_size=world_size
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1, "every rank makes as many passes"
    trained = [row for share in shares for batch in share if not batch.filler for row in batch.rows]
    assert sorted(trained) == list(range(11))
    fillers = [batch for share in shares for batch in share if batch.filler]
    assert all(float(batch.weight.abs().sum()) == 0.0 for batch in fillers)
    if max_tokens == 10**6:
        assert not fillers, "rows that fit into one pass are still dealt out"

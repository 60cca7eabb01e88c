import random
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from herl.models.body import body as body_of
from herl.models.pretrained import PretrainedModel
from herl.sampler.transformers import TransformersSampler
from herl.testing import check_sampler
from herl.update.batch import micro_batches
from herl.update.logprobs import (
    CHUNK_LOGITS,
    WHOLE_LOGITS,
    _chunk,
    _logits,
    _overwritable,
    answer_logprobs,
)
from herl.update.loss.base import Tokens
from herl.update.loss.policy import PolicyLoss
from tests.support.experiences import PACKINGS, in_order, several
from tests.support.naive import padded_logprobs, padded_loss
from tests.support.small_models import model_of


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_and_entropies_equal_the_naive_ones(policy, packing, temperature):
    experiences = several()
    batches = list(micro_batches(experiences, max_tokens=90, aggregation="token_mean", packing=packing))
    expected, entropies = padded_logprobs(policy, experiences, temperature)
    for part, naive in ((0, expected), (1, entropies)):
        values = in_order(batches, lambda b, part=part: answer_logprobs(policy, b, temperature)[part])
        torch.testing.assert_close(values, naive, rtol=1e-5, atol=1e-5)


def loss_and_gradient(policy, experiences, loss, **options):
    policy.zero_grad()
    total = 0.0
    for batch in micro_batches(
        experiences, aggregation=loss.aggregation, constant_length=loss.constant_length, **options
    ):
        logprobs, entropy = answer_logprobs(policy, batch, 1.0, entropy_grad=True)
        value, _ = loss(
            Tokens(
                logprobs=logprobs,
                entropy=entropy,
                old_logprobs=logprobs.detach(),
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
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("chunk", [2**25, 5 * 1024])
def test_loss_and_gradient_equal_the_naive_ones_however_the_step_is_cut(
    policy, aggregation, packing, chunk, monkeypatch
):
    monkeypatch.setitem(WHOLE_LOGITS, "cpu", chunk)  # once without chunks, once in many
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", chunk)
    experiences = several()
    loss = PolicyLoss(
        entropy_coef=0.01, revision_shaping="shaped", aggregation=aggregation, constant_length=32
    )
    policy.zero_grad()
    expected = padded_loss(policy, experiences, loss)
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()]).clone()
    shuffled = list(experiences)
    random.Random(1).shuffle(shuffled)
    for order, budget in ((experiences, 1), (shuffled, 60), (experiences, 10**6)):
        found, other = loss_and_gradient(policy, order, loss, max_tokens=budget, packing=packing)
        assert found == pytest.approx(float(expected.detach()), rel=1e-5)
        assert float((other - gradient).norm() / gradient.norm()) < 1e-5


def test_context_tokens_never_carry_loss(policy):
    """The head sees only the columns that predict answer tokens."""
    [batch] = micro_batches(several(), max_tokens=10**6, aggregation="token_mean")
    seen = []
    policy.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    answer_logprobs(policy, batch, 1.0)
    assert seen == [(1, len(batch.answer_ids), policy.config.hidden_size)]


def test_no_tensor_of_all_logits_exists(policy, monkeypatch):
    """In forward and backward, the head allocates nothing larger than a chunk."""
    vocabulary = policy.config.vocab_size
    monkeypatch.setitem(WHOLE_LOGITS, "cpu", 0)
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", 8 * vocabulary)
    [batch] = micro_batches(several(), max_tokens=10**6, aggregation="token_mean")
    assert len(batch.answer_ids) > 80
    largest = []
    policy.get_output_embeddings().register_forward_hook(lambda *a: largest.append(a[2].shape[-2]))
    logprobs, entropy = answer_logprobs(policy, batch, 1.0, entropy_grad=True)
    forward = len(largest)
    (logprobs.sum() + entropy.sum()).backward()
    assert set(largest) == {8} or set(largest) == {8, len(batch.answer_ids) % 8}
    assert len(largest) == 2 * forward, "each chunk is computed again in backward"


@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("head", [torch.tanh, torch.sigmoid, torch.exp, lambda logits: 3 * logits])
def test_logits_that_the_head_needs_for_its_gradient_are_not_overwritten(monkeypatch, head, checkpointed):
    hidden = torch.randn(50, 1024, requires_grad=True, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(1024, (50,), generator=torch.Generator().manual_seed(1))
    expected = torch.log_softmax(head(hidden), -1).gather(1, ids[:, None]).mean()
    [naive] = torch.autograd.grad(expected, hidden)
    monkeypatch.setattr("herl.update.logprobs._logits", lambda model, body, hidden: head(hidden))
    compute = partial(_chunk, None, None, temperature=1.0, entropy_grad=True)
    if checkpointed:
        compute = partial(checkpoint, compute, use_reentrant=False)
    logprobs, _ = compute(hidden, ids)
    [found] = torch.autograd.grad(logprobs.mean(), hidden)
    torch.testing.assert_close(found, naive, rtol=1e-5, atol=1e-6)


def test_the_entropy_carries_gradient_only_where_it_is_asked_for(policy):
    [batch] = micro_batches(several(), max_tokens=2000, aggregation="token_mean")
    for asked in (True, False):
        assert answer_logprobs(policy, batch, 1.0, entropy_grad=asked)[1].requires_grad == asked


def test_logits_that_all_fit_are_computed_once_even_if_they_take_several_tensors(policy, monkeypatch):
    """A GPU's kernels count elements in 32 bits, but its memory holds more logits than that."""
    [batch] = micro_batches(several(), max_tokens=10**6, aggregation="token_mean")

    def computed():
        policy.zero_grad()
        logprobs, _ = answer_logprobs(policy, batch, 1.0)
        logprobs.sum().backward()
        return logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.parameters()])

    whole = computed()
    monkeypatch.setattr("herl.update.logprobs.LONGEST_TENSOR", 8 * policy.config.vocab_size)
    calls = []
    policy.get_output_embeddings().register_forward_hook(lambda *a: calls.append(1))
    for found, expected in zip(computed(), whole, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert len(calls) == -(-len(batch.answer_ids) // 8)


@pytest.mark.parametrize("name", ["llama", "granite", "qwen3"])
def test_logits_of_a_plain_head_are_overwritten_instead_of_copied(name):
    """A copy would take gigabytes."""
    model = model_of(name)
    [batch] = micro_batches(several(), max_tokens=10**6, aggregation="token_mean")
    body = body_of(model)(input_ids=batch.input_ids, use_cache=False)
    assert _overwritable(_logits(model, body, body.last_hidden_state[0, :8]))


def test_without_gradient_no_chunk_is_computed_twice(policy, monkeypatch):
    monkeypatch.setitem(WHOLE_LOGITS, "cpu", 0)
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", 8 * policy.config.vocab_size)
    [batch] = micro_batches(several(), max_tokens=10**6, aggregation="token_mean")
    calls = []
    policy.get_output_embeddings().register_forward_hook(lambda *a: calls.append(1))
    with torch.no_grad():
        answer_logprobs(policy, batch, 1.0)
    assert len(calls) == -(-len(batch.answer_ids) // 8)


def test_the_model_is_left_as_it_was(policy):
    [batch] = micro_batches(several(), max_tokens=10**6, aggregation="token_mean")
    answer_logprobs(policy, batch, 1.0)
    assert "forward" not in vars(policy)
    assert "forward" not in vars(policy.base_model)


@pytest.mark.integration
def test_a_compiled_model_gives_the_same_numbers_and_samples_as_before():
    models = [PretrainedModel(path="tiny", compile=on).load().train() for on in (False, True)]
    experiences = several()
    results = [
        loss_and_gradient(model, experiences, PolicyLoss(), max_tokens=90, packing="shared")
        for model in models
    ]
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    answers = []
    for model in models:
        sampler = TransformersSampler()
        sampler.start(model, PretrainedModel(path="tiny").tokenizer())
        answers.append(check_sampler(sampler, [5, 6, 7]))
    assert answers[0] == answers[1]


def test_no_gradient_is_added_up_in_the_order_in_which_cores_get_there(policy):
    """On a CPU the backward of tensor[index] does, on a GPU that of index_select; many answers start from one
    place, their context's end."""
    [batch] = micro_batches(several(), max_tokens=4096, aggregation="token_mean")
    assert len(set(batch.before.tolist())) < len(batch.before)
    nodes, names = [answer_logprobs(policy, batch, 1.0)[0].grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in names:
            names.add(node)
            nodes += [following for following, _ in node.next_functions]
    kinds = {type(node).__name__ for node in names}
    assert "EmbeddingBackward0" in kinds
    assert not kinds & {"IndexBackward0", "IndexPutBackward0", "ScatterAddBackward0"}

"""The choice of packing: correct modes are accepted in any precision, and each kind of fault is rejected."""

import random
from dataclasses import replace

import pytest
import torch

from herl.errors import ConfigError
from herl.models import shared_attention
from herl.models.pretrained import PretrainedModel, fixed_positions
from herl.types import Rollout, SampleRequest, Sampling
from herl.update import packing_probe
from herl.update.batch import micro_batches, unjudged
from herl.update.logprobs import answer_logprobs
from herl.update.packing_probe import choose_packing
from tests.support.architectures import model_of

CPU = torch.device("cpu")
sound = shared_attention.blockwise_attention


def answer_by_answer(change):
    """A blockwise attention that computes every answer alone, from rows that `change` has altered."""

    def attend(query, key, value, contexts, **settings):
        output = torch.zeros_like(sound(query, key, value, contexts, **settings))
        for one in contexts:
            for start, end in zip(one.answers, one.answers[1:], strict=False):
                columns = torch.tensor([*range(one.start, one.answers[0]), *range(start, end)])
                output[:, columns] = change(query, key, value, columns, one.answers[0] - one.start, settings)
        return output

    return attend


def plain(query, key, value, scaling, visible=None, **_):
    allowed = torch.ones(query.shape[2], key.shape[2]).tril().bool() if visible is None else visible
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=scaling, enable_gqa=True
    ).transpose(1, 2)


def without_context(query, key, value, columns, context, settings):
    visible = torch.ones(len(columns), len(columns)).tril().bool()
    visible[context:, :context] = False
    return plain(*(t[:, :, columns] for t in (query, key, value)), **settings, visible=visible)


def without_its_context_last_token(query, key, value, columns, context, settings):
    visible = torch.ones(len(columns), len(columns)).tril().bool()
    visible[context:, context - 1] = False
    return plain(*(t[:, :, columns] for t in (query, key, value)), **settings, visible=visible)


def with_the_token_to_come(query, key, value, columns, context, settings):
    visible = torch.ones(len(columns), len(columns)).tril(1).bool()
    return plain(*(t[:, :, columns] for t in (query, key, value)), **settings, visible=visible)


def sees_answers_before(query, key, value, contexts, *, scaling=None, **_):
    return plain(query, key, value, scaling)


FAULTS = {
    "no context": answer_by_answer(without_context),
    "context less its last token": answer_by_answer(without_its_context_last_token),
    "one token ahead": answer_by_answer(with_the_token_to_come),
    "the answers before": sees_answers_before,
}


def moved(change):
    """answer_logprobs of altered micro-batches."""

    def compute(model, batch, temperature):
        return answer_logprobs(model, change(batch) if batch.packing == "shared" else batch, temperature)

    return compute


def late_positions(batch, by=1):
    """Answers start one position late."""
    positions = batch.position_ids.clone()
    for one in batch.contexts:
        positions[:, one.answers[0] : one.end] += by
    return replace(batch, position_ids=positions)


def positions_of_the_row(batch):
    return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1])[None])


def first_token_from_the_column_before(batch):
    before = batch.before.clone()
    before[batch.row.diff(prepend=torch.tensor([-1])) != 0] -= 1
    return replace(batch, before=before)


SUBTLE = "context less its last token"
"""In bfloat16, rounding hides it; the attention tests are in float32."""

ALTERED = (late_positions, positions_of_the_row, first_token_from_the_column_before)
PRECISIONS = (
    "float32",
    *(pytest.param(name, marks=pytest.mark.integration) for name in ("bfloat16", "bf16-mixed")),
)


@pytest.fixture
def tiny(request):
    """The shipped, trained model in a precision, within its autocast."""
    model = PretrainedModel(path="tiny", dtype=request.param.replace("bf16-mixed", "float32")).load()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=request.param == "bf16-mixed"):
        yield model


in_each_precision = pytest.mark.parametrize("tiny", PRECISIONS, indirect=True)
in_both_types = pytest.mark.parametrize("tiny", PRECISIONS[:2], indirect=True)


@in_each_precision
def test_sound_rows_are_shared(tiny):
    assert choose_packing(tiny, CPU) == "shared"


@in_both_types
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_attention_is_refused(tiny, fault, monkeypatch):
    if fault == SUBTLE and tiny.dtype == torch.bfloat16:
        pytest.skip("rounding hides it")
    monkeypatch.setattr(shared_attention, "blockwise_attention", FAULTS[fault])
    assert "its log-probs deviate by" in packing_probe._objection(tiny, "shared", CPU)


@in_both_types
@pytest.mark.parametrize("change", ALTERED)
def test_wrong_positions_and_columns_are_refused(tiny, change, monkeypatch):
    monkeypatch.setattr(packing_probe, "answer_logprobs", moved(change))
    assert "its log-probs deviate by" in packing_probe._objection(tiny, "shared", CPU)


@in_each_precision
def test_a_leak_far_below_rounding_is_refused(tiny, monkeypatch):
    """Adds 1e-4 of the row's mean, which no tolerance for rounding would catch."""

    def leaking(query, key, value, contexts, **settings):
        output = sound(query, key, value, contexts, **settings)
        return output + 1e-4 * value.mean() * output.abs().amax()

    monkeypatch.setattr(shared_attention, "blockwise_attention", leaking)
    assert "nats with the tokens of its neighbors" in packing_probe._objection(tiny, "shared", CPU)


@in_both_types
def test_a_wrong_gradient_is_refused(tiny, monkeypatch):
    """The gradient does not reach keys and values."""

    def forgetful(query, key, value, contexts, **settings):
        return sound(query, key.detach(), value.detach(), contexts, **settings)

    monkeypatch.setattr(shared_attention, "blockwise_attention", forgetful)
    assert "its gradient deviates by" in packing_probe._objection(tiny, "shared", CPU)


@pytest.mark.parametrize("in_backward", [False, True])
def test_any_exception_means_the_next_packing(policy, in_backward, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no kernel for this shape\nand a long trace")

    def attend(query, key, value, contexts, **settings):
        output = sound(query, key, value, contexts, **settings)
        if in_backward:
            output.register_hook(fail)
            return output
        return fail()

    monkeypatch.setattr(shared_attention, "blockwise_attention", attend)
    assert choose_packing(policy, CPU) == "packed"
    [line] = [r.getMessage() for r in caplog.records if r.name == "herl.update.packing_probe"]
    assert line.endswith("is not trained on shared rows: RuntimeError: no kernel for this shape")


def test_an_exception_on_another_rank_counts_here(policy, monkeypatch, caplog):
    theirs = iter([None, *["OutOfMemoryError: of the other rank"] * 2])
    monkeypatch.setattr(packing_probe, "gather", lambda value: [value, next(theirs)])
    assert choose_packing(policy, CPU) == "single"
    assert caplog.text.count("OutOfMemoryError: of the other rank") == 2
    monkeypatch.setattr(packing_probe, "gather", lambda value: [value, "RuntimeError: of the other rank"])
    with pytest.raises(ConfigError, match="LlamaForCausalLM cannot be trained: RuntimeError: of the other"):
        choose_packing(policy, CPU)


def test_log_probs_that_are_not_those_of_eager_attention_are_an_error(policy, monkeypatch):
    def off(model, batch, temperature):
        logprobs, entropy = answer_logprobs(model, batch, temperature)
        return logprobs + 0.01, entropy

    own = policy.config._attn_implementation
    monkeypatch.setattr(packing_probe, "answer_logprobs", off)
    with pytest.raises(ConfigError, match="deviate by 0.01 nats from those of transformers' eager attention"):
        choose_packing(policy, CPU)
    assert policy.config._attn_implementation == own


def test_the_trial_leaves_the_model_as_it_was(policy):
    policy.train()
    policy.model.layers[1].eval()
    modes = [module.training for module in policy.modules()]
    weights = [parameter.clone() for parameter in policy.parameters()]
    gradients = [torch.ones_like(parameter) for parameter in policy.parameters()]
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        parameter.grad = gradient
    random_state, python_state = torch.get_rng_state(), random.getstate()
    with torch.inference_mode():
        assert choose_packing(policy, CPU) == "shared"
    assert [module.training for module in policy.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), weights, strict=True))
    assert all(
        p.grad is g and bool((g == 1).all()) for p, g in zip(policy.parameters(), gradients, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), random_state)
    assert random.getstate() == python_state


def test_activations_are_recomputed_as_in_training_but_nothing_is_dropped(monkeypatch):
    model = PretrainedModel(path="tiny", gradient_checkpointing=True).load().train()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    passes = []
    counted = lambda *a, **k: passes.append(1) or sound(*a, **k)  # noqa: E731
    monkeypatch.setattr(shared_attention, "blockwise_attention", counted)
    assert choose_packing(model, CPU) == "shared"
    layers = model.config.num_hidden_layers
    assert len(passes) == (3 + 1 + 1) * layers  # beside others, and again in the single backward pass


def test_rows_are_long_uneven_and_reach_beyond_the_window():
    for window, most in ((None, None), (512, None), (300, 400), (9000, None), (8, 64)):
        config = model_of("llama").config
        config.sliding_window, config.max_position_embeddings = window, most or 32768
        rollouts = packing_probe._rollouts(config)
        for kind in ("shared", "packed"):
            [row] = micro_batches(
                [unjudged(one) for one in rollouts], max_tokens=2**31, aggregation="token_mean", packing=kind
            )
            length = row.input_ids.shape[1]
            assert length % 128
            assert int(row.position_ids.max()) < config.max_position_embeddings
            if most is None:
                assert length >= 400
                assert int(row.position_ids.max()) >= (0 if window == 9000 else window or 0)


def beside(kept, fill):
    """Three answers to two contexts, in a row: the tokens of all but the kept one depend on `fill`."""
    rollouts = packing_probe._rollouts(model_of("llama").config)
    return [
        one if place == kept else replace(one, token_ids=tuple((t * 7 + fill) % 97 for t in one.token_ids))
        for place, one in enumerate(rollouts)
    ]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("kind", ["shared", "packed"])
def test_the_gradient_of_an_answer_does_not_depend_on_its_neighbors(name, kind):
    """The loss is on one answer; its neighbors have weight 0 and other tokens."""
    model = model_of(name)
    assert choose_packing(model, CPU) == "shared"
    for kept in range(3):
        gradients = []
        for fill in (1, 5):
            [row] = micro_batches(
                [unjudged(one) for one in beside(kept, fill)],
                max_tokens=2**31,
                aggregation="token_mean",
                packing=kind,
            )
            logprobs, _ = answer_logprobs(model, row, 1.0)
            model.zero_grad()
            (logprobs * (row.row == row.rows.index(kept))).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-6


@pytest.mark.parametrize("rows_before", [0, 1])
def test_memory_that_runs_out_is_no_objection_to_a_packing(policy, monkeypatch, rows_before):
    """The whole run would train on single rows, several times slower."""
    passes = []

    def forward(*arguments, **settings):
        passes.append(1)
        if len(passes) > rows_before:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_logprobs(*arguments, **settings)

    monkeypatch.setattr(packing_probe, "answer_logprobs", forward)
    with pytest.raises(ConfigError, match="too little free memory to try a row .*gpu_memory_utilization"):
        choose_packing(policy, CPU)


def longrope(original):
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "factor": 512 / original}
    rope = {"rope_type": "longrope", "rope_theta": 1e4} | factors
    settings = {"rope_parameters": rope, "original_max_position_embeddings": original}
    return model_of("phi3-long", more={"phi3-long": settings})


@pytest.mark.parametrize("kind", ["shared", "packed", "single"])
def test_embeddings_chosen_by_the_longest_sequence_are_the_same_up_to_the_original_context(kind):
    model, limit = longrope(96), 96
    assert fixed_positions(model.config) == limit

    def short_beside(context):
        draw = random.Random(0)
        ids = [tuple(draw.randrange(1024) for _ in range(n)) for n in (20, 12, context, 12)]
        made = [
            unjudged(Rollout.answering(asked, 0, token_ids=answer, logprobs=(0.0,) * 12))
            for asked, answer in ((request_of(ids[0]), ids[1]), (request_of(ids[2]), ids[3]))
        ]
        found = {}
        for batch in micro_batches(made, max_tokens=2**31, aggregation="token_mean", packing=kind):
            with torch.no_grad():
                logprobs, _ = answer_logprobs(model, batch, 1.0)
            found.update(zip(batch.rows, logprobs.split(batch.answer_lengths), strict=True))
        return found[0]

    torch.testing.assert_close(short_beside(limit - 12), short_beside(40), rtol=0, atol=1e-4)
    beyond = float((short_beside(limit - 11) - short_beside(40)).abs().max())
    assert (beyond > 1e-2) == (kind != "single")


def request_of(prompt_ids):
    return SampleRequest(
        task_id=str(len(prompt_ids)), group_id=str(len(prompt_ids)), prompt_ids=prompt_ids, n=1,
        sampling=Sampling(), seed=0,
    )  # fmt: skip


def test_rows_are_tried_within_the_original_context():
    assert choose_packing(longrope(128), CPU) == "shared"

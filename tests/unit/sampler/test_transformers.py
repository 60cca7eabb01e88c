import math
from collections import Counter

import pytest
import torch

from herl import ConfigError, SampleRequest, SamplerError, Sampling
from herl.models.chat_template import render
from herl.models.weights import named_weights
from herl.sampler import CardNeeds, RunLimits
from herl.sampler.packed_linears import packed_linears
from herl.sampler.prompt_cache import CopiedPrompts, SharedPrompts, last_logits, objection_to, prompt_cache
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.static_prompts import serves
from herl.sampler.transformers import TransformersSampler
from herl.testing import check_sampler, make_experience
from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs
from tests.support.small_models import ARCHITECTURES, model_of

PROMPTS = {
    "otter": "Describe the otter, a mammal.",
    "bee": "Introduce the bee, an insect.",
    "long": "Explain the fox, a mammal. Explain the owl, a bird. Explain the eel, a fish.",
}


def request(tokenizer, name, *, n=3, seed=5, **sampling):
    return SampleRequest(
        task_id=name,
        group_id=name,
        prompt_ids=render(tokenizer, [{"role": "user", "content": PROMPTS[name]}]),
        n=n,
        sampling=Sampling(**({"max_new_tokens": 24} | sampling)),
        seed=seed,
    )


@pytest.fixture
def sampler(policy, tokenizer):
    sampler = TransformersSampler(batch_size=4)
    sampler.start(policy, tokenizer)
    return sampler


def by_id(rollouts):
    return {rollout.id: rollout for rollout in rollouts}


def test_keeps_the_contract(sampler, tokenizer):
    check_sampler(sampler, request(tokenizer, "otter").prompt_ids)


def test_answers_do_not_depend_on_what_else_is_sampled_or_in_which_order(sampler, tokenizer):
    requests = [request(tokenizer, name, seed=i) for i, name in enumerate(PROMPTS)]
    together = by_id(sampler.generate(requests))
    sampler.batch_size = 100
    reversed_order = by_id(sampler.generate(requests[::-1]))
    alone = by_id(rollout for r in requests for rollout in sampler.generate([r]))
    assert len(together) == 9
    for id, rollout in together.items():
        assert reversed_order[id].token_ids == rollout.token_ids == alone[id].token_ids
        assert reversed_order[id].logprobs == pytest.approx(rollout.logprobs, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampler_logprobs_equal_trainer_logprobs(sampler, policy, tokenizer, temperature):
    requests = [request(tokenizer, name, temperature=temperature, n=6) for name in PROMPTS]
    experiences = [make_experience(rollout) for rollout in sampler.generate(requests)]
    for batch in micro_batches(experiences, max_tokens=500, aggregation="token_mean"):
        logprobs, _ = answer_logprobs(policy, batch, temperature)
        torch.testing.assert_close(logprobs, batch.sampler_logprobs, rtol=0, atol=1e-4)


def test_an_answer_ends_with_the_end_token_only_if_the_policy_gave_one(sampler, tokenizer):
    rollouts = list(sampler.generate([request(tokenizer, "otter", n=8, max_new_tokens=64)]))
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert stopped
    assert all(rollout.token_ids[-1] == tokenizer.eos_token_id for rollout in stopped)
    cut = list(sampler.generate([request(tokenizer, "otter", n=8, max_new_tokens=3)]))
    assert {(len(r.token_ids), r.finish_reason) for r in cut} == {(3, "length")}
    assert all(tokenizer.eos_token_id not in rollout.token_ids for rollout in cut)


def test_text_is_the_answer_without_special_tokens(sampler, tokenizer):
    [rollout] = sampler.generate([request(tokenizer, "otter", n=1, max_new_tokens=64)])
    assert "<|" not in rollout.text
    assert rollout.text.startswith(("It ", "Hello ", "Animals "))


def test_sampled_frequencies_follow_the_policy(sampler, policy, tokenizer):
    one = request(tokenizer, "otter", n=3000, max_new_tokens=1)
    sampler.batch_size = 3000
    seen = Counter(rollout.token_ids[0] for rollout in sampler.generate([one]))
    logits = policy(input_ids=torch.tensor([one.prompt_ids])).logits[0, -1].detach()
    probabilities = torch.softmax(logits, -1)
    for token, probability in enumerate(probabilities.tolist()):
        if probability > 0.02:
            error = 4 * math.sqrt(probability * (1 - probability) / 3000)
            assert seen[token] / 3000 == pytest.approx(probability, abs=error)


def test_greedy_takes_the_likeliest_token_and_top_p_the_nucleus(sampler, policy, tokenizer):
    greedy = request(tokenizer, "otter", n=1, temperature=0.0)
    [rollout] = sampler.generate([greedy])
    ids = list(greedy.prompt_ids)
    for token in rollout.token_ids:
        assert token == int(policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    [tiny_nucleus] = sampler.generate([request(tokenizer, "otter", n=1, top_p=1e-6)])
    assert tiny_nucleus.token_ids == rollout.token_ids


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2", "phi3", "granite", "cohere", "mixtral"])
def test_answers_that_share_their_prompt_are_those_with_a_copy_of_it(kind, monkeypatch):
    monkeypatch.setattr("herl.sampler.prompt_cache.ROOM", 3)
    model = model_of(kind, **ARCHITECTURES[kind])
    draw = torch.Generator().manual_seed(0)
    prompts, tokens = (
        torch.randint(3, 1000, (3, 12), generator=draw),
        torch.randint(3, 1000, (6, 9), generator=draw),
    )
    mask = (torch.arange(12) >= torch.tensor([[0], [5], [11]])).long()
    kept_after = {2: [0, 1, 3, 4], 5: [3, 1]}  # the third prompt has no answer left; then another order
    make = prompt_cache(model)
    assert isinstance(make(), SharedPrompts)
    found = {}
    for cache in (make(), CopiedPrompts(config=model.config)):
        owner = torch.tensor([1, 0, 2, 1, 1, 0])
        with torch.no_grad():
            logits = [last_logits(model, prompts, mask, cache)]
            cache.share(owner, mask)
            so_far, ids = mask[owner], tokens
            for step in range(9):
                if step in kept_after:
                    kept = torch.tensor(kept_after[step])
                    cache.batch_select_indices(kept)
                    so_far, ids = so_far[kept], ids[kept]
                so_far = torch.cat([so_far, so_far.new_ones(len(so_far), 1)], dim=1)
                logits.append(last_logits(model, ids[:, step, None], so_far, cache))
        found[type(cache)] = torch.cat(logits)
    torch.testing.assert_close(found[SharedPrompts], found[CopiedPrompts], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma3_text", "mistral", "qwen3-sliding"])
def test_windows_of_attention_get_a_copy_of_the_prompt(kind, caplog):
    caplog.set_level("INFO")
    model = model_of(kind.split("-")[0], **ARCHITECTURES[kind])
    assert isinstance(prompt_cache(model)(), CopiedPrompts)
    assert "do not share their prompt's keys and values: its layers do not all see" in caplog.text


def test_a_model_that_computes_something_else_with_shared_prompts_gets_copies(policy, monkeypatch, caplog):
    caplog.set_level("INFO")
    assert isinstance(prompt_cache(policy)(), SharedPrompts)
    assert isinstance(prompt_cache(model_of("nemotron"))(), CopiedPrompts), "it calls sdpa by itself"
    assert "log-probs deviate by" in caplog.text
    monkeypatch.delattr(SharedPrompts, "attend")
    assert isinstance(prompt_cache(policy)(), CopiedPrompts)
    assert "keys and values: AttributeError: " in caplog.text


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_rounding_of_large_logits_is_no_objection_to_shared_prompts_and_a_lost_prompt_is(
    policy, scale, monkeypatch
):
    """In bfloat16 log-probs of a trained model with large logits differ by tenths of a nat for rounding alone."""
    with torch.no_grad():
        policy.model.norm.weight *= scale
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert isinstance(prompt_cache(policy)(), SharedPrompts)
        assert serves(policy)
        given = SharedPrompts.share
        hidden = lambda cache, owner, mask: given(cache, owner, torch.zeros_like(mask))  # noqa: E731
        monkeypatch.setattr(SharedPrompts, "share", hidden)
        assert isinstance(prompt_cache(policy)(), CopiedPrompts)


def test_memory_that_runs_out_is_no_objection_to_a_cache(policy):
    def tried():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        objection_to(policy, tried, torch.zeros(21))
    assert objection_to(policy, lambda: torch.zeros(0)[1], torch.zeros(21)).startswith("IndexError: ")


def test_sampled_answers_are_the_same_with_a_copy_of_the_prompt(sampler, policy, tokenizer):
    requests = [request(tokenizer, name, seed=i, n=5) for i, name in enumerate(PROMPTS)]
    sampler.batch_size = 100
    shared = by_id(sampler.generate(requests))
    sampler._new_cache = lambda: CopiedPrompts(config=policy.config)
    for id, rollout in by_id(sampler.generate(requests)).items():
        assert rollout.token_ids == shared[id].token_ids
        assert rollout.logprobs == pytest.approx(shared[id].logprobs, abs=1e-4)


def test_packed_linears_compute_the_same_and_leave_the_model_as_it_was(monkeypatch):
    model = model_of("qwen2")  # with biases
    ids = torch.randint(3, 1000, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with packed_linears(model, rows=2):
            assert not packed(model), "a small model is in the cache"
        monkeypatch.setattr("herl.sampler.packed_linears.MIN_WEIGHTS", 1)
        with packed_linears(model, rows=2):
            assert len(packed(model)) == 2 * 7 + 1
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-4)
            with (
                torch.enable_grad(),
                pytest.raises(RuntimeError, match="expected neither gradients nor new weights"),
            ):
                model(input_ids=ids)
        assert not packed(model)
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_packed_weights_that_have_changed_are_refused(policy, monkeypatch):
    monkeypatch.setattr("herl.sampler.packed_linears.MIN_WEIGHTS", 1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), packed_linears(policy, rows=1):
        policy(input_ids=ids)
        policy.get_output_embeddings().weight.mul_(2)
        with pytest.raises(RuntimeError, match="was a sampler's generate\\(\\) left unfinished"):
            policy(input_ids=ids)


def test_packed_weights_stand_back_under_autocast(sampler, tokenizer, monkeypatch):
    monkeypatch.setattr("herl.sampler.packed_linears.MIN_WEIGHTS", 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(list(sampler.generate([request(tokenizer, "otter")]))) == 3


def test_own_weights_give_the_same_answers_and_stay_as_of_the_last_refresh(sampler, policy, tokenizer):
    own, live = TransformersSampler(batch_size=4, own_weights=True), sampler
    before = torch.get_rng_state()
    own.start(policy, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    assert (own.live, live.live) == (False, True)
    own.load_weights(named_weights(policy, checkpoint=False), 7)
    assert own.lost_weights() == []
    requests = [request(tokenizer, name) for name in PROMPTS]
    first = by_id(own.generate(requests))
    assert {one.policy_version for one in first.values()} == {7}
    same(first, by_id(live.generate(requests)))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.9)
    assert by_id(own.generate(requests)) == first
    changed = by_id(live.generate(requests))
    assert any(changed[id].token_ids != one.token_ids for id, one in first.items())
    own.load_weights(named_weights(policy, checkpoint=False), 8)
    same(by_id(own.generate(requests)), changed)


def same(found, expected):
    """Up to rounding, which depends on where in memory weights lie."""
    assert found.keys() == expected.keys()
    for id, one in found.items():
        assert one.token_ids == expected[id].token_ids
        assert one.logprobs == pytest.approx(expected[id].logprobs, abs=1e-4)


def test_own_weights_are_refused_on_a_gpu():
    card = CardNeeds(parameters=1, kv_bytes=1, resident_gib=1.0, update_gib=1.0)
    limits = RunLimits(longest_tokens=9, dtype=torch.float32, refreshed_every_batch=True, card=card)
    with pytest.raises(ConfigError, match="sampler.own_weights: expected false on a GPU, got true"):
        TransformersSampler(own_weights=True).prepare(limits)
    with pytest.raises(ConfigError, match="rollout.batches_ahead: expected 0 with sampler=transformers on a"):
        TransformersSampler(own_weights=True).check_ahead(device_type="cuda", sharded=False)
    TransformersSampler().check_ahead(device_type="cpu", sharded=True)


def test_no_requests_are_no_work(sampler):
    assert list(sampler.generate([])) == []


def packed(model):
    return [layer for layer in model.modules() if "forward" in vars(layer)]


def test_packed_weights_are_the_present_ones(sampler, policy, tokenizer, monkeypatch):
    monkeypatch.setattr("herl.sampler.packed_linears.MIN_WEIGHTS", 1)
    wanted = request(tokenizer, "otter", n=4)
    for scale in (1.0, 0.5):
        with torch.no_grad():
            policy.get_output_embeddings().weight.mul_(scale)
        experiences = [make_experience(rollout) for rollout in sampler.generate([wanted])]
        [batch] = micro_batches(experiences, max_tokens=500, aggregation="token_mean")
        ours, _ = answer_logprobs(policy, batch, 1.0)
        torch.testing.assert_close(ours, batch.sampler_logprobs, rtol=0, atol=1e-4)


def test_sampling_leaves_the_callers_gradient_mode_alone(sampler, tokenizer):
    for _ in sampler.generate([request(tokenizer, "otter")]):
        assert torch.is_grad_enabled()


def test_a_batch_size_of_0_is_refused():
    with pytest.raises(ConfigError, match="sampler.batch_size: expected at least 1, got 0"):
        TransformersSampler(batch_size=0)


def test_scripted_sampler_answers_from_its_script(policy, tokenizer):
    sampler = ScriptedSampler({"task": ["It eats fish.", "It can swim."]})
    sampler.start(policy, tokenizer)
    rollouts = check_sampler(sampler, [1, 2, 3], n=3)
    assert [r.text for r in rollouts] == ["It eats fish.", "It can swim.", "It eats fish."]
    with pytest.raises(SamplerError, match="expected a text for task 'otter'"):
        list(sampler.generate([request(tokenizer, "otter")]))


def test_a_sampler_that_never_started_can_be_closed():
    TransformersSampler().close()

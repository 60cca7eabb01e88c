import pytest
import torch

from herl import SampleRequest, SamplerError, Sampling
from herl.sampler import device_decoding
from herl.sampler.answer import OpenAnswer
from herl.sampler.cast_linears import CastLinears
from herl.sampler.device_decoding import DeviceDecoder
from herl.sampler.drawing import truncates
from herl.sampler.replays import WARM_UPS, Replays
from herl.sampler.static_prompts import serves
from herl.sampler.transformers import TransformersSampler, _uniforms
from tests.support.naive import drawn_from
from tests.support.small_models import ARCHITECTURES, model_of


class Recorder:
    """Simulates CUDA graphs: a replay raises where a real one would read memory that has moved."""

    def __init__(self):
        self.decoder = None
        self.warmed_up = self.recorded = self.replayed = 0

    def addresses(self):
        cache, slots = self.decoder._cache, self.decoder._slots
        buffers = [buffer for layer in cache._layers for buffer in layer.buffers()]
        buffers += [cache._lengths, *slots._by_row.values(), *slots._tables.values()]
        return [buffer.flat.data_ptr() for buffer in buffers]

    def warm_up(self, step):
        self.warmed_up += 1
        step()

    def record(self, step):
        self.recorded += 1
        addresses, shape, columns = self.addresses(), self.decoder._cache.shape, self.decoder._slots.columns

        def replay():
            assert (addresses, shape, columns) == (
                self.addresses(),
                self.decoder._cache.shape,
                self.decoder._slots.columns,
            )
            self.replayed += 1
            step()

        return replay


def decoder_of(model, recorder=None):
    decoder = DeviceDecoder(model.eval(), frozenset({2}), recorder)
    if recorder is not None:
        recorder.decoder = decoder
    return decoder


def many_requests(count=7):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 50, (count,), generator=draw).tolist()
    return [
        SampleRequest(
            task_id=str(place),
            group_id=str(place),
            prompt_ids=tuple(torch.randint(3, 300, (length,), generator=draw).tolist()),
            n=[5, 3, 1, 4][place % 4],
            seed=place,
            sampling=Sampling(
                max_new_tokens=[12, 1, 25, 5, 40][place % 5],
                temperature=[1.0, 0.7, 0.0, 1.3][place % 4],
                top_p=[1.0, 0.9, 1.0][place % 3],
                top_k=[0, 0, 20, 0, 5][place % 5],
                min_p=[0.0, 0.0, 0.0, 0.3][place % 4],
            ),
        )
        for place, length in enumerate(lengths)
    ]


def answers_to(requests):
    return [OpenAnswer(one, index, _uniforms(one, index)) for one in requests for index in range(one.n)]


def assert_right(model, found, requests):
    """Every answer is returned, and equals the one its random numbers draw from the model, answer by answer."""
    expected = {(one.task_id, index) for one in requests for index in range(one.n)}
    assert {(one.request.task_id, one.index) for one in found} == expected
    assert len(found) == len(expected)
    for answer in found:
        limit, ids = answer.request.sampling.max_new_tokens, answer.token_ids
        assert 1 <= len(ids) <= limit
        assert (ids[-1] == 2) or len(ids) == limit
        assert 2 not in ids[:-1]
        start = len(answer.request.prompt_ids)
        with torch.no_grad():
            whole = torch.tensor([answer.request.prompt_ids + tuple(ids)])
            logits = model(input_ids=whole, use_cache=False).logits[0, start - 1 : -1].double()
        for token, logprob, uniform, row in zip(ids, answer.logprobs, answer.uniforms, logits, strict=False):
            assert_drawn(token, logprob, float(uniform), row, answer.request.sampling)


def assert_drawn(token, logprob, uniform, logits, sampling):
    expected = drawn_from(logits, sampling)
    assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
    if sampling.temperature == 0:
        assert float(logits[token]) == pytest.approx(float(logits.max()), abs=1e-4)
        return
    probabilities = expected.exp()
    if truncates(sampling):
        likelier = probabilities > probabilities[token]
    else:
        likelier = torch.arange(len(logits)) < token
    below = float(probabilities[likelier].sum())
    assert below - 1e-4 <= uniform <= below + float(probabilities[token]) + 1e-4


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(device_decoding, "MIN_ROOM", 8)
    monkeypatch.setattr(device_decoding, "LOOK", 5)


@pytest.fixture(scope="module")
def talker():
    """A model that seldom ends its answers, so that they have the requested lengths."""
    return model_of("qwen3")


@pytest.mark.parametrize(("rows", "count"), [(1000, 7), (9, 7), (1, 3)])
def test_answers_are_what_their_own_numbers_draw(talker, rows, count):
    recorder, requests = Recorder(), many_requests(count)
    decoder = decoder_of(talker, recorder)
    assert_right(talker, list(decoder.sample(answers_to(requests), rows)), requests)
    recorded, replayed = recorder.recorded, recorder.replayed
    assert replayed > recorded > 0
    assert_right(talker, list(decoder.sample(answers_to(requests), rows)), requests)
    assert recorder.replayed > replayed


def test_a_second_batch_of_the_same_shapes_replays_what_the_first_recorded(talker):
    recorder, requests = Recorder(), many_requests(4)
    decoder = decoder_of(talker, recorder)
    recorded = []
    for _ in range(4):  # growing buffers move, so earlier recordings are repeated
        list(decoder.sample(answers_to(requests), 1000))
        recorded.append(recorder.recorded)
    assert recorded[-1] == recorded[-2] > 0


def test_prompts_are_run_in_several_passes(talker, monkeypatch):
    monkeypatch.setattr(device_decoding, "PREFILL_TOKENS", 60)
    requests = many_requests()
    assert_right(talker, list(decoder_of(talker).sample(answers_to(requests), 1000)), requests)


def test_what_earlier_answers_left_behind_does_not_matter(talker):
    """Not even NaN in memory of earlier batches, or in rows of this one that became free."""
    decoder, requests = decoder_of(talker), many_requests()
    list(decoder.sample(answers_to(requests), 9))
    for layer in decoder._cache._layers:
        for buffer in layer.buffers():
            buffer.flat.fill_(torch.nan)
    found, broken = [], 0
    for answer in decoder.sample(answers_to(requests), 9):
        found.append(answer)
        free = [place for place, line in enumerate(decoder._lines) if line is None]
        broken += len(free)
        for layer in decoder._cache._layers:
            for states in layer.views(decoder._cache.shape)[1]:
                states[free] = torch.nan
    assert broken
    assert_right(talker, found, requests)


def test_new_weights_are_sampled_from_without_recording_again():
    model, recorder, requests = model_of("qwen3"), Recorder(), many_requests(3)
    decoder, recorded = decoder_of(model, recorder), []
    for _ in range(3):
        assert_right(model, list(decoder.sample(answers_to(requests), 100)), requests)
        recorded.append(recorder.recorded)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(0.5)
    assert recorded[-1] == recorded[-2]


def test_weights_that_moved_are_recorded_again():
    model, recorder, requests = model_of("qwen3"), Recorder(), many_requests(3)
    decoder = decoder_of(model, recorder)
    for _ in range(3):
        list(decoder.sample(answers_to(requests), 100))
    recorded = recorder.recorded
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.clone()
    list(decoder.sample(answers_to(requests), 100))
    assert recorder.recorded > recorded


def test_an_abandoned_batch_leaves_nothing_behind(talker):
    decoder, requests = decoder_of(talker), many_requests()
    begun = decoder.sample(answers_to(requests), 5)
    next(begun)
    with pytest.raises(RuntimeError, match="expected one generate\\(\\) of a sampler at a time"):
        next(decoder.sample(answers_to(requests), 5))
    begun.close()
    assert_right(talker, list(decoder.sample(answers_to(requests), 20)), requests)


def test_sampling_in_inference_mode_and_out_of_it_is_the_same(talker):
    decoder, requests = decoder_of(talker), many_requests(4)
    with torch.inference_mode():
        assert_right(talker, list(decoder.sample(answers_to(requests), 20)), requests)
    found = []
    for answer in decoder.sample(answers_to(requests), 20):
        assert torch.is_grad_enabled()
        found.append(answer)
    assert_right(talker, found, requests)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "granite", "cohere", "mixtral", "smollm3"])
def test_architectures_that_share_prompts_are_served(kind):
    model, requests = model_of(kind, **ARCHITECTURES[kind]), many_requests(3)
    assert serves(model)
    assert_right(model, list(decoder_of(model).sample(answers_to(requests), 9)), requests)


def test_a_model_that_attends_in_another_way_is_not_served(caplog):
    caplog.set_level("INFO")
    assert not serves(model_of("nemotron"))
    assert "is sampled without static caches and CUDA graphs: log-probs deviate by" in caplog.text


def test_in_mixed_precision_states_are_in_its_type(talker):
    one = SampleRequest(
        task_id="a",
        group_id="a",
        prompt_ids=tuple(range(3, 60)),
        n=4,
        seed=0,
        sampling=Sampling(max_new_tokens=20),
    )
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        decoder = decoder_of(talker)
        answers = list(decoder.sample(answers_to([one]), 100))
        assert {buffer.flat.dtype for buffer in decoder._cache._layers[0].buffers()} == {torch.bfloat16}
        ids = torch.tensor([one.prompt_ids + tuple(answer.token_ids) for answer in answers])
        with torch.no_grad():
            logits = talker(input_ids=ids).logits[:, 56:-1].float()
    ours = logits.log_softmax(-1).gather(-1, ids[:, 57:, None])[..., 0]
    theirs = torch.tensor([answer.logprobs for answer in answers])
    assert float((ours - theirs).abs().mean()) < 0.02


def test_a_sampler_decodes_on_its_device_through_its_decoder(policy, tokenizer, monkeypatch):
    sampler, requests = TransformersSampler(batch_size=6), many_requests(4)
    sampler.start(policy, tokenizer)
    monkeypatch.setattr(sampler, "_decodes_on_device", lambda settings: True)
    sampler._decoder = DeviceDecoder(policy, sampler._end_ids, None)
    sampler.load_weights([], version=3)
    rollouts = list(sampler.generate(requests))
    assert {one.policy_version for one in rollouts} == {3}
    assert sorted(one.id for one in rollouts) == sorted(
        f"{one.task_id}/{i}" for one in requests for i in range(one.n)
    )
    for one in rollouts:
        request = requests[int(one.task_id)]
        assert one.prompt_ids == request.prompt_ids
        assert (one.finish_reason == "length") == (one.token_ids[-1] not in sampler._end_ids)
    sampler.close()
    assert sampler._decoder is None


# Recordings


def test_a_step_is_run_before_it_is_recorded_and_replayed_after():
    ran, recorder = [], Recorder()
    recorder.record = lambda step: lambda: ran.append("replay")
    replays = Replays(recorder)
    for _ in range(WARM_UPS + 2):
        replays.run("a", lambda: ran.append("step"))
    assert ran == ["step"] * WARM_UPS + ["replay"] * 2
    replays.clear()
    replays.run("a", lambda: ran.append("step"))
    assert ran[-1] == "step"


def test_with_too_many_recordings_the_oldest_goes(monkeypatch):
    monkeypatch.setattr("herl.sampler.replays.MAX_RECORDINGS", 3)
    ran, recorder = [], Recorder()
    recorder.record = lambda step: lambda: ran.append("replay")
    replays = Replays(recorder)
    for key in "abcd":
        for _ in range(WARM_UPS + 1):
            replays.run(key, lambda: ran.append("step"))
    assert list(replays._recordings) == ["b", "c", "d"]
    ran.clear()
    for key in "bcda":
        replays.run(key, lambda: ran.append("step"))
    assert ran == ["replay"] * 4, "the oldest is recorded again without warming up"


def test_a_step_that_cannot_be_recorded_runs_on_and_says_why_once(caplog):
    def refuse(step):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("the end of the recording failed")

    ran, recorder = [], Recorder()
    recorder.record = refuse
    replays = Replays(recorder)
    for key in "ab":
        for _ in range(5):
            replays.run(key, lambda: ran.append("step"))
    assert len(ran) == 10
    [record] = caplog.records
    assert "RuntimeError: operation not permitted when stream is capturing" in record.getMessage()


# Cast weights


def test_cast_weights_compute_what_autocast_computes():
    model, cast = model_of("qwen2"), CastLinears()  # with biases
    ids = torch.arange(3, 12)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for _ in range(2):
            expected = model(input_ids=ids).logits
            with cast.used(model):
                copies = [copy.data_ptr() for copies in cast._copies.values() for copy in copies]
                assert len(copies) == 2 * (4 + 3 + 3) + 1
                assert torch.equal(model(input_ids=ids).logits, expected)
                with torch.enable_grad(), pytest.raises(RuntimeError, match="expected no gradients"):
                    model(input_ids=ids)
            assert torch.equal(model(input_ids=ids).logits, expected)
            for parameter in model.parameters():
                parameter.mul_(1.5)
    assert copies == [copy.data_ptr() for copies in cast._copies.values() for copy in copies]
    assert cast.nbytes > 0
    cast.clear()
    assert cast.nbytes == 0


def test_without_autocast_no_weights_are_cast():
    model, cast = model_of("qwen2"), CastLinears()
    with cast.used(model):
        assert not any("forward" in vars(layer) for layer in model.modules())


# States other than keys and values

HYBRIDS = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
    "qwen3_next": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


@pytest.mark.parametrize("kind", HYBRIDS)
def test_models_with_states_beside_attention_are_sampled(kind, tokenizer):
    model = model_of(kind, **HYBRIDS[kind])
    sampler = TransformersSampler()
    sampler.start(model, tokenizer)
    requests = many_requests(4)
    for rollout in sampler.generate(requests):
        ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1]
        sampling = requests[int(rollout.task_id)].sampling
        for row, token, logprob in zip(logits, rollout.token_ids, rollout.logprobs, strict=True):
            assert logprob == pytest.approx(float(drawn_from(row, sampling)[token]), abs=1e-3)


def test_a_model_that_keeps_states_of_its_own_is_refused(tokenizer):
    model = model_of(
        "recurrent_gemma", lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"]
    )
    sampler = TransformersSampler()
    sampler.start(model, tokenizer)
    with pytest.raises(
        SamplerError, match="cannot sample from RecurrentGemmaForCausalLM: .* Use a vLLM sampler"
    ):
        list(sampler.generate(many_requests(1)))

"""Stop strings and settings of the distribution, alike in all samplers."""

import asyncio
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import httpx
import pytest

from herl import SampleRequest, Sampling
from herl.models.chat_template import render
from herl.sampler import nothing_more
from herl.sampler.answer import ends_by_stop
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.transformers import TransformersSampler
from herl.sampler.vllm import VLLMSampler
from herl.sampler.vllm_server import VLLMServerSampler
from herl.seeds import derive_seed
from tests.support.naive import logprobs_drawn_with

SETTINGS = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01,
    "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1,
}  # fmt: skip


def request(tokenizer, *, n=2, seed=5, **sampling):
    return SampleRequest(
        task_id="otter",
        group_id="otter",
        prompt_ids=render(tokenizer, [{"role": "user", "content": "Describe the otter, a mammal."}]),
        n=n,
        sampling=Sampling(**({"max_new_tokens": 40} | sampling)),
        seed=seed,
    )


def transformers_sampler(policy, tokenizer):
    sampler = TransformersSampler()
    sampler.start(policy, tokenizer)
    return sampler


# Log-probs


@pytest.mark.parametrize(
    "sampling",
    [
        SETTINGS,
        {"top_p": 0.5},
        {"top_k": 2},
        {"min_p": 0.5},
        {"repetition_penalty": 2.0},
        {"stop": [" fish"]},
    ],
)
def test_a_sampler_tells_the_log_probs_that_it_drew_with(policy, tokenizer, sampling):
    asked = request(tokenizer, n=6, **sampling)
    plain = Sampling(temperature=asked.sampling.temperature)
    differs = False
    for answer in transformers_sampler(policy, tokenizer).generate([asked]):
        sequence = policy, asked.prompt_ids, answer.token_ids
        assert answer.logprobs == pytest.approx(logprobs_drawn_with(*sequence, asked.sampling), abs=1e-4)
        differs |= answer.logprobs != pytest.approx(logprobs_drawn_with(*sequence, plain), abs=0.01)
    assert differs == (set(sampling) != {"stop"}), "unlike those of the whole distribution"


def test_answers_with_penalties_do_not_depend_on_what_else_is_sampled(policy, tokenizer):
    sampler = transformers_sampler(policy, tokenizer)
    odd, plain = request(tokenizer, **SETTINGS), replace(request(tokenizer, n=3), group_id="other", seed=9)
    together = {one.id: one.token_ids for one in sampler.generate([odd, plain])}
    alone = {one.id: one.token_ids for asked in (odd, plain) for one in sampler.generate([asked])}
    assert together == alone


# Stop strings


def test_a_stop_string_may_lie_across_tokens_but_special_tokens_are_no_text(tokenizer):
    ids = tokenizer.encode("It eats fish. It lives in rivers.", add_special_tokens=False)
    ends = [n for n in range(1, len(ids) + 1) if ends_by_stop(tokenizer, ids[:n], ["ts fish. I", "never"])]
    assert ends[0] == 5
    assert tokenizer.decode(ids[:5]) == "It eats fish. It"
    end = tokenizer.eos_token_id
    assert ends_by_stop(tokenizer, [*ids[:2], end, *ids[2:4]], ["eats fish."])
    assert not ends_by_stop(tokenizer, ids, [])
    assert not ends_by_stop(tokenizer, [], ["x"])


def test_a_stop_string_ends_an_answer_and_is_judged_with_it(policy, tokenizer):
    sampler = transformers_sampler(policy, tokenizer)
    whole = {one.id: one for one in sampler.generate([request(tokenizer, n=8)])}
    cut = {one.id: one for one in sampler.generate([request(tokenizer, n=8, stop=["er. I", "lives"])])}
    stopped = 0
    for id, answer in cut.items():
        ids = answer.token_ids
        assert ids == whole[id].token_ids[: len(ids)], "the ids that were sampled"
        assert answer.logprobs == pytest.approx(whole[id].logprobs[: len(ids)], abs=1e-4)
        if len(ids) < len(whole[id].token_ids):
            stopped += 1
            assert answer.finish_reason == "stop"
            assert any(text in answer.text for text in ("er. I", "lives")), "judges see it"
            assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
            assert not any(text in tokenizer.decode(ids[:-1]) for text in ("er. I", "lives"))
    assert stopped >= 4


def test_a_script_stops_there_too(policy, tokenizer):
    sampler = ScriptedSampler({"otter": ["It eats fish. It lives in rivers.", "It swims."]})
    sampler.start(policy, tokenizer)
    first, second = sampler.generate([request(tokenizer, stop=["fish. I"])])
    assert (first.text, first.finish_reason) == ("It eats fish. It", "stop")
    assert (second.text, second.finish_reason) == ("It swims.", "stop")
    assert second.token_ids[-1] == tokenizer.eos_token_id


class FakeParams(SimpleNamespace):
    """What vLLM would get as SamplingParams."""


@pytest.fixture
def fake_vllm(monkeypatch):
    package, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.SamplingParams = FakeParams
    params.RequestOutputKind = SimpleNamespace(CUMULATIVE="cumulative", FINAL_ONLY="final")
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)


class FakeEngine:
    """An engine that writes one text, token by token, and tells cumulative answers only where they are asked for."""

    model_config = SimpleNamespace(max_model_len=500)

    def __init__(self, ids):
        self.ids, self.open, self.asked, self.aborted, self.steps = ids, {}, [], [], 0

    def add_request(self, key, prompt, settings):
        self.open[key] = 0
        self.asked.append(settings)

    def abort_request(self, keys):
        self.aborted += keys
        for key in keys:
            self.open.pop(key, None)

    def step(self):
        self.steps += 1
        told = []
        for key, settings in zip(list(self.open), self.asked, strict=False):
            self.open[key] += 1
            ids = self.ids[: self.open[key]]
            finished = len(ids) == len(self.ids)
            entries = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
            answer = SimpleNamespace(token_ids=ids, logprobs=entries)
            if finished or settings.output_kind == "cumulative":
                told.append(SimpleNamespace(request_id=key, finished=finished, outputs=[answer]))
            if finished:
                del self.open[key]
        return told


def engine_of(policy, tokenizer, text):
    sampler = VLLMSampler()
    engine = FakeEngine([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id])
    sampler._llm = SimpleNamespace(llm_engine=engine)
    sampler._tokenizer, sampler._end_ids = tokenizer, frozenset([tokenizer.eos_token_id])
    sampler.version, sampler.has_weights, sampler._device_type = 3, True, "cpu"
    return sampler, engine


def test_an_engine_gets_all_settings_and_no_stop_strings_that_it_could_not_read(policy, tokenizer, fake_vllm):
    sampler, engine = engine_of(policy, tokenizer, "It eats fish.")
    asked = request(tokenizer, n=1, **SETTINGS)
    [answer] = sampler.stream([asked], nothing_more)
    assert answer.text == "It eats fish."
    [settings] = engine.asked
    assert {name: getattr(settings, name) for name in SETTINGS} == SETTINGS
    assert (settings.max_tokens, settings.seed) == (40, derive_seed(asked.seed, 0))
    assert (settings.logprobs, settings.output_kind) == (0, "final")
    assert not hasattr(settings, "stop")
    assert not settings.detokenize


def test_an_engine_is_told_to_abort_an_answer_at_its_stop_string(policy, tokenizer, fake_vllm):
    sampler, engine = engine_of(policy, tokenizer, "It eats fish. It lives in rivers.")
    [answer] = sampler.stream([request(tokenizer, n=1, stop=["fish. I"])], nothing_more)
    assert (answer.text, answer.finish_reason) == ("It eats fish. It", "stop")
    assert answer.logprobs == (-0.5,) * 5
    assert (engine.aborted[:1], engine.open, engine.steps) == (["0"], {}, 5)


class FakePool:
    """Keeps a request, and answers it with these tokens."""

    def __init__(self, ids):
        self.ids = ids

    async def complete(self, body):
        self.body = body
        logprobs = {"token_logprobs": [-0.5] * len(self.ids)}
        choice = {"token_ids": self.ids, "logprobs": logprobs}
        return httpx.Response(200, json={"choices": [choice]}, request=httpx.Request("POST", "http://x"))


def test_a_server_gets_all_settings_and_the_stop_strings(tokenizer, tmp_path):
    sampler = VLLMServerSampler(str(tmp_path), urls=["http://x"])
    sampler._tokenizer, sampler._end_ids = tokenizer, frozenset([tokenizer.eos_token_id])
    sampler._model, sampler.version = "m", 1
    pool = FakePool(tokenizer.encode("It eats fish. It", add_special_tokens=False))
    asked = request(tokenizer, n=1, stop=["fish. I"], **SETTINGS)
    answer = asyncio.run(sampler._answer(pool, asked, 0))
    assert {name: pool.body[name] for name in SETTINGS} == SETTINGS
    assert pool.body["stop"] == ["fish. I"]
    assert (answer.text, answer.finish_reason) == ("It eats fish. It", "stop")
    plain = asyncio.run(sampler._answer(pool, request(tokenizer, n=1), 0))
    assert (pool.body["top_k"], pool.body["repetition_penalty"], pool.body["stop"]) == (0, 1.0, [])
    assert plain.finish_reason == "length"

"""The real vLLM engine in this process, on the tiny model."""

import threading
import time
from copy import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from herl import ConfigError, SampleRequest, SamplerError, Sampling
from herl.callbacks import RefreshSampler
from herl.models.chat_template import render
from herl.models.weights import named_weights
from herl.sampler import RunLimits
from herl.sampler.vllm import VLLMSampler
from herl.testing import check_sampler, make_experience
from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs
from tests.support.episodes import FakeQuiz, naive_logprobs, played, rollouts
from tests.support.naive import logprobs_drawn_with
from tests.support.vllm_modules import MODEL, module_with, probe_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def engine():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    sampler = VLLMSampler(max_model_len=512, kv_cache_gib=0.25)
    sampler.start(MODEL.load(), MODEL.tokenizer())
    assert torch.get_num_threads() == threads
    assert torch.get_float32_matmul_precision() == "high", "the engine must not forbid TF32"
    torch.set_float32_matmul_precision(products)
    assert torch.equal(torch.get_rng_state(), state), "the engine must not reseed the trainer"
    torch.set_num_threads(threads)
    yield sampler
    sampler.close()


@pytest.fixture
def sampler(engine, policy):
    engine.load_weights(named_weights(policy), 3)
    return engine


def request(tokenizer, animal="otter", *, n=3, seed=5, **sampling):
    return SampleRequest(
        task_id=animal,
        group_id=animal,
        prompt_ids=render(tokenizer, [{"role": "user", "content": f"Describe the {animal}, a mammal."}]),
        n=n,
        sampling=Sampling(**({"max_new_tokens": 24} | sampling)),
        seed=seed,
    )


def test_keeps_the_contract(sampler, tokenizer):
    rollouts = check_sampler(sampler, request(tokenizer).prompt_ids)
    assert {rollout.policy_version for rollout in rollouts} == {3}


def test_answers_do_not_depend_on_what_else_is_sampled_and_differ_by_seed(sampler, tokenizer):
    requests = [request(tokenizer, animal, n=4, seed=i) for i, animal in enumerate(("otter", "fox", "owl"))]
    together = {rollout.id: rollout.token_ids for rollout in sampler.generate(requests)}
    alone = {rollout.id: rollout.token_ids for r in requests[::-1] for rollout in sampler.generate([r])}
    assert together == alone
    assert len(together) == 12
    assert len({together[f"otter/{i}"] for i in range(4)}) > 1
    other = [rollout.token_ids for rollout in sampler.generate([request(tokenizer, n=4, seed=99)])]
    assert sorted(other) != sorted(together[f"otter/{i}"] for i in range(4))


def test_turns_of_episodes_are_sampled_side_by_side(sampler, policy, tokenizer):
    quiz = FakeQuiz()
    quiz.seconds = 0.05
    answers = rollouts(played(quiz, sampler, tokenizer))
    assert [len(one.turns) for one in answers] == [2] * 6
    for one in answers:
        with torch.no_grad():
            expected = naive_logprobs(policy, one)
        assert torch.tensor(one.logprobs).double().sub(expected).abs().max() < 1e-3


def test_answers_come_as_they_finish_and_a_consumer_that_leaves_leaves_nothing_behind(sampler, tokenizer):
    answers = sampler.generate([request(tokenizer, n=16, max_new_tokens=64)])
    first = next(answers)
    assert sampler._llm.llm_engine.has_unfinished_requests()
    answers.close()
    assert not sampler._llm.llm_engine.has_unfinished_requests()
    again = list(sampler.generate([request(tokenizer, n=16, max_new_tokens=64)]))
    assert first.token_ids in [rollout.token_ids for rollout in again]
    assert len(first.token_ids) == min(len(rollout.token_ids) for rollout in again)


def test_prompts_of_more_tokens_than_a_step_takes_are_not_split(sampler, tokenizer, policy):
    """A prompt split between two steps would crash the engine on a CPU, which cannot rewind a seed."""
    assert not sampler._llm.llm_engine.vllm_config.scheduler_config.enable_chunked_prefill
    most = sampler._llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    requests = [
        replace(request(tokenizer, n=1, seed=seed, max_new_tokens=4), task_id=str(seed), group_id=str(seed))
        for seed in range(2 * most // 300)
    ]
    long = [
        replace(one, prompt_ids=(*one.prompt_ids, *range(3, 303), *one.prompt_ids[: i % 7 + 1]))
        for i, one in enumerate(requests)
    ]
    assert len(list(sampler.generate(long))) == len(long)
    assert sampler._restarts_left == 1


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampler_logprobs_equal_trainer_logprobs(sampler, policy, tokenizer, temperature):
    experiences = [
        make_experience(rollout)
        for rollout in sampler.generate([request(tokenizer, n=8, temperature=temperature)])
    ]
    for batch in micro_batches(experiences, max_tokens=500, aggregation="token_mean"):
        logprobs, _ = answer_logprobs(policy, batch, temperature)
        torch.testing.assert_close(logprobs, batch.sampler_logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.3}, {"repetition_penalty": 2.0},
        {
            "temperature": 0.7, "top_p": 0.9, "top_k": 7, "min_p": 0.01,
            "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1,
        },
    ],
)  # fmt: skip
def test_log_probs_are_those_of_the_distribution_that_was_drawn_from(sampler, policy, tokenizer, sampling):
    asked = request(tokenizer, n=6, **sampling)
    for answer in sampler.generate([asked]):
        expected = logprobs_drawn_with(policy, asked.prompt_ids, answer.token_ids, asked.sampling)
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_stop_string_ends_an_answer_with_it(sampler, tokenizer):
    whole = {one.id: one for one in sampler.generate([request(tokenizer, n=8, max_new_tokens=40)])}
    asked = request(tokenizer, n=8, max_new_tokens=40, stop=["er. I", "lives"])
    cut = {one.id: one for one in sampler.generate([asked])}
    stopped = [one for id, one in cut.items() if len(one.token_ids) < len(whole[id].token_ids)]
    assert len(stopped) >= 2
    assert all(one.token_ids == whole[id].token_ids[: len(one.token_ids)] for id, one in cut.items())
    assert all(any(text in one.text for text in ("er. I", "lives")) for one in stopped)
    assert {one.finish_reason for one in stopped} == {"stop"}
    assert not sampler._llm.llm_engine.has_unfinished_requests()


def test_greedy_equals_the_model_and_an_answer_ends_only_with_a_sampled_end_token(sampler, policy, tokenizer):
    [greedy] = sampler.generate([request(tokenizer, n=1, temperature=0.0)])
    ids = list(greedy.prompt_ids)
    for token, logprob in zip(greedy.token_ids, greedy.logprobs, strict=True):
        distribution = torch.log_softmax(policy(input_ids=torch.tensor([ids])).logits[0, -1].detach(), -1)
        assert token == int(distribution.argmax())
        assert logprob == pytest.approx(float(distribution.max()), abs=1e-4)
        ids.append(token)
    assert greedy.token_ids[-1] == tokenizer.eos_token_id
    assert greedy.finish_reason == "stop"
    cut = list(sampler.generate([request(tokenizer, n=4, max_new_tokens=3)]))
    assert {(len(r.token_ids), r.finish_reason) for r in cut} == {(3, "length")}


def test_a_prompt_that_does_not_fit_is_a_clear_error(sampler, tokenizer):
    long = replace(request(tokenizer), prompt_ids=(5,) * 600)
    with pytest.raises(
        SamplerError, match=r"room for 512 tokens, got a prompt of 600 and up to 24 new ones for task 'otter'"
    ):
        list(sampler.generate([long]))
    assert len(list(sampler.generate([request(tokenizer)]))) == 3


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_after_a_refresh_the_probe_agrees(sampler, policy, temperature):
    assert probe_of(module_with(sampler, policy, temperature)) < 1e-4
    assert sampler.version == 7


class FakeSleepingEngine:
    """Records the sampler's calls to vLLM's sleep mode, which does nothing on a CPU."""

    def __init__(self, llm, calls):
        self._llm, self._calls = llm, calls

    def __getattr__(self, name):
        return getattr(self._llm, name)

    def sleep(self, level):
        self._calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self._calls.append(f"wake {' '.join(tags)}")

    def collective_rpc(self, method, **arguments):
        self._calls.append(method.__name__)
        return self._llm.collective_rpc(method, **arguments)


@pytest.fixture
def sleeper(sampler, monkeypatch):
    """The sampler and its calls to the engine; `limits` says whether weights come before every batch."""

    def falls_asleep(refreshed_every_batch):
        calls = []
        limits = RunLimits(
            longest_tokens=512, dtype=torch.float32, refreshed_every_batch=refreshed_every_batch
        )
        monkeypatch.setattr(sampler, "_llm", FakeSleepingEngine(sampler._llm, calls))
        monkeypatch.setattr(sampler, "_limits", limits)
        monkeypatch.setattr(sampler, "_sleeps", True)
        return sampler, calls

    yield falls_asleep
    sampler._asleep.clear()


def test_an_engine_without_a_gpu_stays_awake(sampler, monkeypatch):
    calls = []
    monkeypatch.setattr(sampler, "_llm", FakeSleepingEngine(sampler._llm, calls))
    sampler.sleep()
    assert (calls, sampler.has_weights) == ([], True)


def test_weights_that_come_before_every_batch_are_dropped_and_loaded_before_the_cache_wakes(
    sleeper, policy, tokenizer
):
    sampler, calls = sleeper(refreshed_every_batch=True)
    sampler.sleep()
    sampler.sleep()
    assert not sampler.has_weights
    with pytest.raises(
        SamplerError, match="dropped its weights when it went to sleep, and was not refreshed"
    ):
        list(sampler.generate([request(tokenizer)]))
    sampler.load_weights(named_weights(policy), 4)
    assert len(list(sampler.generate([request(tokenizer)]))) == 3
    assert calls == ["sleep 2", "wake weights", "reload", "wake kv_cache"]


def test_weights_that_come_less_often_are_kept_on_the_host(sleeper, policy, tokenizer):
    sampler, calls = sleeper(refreshed_every_batch=False)
    sampler.sleep()
    assert sampler.has_weights
    assert len(list(sampler.generate([request(tokenizer)]))) == 3
    sampler.sleep()
    sampler.load_weights(named_weights(policy), 4)
    awake = ["wake weights", "wake kv_cache"]
    assert calls == ["sleep 1", *awake, "sleep 1", awake[0], "reload", awake[1]]


def test_a_refresh_brings_dropped_weights_back_though_no_step_was_taken(sleeper, policy):
    sampler, calls = sleeper(refreshed_every_batch=True)
    module, refresh = module_with(sampler, policy), RefreshSampler()
    module.record = lambda numbers: None
    refresh.refresh(module)
    sampler.sleep()
    refresh.refresh(module)
    assert sampler.has_weights
    refresh.refresh(module)
    assert calls.count("reload") == 2, "one for the new version, one for the weights it had dropped"


def test_an_engine_that_finds_no_memory_to_wake_says_which_key_to_lower(sleeper, policy, monkeypatch):
    sampler, _ = sleeper(refreshed_every_batch=True)

    def no_room(tags):
        raise RuntimeError("CUDA Error: out of memory")

    monkeypatch.setattr(sampler._llm, "wake_up", no_room, raising=False)
    sampler.sleep()
    with pytest.raises(SamplerError, match=r"no memory for its weights .*: lower sampler.gpu_memory_utiliz"):
        sampler.load_weights(named_weights(policy), 4)


def test_engines_take_turns(sampler, policy, tokenizer, monkeypatch):
    """A local judge may have one in another thread, and vLLM keeps what a pass reads in a global."""
    inside, met = [], []
    step = sampler._llm.llm_engine.step

    def watched():
        inside.append(threading.get_ident())
        met.append(len(set(inside)))
        time.sleep(0.002)
        try:
            return step()
        finally:
            inside.pop()

    monkeypatch.setattr(sampler._llm.llm_engine, "step", watched)
    other = copy(sampler)  # as another engine would
    threads = [
        threading.Thread(target=lambda one=one: [one._step({}) for _ in range(20)])
        for one in (sampler, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(met) == 40
    assert set(met) == {1}


def test_the_benchmark_of_the_engine_measures_all_its_figures(
    sampler, policy, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "tools" / "bench")
    bench, sampling = import_module("gpu.bench"), import_module("gpu.sampling")
    one = bench.Bench(section="one", device=torch.device("cpu"), scratch=tmp_path, tokenizer="tiny")
    sampling.engine(one, sampler, policy, tokenizer)
    assert len(bench.figures_of(tmp_path, "one")) == 7


class FakeFailingEngine:
    """A real engine whose third step fails."""

    def __init__(self, engine):
        self._engine, self.steps = engine, 0

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def step(self):
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("out of memory")
        return self._engine.step()


def test_an_engine_that_fails_is_built_anew_once_and_no_answer_is_lost_or_doubled(policy, tokenizer):
    sampler = VLLMSampler(max_model_len=512, kv_cache_gib=0.25, restarts=1)
    sampler.start(policy, tokenizer)
    sampler.load_weights(named_weights(policy), 3)
    asked = [request(tokenizer, animal, n=4, seed=i) for i, animal in enumerate(("otter", "fox"))]
    expected = {rollout.id: rollout.token_ids for rollout in sampler.generate(asked)}
    sampler._llm.llm_engine = FakeFailingEngine(sampler._llm.llm_engine)
    found = list(sampler.generate(asked))
    assert len(found) == 8
    assert {rollout.id: rollout.token_ids for rollout in found} == expected
    sampler._llm.llm_engine = FakeFailingEngine(sampler._llm.llm_engine)
    with pytest.raises(SamplerError, match="engine failed: RuntimeError: out of memory. It was not rebuilt"):
        list(sampler.generate(asked))
    sampler.close()


def test_an_engine_that_cannot_be_built_anew_says_why(policy, tokenizer, monkeypatch):
    sampler = VLLMSampler(max_model_len=512, kv_cache_gib=0.25, restarts=1)
    sampler.start(policy, tokenizer)
    sampler.load_weights(named_weights(policy), 3)
    sampler._llm.llm_engine = FakeFailingEngine(sampler._llm.llm_engine)

    def no_room(path):
        raise MemoryError("no room for the cache")

    monkeypatch.setattr(sampler, "_build", no_room)
    with pytest.raises(MemoryError, match="no room for the cache"):
        list(sampler.generate([request(tokenizer)]))
    sampler.close()


def test_an_engine_without_weights_refuses_to_answer(tokenizer):
    with pytest.raises(SamplerError, match="add the callback herl.callbacks.RefreshSampler"):
        list(VLLMSampler().generate([request(tokenizer)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs and tensor_parallel_size of at least 1, got 0 and 1"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization: expected a share in"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        VLLMSampler(**settings)


def test_an_engine_over_several_ranks_needs_as_many(policy, tokenizer):
    with pytest.raises(ConfigError, match="tensor_parallel_size: expected a divisor of 1 ranks, got 2"):
        VLLMSampler(tensor_parallel_size=2).start(policy, tokenizer)

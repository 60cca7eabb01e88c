"""Two real vLLM servers on the loopback interface. The tests run in order: the last ones kill the servers."""

import gc

import lightning as L
import pytest
import torch

from herl import ConfigError, SampleRequest, SamplerError, Sampling
from herl.callbacks import RefreshSampler
from herl.judge.rule import RuleJudge
from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.sampler.vllm_server import VLLMServerSampler
from herl.testing import check_sampler
from tests.support.episodes import FakeQuiz, naive_logprobs, played, rollouts

pytestmark = pytest.mark.slow
MODEL = PretrainedModel(path="tiny")
ARGUMENTS = [
    "--dtype=float32", "--enforce-eager", "--kv-cache-memory-bytes=134217728", "--block-size=32",
    "--max-model-len=512",
]  # fmt: skip


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    sampler = VLLMServerSampler(
        str(tmp_path_factory.mktemp("weights")), start=2, arguments=ARGUMENTS, requests_per_server=16,
        restarts=3,
    )  # fmt: skip
    try:
        sampler.start(MODEL.load(), MODEL.tokenizer())
        yield sampler
    finally:
        sampler.close()
    assert not list(sampler._folder.glob("policy-*"))
    gc.collect()  # an open socket would cause a warning in a later test


def requests(tokenizer, prompts=8, n=8):
    return [
        SampleRequest(
            task_id=f"t{i}",
            group_id=f"t{i}",
            prompt_ids=render(tokenizer, [{"role": "user", "content": f"Describe animal {i}."}]),
            n=n,
            sampling=Sampling(max_new_tokens=40),
            seed=i,
        )
        for i in range(prompts)
    ]


def changed(policy, scale):
    """The policy, with weights that are not on disk."""
    generator = torch.Generator().manual_seed(int(scale * 1000))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def refresh(sampler, policy, version):
    """Refreshes and probes as the callback does; returns what it logged."""
    module = HerlModule(model=MODEL, sampler=sampler, judge=RuleJudge())
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.policy = policy
    module.counts["optimizer_steps"] = version
    recorded = {}
    module.record = recorded.update
    RefreshSampler().refresh(module)
    return recorded


def test_servers_without_weights_refuse_to_answer(sampler, tokenizer):
    with pytest.raises(SamplerError, match="no weights yet"):
        list(sampler.generate(requests(tokenizer, 1)))


def test_new_weights_reach_every_server_and_old_ones_are_removed(sampler, policy, tokenizer):
    for version, scale in ((1, 0.0), (2, 0.02)):
        recorded = refresh(sampler, changed(policy, scale), version)
        assert recorded["sampler/probe_error"] < 1e-4
        assert recorded["sampler/weights_proven"] == 1
    assert sampler.weights_dtype is torch.float32
    [folder] = sampler._folder.glob("policy-*")
    assert folder.name.startswith("policy-00000002")
    rollouts = check_sampler(sampler, requests(tokenizer)[0].prompt_ids, n=4)
    assert {rollout.policy_version for rollout in rollouts} == {2}


def test_turns_of_episodes_go_to_the_servers_as_they_come(sampler, policy, tokenizer):
    refresh(sampler, changed(policy, 0.0), 3)
    answers = rollouts(played(FakeQuiz(), sampler, tokenizer))
    assert [len(one.turns) for one in answers] == [2] * 6
    for one in answers:
        with torch.no_grad():
            expected = naive_logprobs(policy, one)
        assert torch.tensor(one.logprobs).double().sub(expected).abs().max() < 1e-3


def test_requests_that_are_answered_one_by_one_still_reach_every_server(sampler, tokenizer):
    chosen = []
    for request in requests(tokenizer, 6, 1):
        list(sampler.generate([request]))
        chosen.append(max(sampler.pool.servers, key=lambda server: server.turn).url)
    assert len(set(chosen[:2])) == 2
    assert chosen == chosen[:2] * 3


def test_one_stale_server_among_fresh_ones_is_found_even_if_it_is_a_tiny_step_behind(
    sampler, policy, monkeypatch
):
    reload = sampler.pool.reload_one

    async def forgets_the_second(server, folder):
        if server.url != sampler.processes[1].url:
            await reload(server, folder)

    monkeypatch.setattr(sampler.pool, "reload_one", forgets_the_second)
    with pytest.raises(SamplerError, match=rf"does not hold .* at {sampler.processes[1].url}") as error:
        refresh(sampler, changed(policy, 1e-6), 3)
    assert sampler.processes[0].url not in str(error.value)


def test_a_request_that_a_server_refuses_is_a_clear_error(sampler, policy, tokenizer):
    refresh(sampler, policy, 4)
    [request] = requests(tokenizer, 1, 1)
    too_long = SampleRequest(
        task_id="t", group_id="t", prompt_ids=(5,) * 600, n=1, sampling=request.sampling, seed=0
    )
    with pytest.raises(SamplerError, match="refuses a request of 600 prompt tokens and 40 new ones"):
        list(sampler.generate([too_long]))
    assert all(server.up for server in sampler.pool.servers)


def test_a_server_killed_in_the_middle_loses_no_answer_and_doubles_none(sampler, policy, tokenizer):
    refresh(sampler, policy, 5)
    expected = {rollout.id: rollout.token_ids for rollout in sampler.generate(requests(tokenizer))}
    found = []
    for rollout in sampler.generate(requests(tokenizer)):
        found.append(rollout)
        if len(found) == 5:
            assert sampler.pool.servers[0].busy > 0
            sampler.processes[0].kill()
    assert len(found) == len(expected) == 64
    assert {rollout.id: rollout.token_ids for rollout in found} == expected
    assert [server.up for server in sampler.pool.servers] == [False, True]
    # the next refresh restarts it
    assert refresh(sampler, changed(policy, 0.02), 6)["sampler/probe_error"] < 1e-4
    assert [server.up for server in sampler.pool.servers] == [True, True]


def test_when_all_servers_die_in_the_middle_they_are_restarted_and_no_answer_is_lost(sampler, tokenizer):
    expected = {rollout.id: rollout.token_ids for rollout in sampler.generate(requests(tokenizer))}
    found = []
    for rollout in sampler.generate(requests(tokenizer)):
        found.append(rollout)
        if len(found) == 5:
            for process in sampler.processes:
                process.kill()
    assert len(found) == len(expected) == 64
    assert {rollout.id: rollout.token_ids for rollout in found} == expected


def test_with_no_server_and_no_restart_left_the_error_says_what_became_of_each(sampler, tokenizer):
    for process in sampler.processes:
        process.kill()
    with pytest.raises(SamplerError, match="no vLLM server is left") as error:
        list(sampler.generate(requests(tokenizer, 2)))
    assert all(process.url in str(error.value) for process in sampler.processes)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path, policy, tokenizer):
    broken = VLLMServerSampler(str(tmp_path), start=1, arguments=["--no-such-option"])
    with pytest.raises(SamplerError, match=r"ended with code 2; its log .*server-0.log(.|\n)*no-such-option"):
        broken.start(policy, tokenizer)
    broken.close()


def test_a_server_without_the_extension_still_samples_and_only_the_probe_checks_it(
    tmp_path, policy, tokenizer, caplog
):
    arguments = [*ARGUMENTS, "--worker-extension-cls="]  # the last one counts
    plain = VLLMServerSampler(str(tmp_path), start=1, arguments=arguments)
    try:
        plain.start(policy, tokenizer)
        assert "cannot report which weights they hold; only the probe checks them" in caplog.text
        assert plain.weights_dtype is torch.float32
        recorded = refresh(plain, changed(policy, 0.02), 1)
        assert recorded["sampler/weights_proven"] == 0
        assert recorded["sampler/probe_error"] < 1e-4
    finally:
        plain.close()


def test_a_url_where_nothing_answers_is_a_clear_error(tmp_path, policy, tokenizer):
    nobody = VLLMServerSampler(str(tmp_path), urls=["http://127.0.0.1:9"])
    with pytest.raises(SamplerError, match="no vLLM server answers at http://127.0.0.1:9: ConnectError"):
        nobody.start(policy, tokenizer)
    nobody.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected urls of running servers or start of at least 1"),
        ({"start": 2, "gpus": ["0"]}, r"sampler.gpus: expected one entry per server to start \(2\), got 1"),
        ({"start": 1, "api_key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"start": 1, "requests_per_server": 0}, "requests_per_server of at least 1"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        VLLMServerSampler(str(tmp_path), **settings)

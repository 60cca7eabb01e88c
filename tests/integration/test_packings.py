"""What is sampled, scored and trained is one model: transformers' own, in eager attention, one answer at a time.

Each architecture has its expectation: how attention is computed, what the sampler's rows keep of a prompt, and
the most economical rows that are correct. All numbers are compared with padded rows in eager attention.
"""

import pytest
import torch

from herl import ConfigError, SampleRequest, SamplerError, Sampling
from herl.models.pretrained import PretrainedModel
from herl.sampler.prompt_cache import CopiedPrompts, SharedPrompts
from herl.sampler.transformers import TransformersSampler
from herl.testing import make_experience
from herl.update import packing_probe
from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs
from herl.update.packing_probe import choose_packing
from tests.support.architectures import ARCHITECTURES, model_of
from tests.support.experiences import in_order, several
from tests.support.naive import padded_logprobs

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
STATE = [
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "minimax",
    "nemotron_h", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "zamba2",
]  # fmt: skip
"""Carry a state or a convolution over from one answer to the next."""
NO_POSITIONS = ["biogpt", "bloom", "falcon", "falcon-alibi", "gpt_oss", "xglm"]
"""Cannot tell the answers of a row apart by their positions."""
OWN_MASK = ["gpt_neo", "llama4_text", "mpt"]
"""Have a mask only for rows up to their last position, or see chunks of a row."""
OWN_ATTENTION = ["codegen", "doge", "gemma2", "gptj", "granite_swa", "nemotron", "stablelm", "vaultgemma"]
"""Compute attention outside transformers' interface, with custom caps, sinks or masks."""
PACKING = (
    dict.fromkeys(ARCHITECTURES, "shared")
    | dict.fromkeys(OWN_ATTENTION, "packed")
    | dict.fromkeys([*STATE, *NO_POSITIONS, *OWN_MASK], "single")
)
EAGER = [
    "bloom", "codegen", "falcon_mamba", "gemma2", "gpt_neo", "gpt_oss", "gptj", "granite_swa", "mamba", "mamba2",
    "mpt", "vaultgemma", "xglm",
]  # fmt: skip
"""Have no sdpa in transformers, or one that ignores their cap."""
SDPA = [
    "bamba", "biogpt", "falcon", "falcon-alibi", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "llama4_text",
    "minimax", "nemotron_h", "qwen3_5_text", "qwen3_next", "stablelm", "zamba2",
]  # fmt: skip
"""Mix attention with something else, or call sdpa by themselves."""
ATTENTION = dict.fromkeys(ARCHITECTURES, "herl") | dict.fromkeys(EAGER, "eager") | dict.fromkeys(SDPA, "sdpa")
WINDOWS = [
    "cohere2", "deepseek_v3", "exaone4", "gemma3", "gemma3_text", "gemma3n_text", "ministral", "mistral", "olmo3",
    "qwen2-sliding", "starcoder2",
]  # fmt: skip
"""Have layers that do not see all of a prompt, or keys and values of another form."""
COPIED = {*WINDOWS, *(name for name in ARCHITECTURES if PACKING[name] != "shared")}
NOT_SAMPLED = {"minimax": "is not compatible with", "recurrent_gemma": "with a cache, log-probs deviate by"}


@pytest.fixture(autouse=True)
def _short_rows(monkeypatch):
    """The rows of the probe, at a quarter of their length; test_packing_probe has the whole."""
    monkeypatch.setattr(packing_probe, "CONTEXTS", (88, 4))


def answered(model, tokenizer, name):
    """Answers that the model samples to prompts of different lengths, all in one batch."""
    draw = torch.Generator().manual_seed(0)
    requests = [
        SampleRequest(
            task_id=str(i), group_id=str(i), prompt_ids=tuple(torch.randint(20, 1000, (length,), generator=draw).tolist()),
            n=3, sampling=Sampling(max_new_tokens=9), seed=i,
        )
        for i, length in enumerate((20, 7, 13))
    ]  # fmt: skip
    sampler = TransformersSampler()
    sampler.start(model, tokenizer)
    if name in NOT_SAMPLED:
        with pytest.raises(SamplerError, match=f"cannot sample from .*({NOT_SAMPLED[name]})"):
            list(sampler.generate(requests))
        return several(3, answers=3)
    rollouts = sorted(sampler.generate(requests), key=lambda rollout: rollout.id)
    assert type(sampler._new_cache()) is (CopiedPrompts if name in COPIED else SharedPrompts)
    return [make_experience(rollout) for rollout in rollouts]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_sampled_scored_and_trained_is_the_model_in_eager_attention(name, tokenizer):
    model = model_of(name)
    own = model.config._attn_implementation
    assert own == ATTENTION[name]
    experiences = answered(model, tokenizer, name)
    packing = choose_packing(model, CPU)
    assert packing == PACKING[name]
    batches = micro_batches(experiences, max_tokens=80, aggregation="token_mean", packing=packing)
    found = in_order(batches, lambda batch: answer_logprobs(model, batch, 1.0)[0])
    found.square().mean().backward()
    gradient = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation("eager")
    expected, _ = padded_logprobs(model, experiences)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    if name not in NOT_SAMPLED:
        sampled = torch.tensor([p for e in experiences for p in e.rollout.logprobs])
        torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-4)
    expected.square().mean().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == gradient.keys()
    total = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    wrong = [(p.grad - gradient[n]).flatten() for n, p in model.named_parameters() if p.grad is not None]
    assert float(torch.cat(wrong).norm() / total) < 1e-5
    model.set_attn_implementation(own)
    assert choose_packing(model.to(torch.bfloat16), CPU) == PACKING[name], "in bfloat16"


def test_a_model_whose_router_is_random_in_training_is_refused():
    settings = {"phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2}}
    with pytest.raises(
        ConfigError, match="PhimoeForCausalLM cannot be trained: .* draws random numbers in training"
    ):
        choose_packing(model_of("phimoe", more=settings), CPU)


@pytest.mark.parametrize("name", ["opt", "llama4_text", "mistral3", "qwen3_vl"])
def test_models_whose_body_is_elsewhere_or_that_read_images_load_from_disk(name, tmp_path):
    model_of(name).save_pretrained(tmp_path)
    policy = PretrainedModel(path=str(tmp_path)).load().eval()
    skeleton = PretrainedModel(path=str(tmp_path)).skeleton()
    assert [n for n, _ in skeleton.named_parameters()] == [n for n, _ in policy.named_parameters()]
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert trained == [n for n, p in skeleton.named_parameters() if p.requires_grad]
    assert any("vision" in n or "visual" in n for n, _ in policy.named_parameters()) == (
        name in ("mistral3", "qwen3_vl")
    )
    assert not any("vision" in n or "visual" in n for n in trained)
    experiences = several(1)
    batches = micro_batches(experiences, max_tokens=80, aggregation="token_mean", packing="single")
    found = in_order(batches, lambda batch: answer_logprobs(policy, batch, 1.0)[0])
    torch.testing.assert_close(found, padded_logprobs(policy, experiences)[0], rtol=1e-5, atol=2e-5)


def test_a_model_without_a_text_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="expected a causal language model, got model_type 'vit'"):
        PretrainedModel(path=str(tmp_path)).load()

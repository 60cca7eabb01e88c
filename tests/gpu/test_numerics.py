"""Rows, the packing probe, log-probs, samplers and whole steps, on each available device.

Expected values are computed on the CPU in float64, with one padded row per answer.
"""

from copy import deepcopy

import lightning as L
import pytest
import torch

from herl import SamplerError
from herl.callbacks import RefreshSampler
from herl.data import RubricDataModule
from herl.judge.rule import RuleJudge
from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan
from herl.sampler.replays import CudaRecorder
from herl.sampler.transformers import TransformersSampler
from herl.testing import check_sampler, make_rollout, make_task
from herl.types import Sampling
from herl.update.loss.policy import PolicyLoss
from herl.update.packing_probe import choose_packing
from herl.update.scorer import Scorer, _one_ahead
from tests.support.experiences import experience
from tests.support.naive import padded_logprobs, padded_loss
from tests.support.small_models import ARCHITECTURES, model_of

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # the compiler's warnings, which differ between versions of torch
NAMES = ("llama", "mistral", "qwen3-sliding", "granite")
PACKINGS = ("shared", "packed")


@pytest.fixture(autouse=True)
def exact_float32():
    """Keeps float32 products from being rounded to TF32, even if a run in this process enabled it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(autouse=True)
def compiled_anew():
    """Each test compiles for its own models: torch limits how many variants of a function a process keeps."""
    torch.compiler.reset()


def architecture(name):
    # tensor cores multiply at least 16 x 16
    return model_of(name.split("-")[0], **(ARCHITECTURES[name] | {"head_dim": 16}))


def long_rows(seed=0, part=1):
    """Contexts of odd lengths and answers of 1 to 200 tokens, or these lengths divided by n."""
    draw = torch.Generator().manual_seed(seed)

    def some(count):
        return torch.randint(3, 900, (max(1, count // part),), generator=draw).tolist()

    found = []
    for context, lengths in ((some(211), (57, 1, 130)), (some(421), (200, 33))):
        for length in lengths:
            advantage = float(torch.rand(1, generator=draw)) - 0.5
            found.append(experience(context, some(length), advantage=advantage, index=len(found)))
    return found


def part_for(device):
    """Full lengths on a GPU; shorter ones on a CPU, which `tests/unit` tests more thoroughly."""
    return 1 if device.type == "cuda" else 8


def rows_of(model, packing, device, max_tokens=700):
    return Scorer(
        policy=model, reference=None, loss=PolicyLoss(), temperature=1.0, max_tokens=max_tokens,
        packing=packing, device=device,
    )  # fmt: skip


def computed(model, experiences, packing, device, dtype=torch.float32):
    """Log-probs [N] and gradient [parameters] of rows on a device, as float64 on the CPU."""
    model.zero_grad()
    rows = rows_of(model, packing, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
        logprobs = torch.cat(rows.logprobs(experiences))
        for batch in rows.micro_batches(experiences):
            rows.compute_loss(batch)[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return logprobs.double(), gradient.cpu().double()


def expected(model, experiences):
    naive = deepcopy(model).double()
    padded_loss(naive, experiences, PolicyLoss()).backward()
    logprobs, _ = padded_logprobs(naive, experiences)
    return logprobs.detach().double(), torch.cat([p.grad.flatten() for p in naive.parameters()])


def off(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_compute_what_padded_answers_compute_in_float64(name, packing, device):
    model, experiences = architecture(name), long_rows(part=part_for(device))
    wanted = expected(model, experiences)
    got = computed(model.to(device), experiences, packing, device)
    for mine, naive in zip(got, wanted, strict=True):
        assert off(mine, naive) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_in_bfloat16_rows_are_as_near_to_float64_as_answers_alone(name, device):
    model, experiences = architecture(name), long_rows(part=part_for(device))
    wanted = expected(model, experiences)
    model = model.to(device)
    alone = computed(model, experiences, "single", device, torch.bfloat16)
    for packing in PACKINGS:
        got = computed(model, experiences, packing, device, torch.bfloat16)
        for mine, single, naive in zip(got, alone, wanted, strict=True):
            assert off(mine, naive) < 1.5 * off(single, naive)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neighbors_change_no_bit_of_an_answer(dtype, device):
    model = architecture("mistral").to(device)
    part = part_for(device)
    first, second = long_rows(seed=0, part=part), long_rows(seed=1, part=part)
    kept = first[0]  # follows the same context; all other tokens of the row are replaced
    replaced = [
        make_rollout(
            id=e.rollout.id,
            prompt_ids=kept.context_ids if e.context_ids == second[0].context_ids else e.context_ids,
            token_ids=e.rollout.token_ids,
        )
        for e in second
    ]
    replaced[0] = kept.rollout
    tokens = len(kept.rollout.token_ids)
    for packing in PACKINGS:
        rows = rows_of(model, packing, device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            one, other = (rows.own_logprobs(some) for some in ([e.rollout for e in first], replaced))
        assert torch.equal(one[:tokens], other[:tokens])
        assert not torch.equal(one[tokens:], other[tokens:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_same_bit_for_bit_in_two_runs(dtype, device):
    model, experiences = architecture("llama").to(device), long_rows(part=part_for(device))
    first = computed(model, experiences, "shared", device, dtype)[1]
    assert torch.equal(computed(model, experiences, "shared", device, dtype)[1], first)


@pytest.mark.parametrize("name", NAMES)
def test_sound_architectures_are_trained_on_shared_rows(name, device):
    assert choose_packing(architecture(name).to(device), device) == "shared"


def test_the_sampler_keeps_its_contract_and_tells_the_trainers_logprobs(policy, tokenizer, device):
    policy = policy.to(device)
    sampler = TransformersSampler()
    sampler.start(policy, tokenizer)
    prompt = render(tokenizer, [{"role": "user", "content": "Describe the otter, a mammal."}])
    rollouts = check_sampler(sampler, prompt, n=5)
    ours = rows_of(policy, "shared", device).own_logprobs(rollouts)
    theirs = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def trainer_on(device, **settings):
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_epochs=1, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **settings,
    )  # fmt: skip


def trained(device):
    """The weights after two steps, on the CPU."""
    short = Sampling(max_new_tokens=12)
    module = HerlModule(
        PretrainedModel(path="tiny"),
        TransformersSampler(),
        RuleJudge(),
        rollout=RolloutPlan(attempts_per_prompt=4, attempt=short),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    tasks = [make_task({"an": 1.0, "e": 2.0}, id=f"t{i}", request=f"Name {i} rivers.") for i in range(4)]
    trainer_on(device, callbacks=[RefreshSampler()]).fit(module, RubricDataModule(tasks, prompts_per_batch=2))
    assert module.counts["optimizer_steps"] >= 2
    return [parameter.detach().cpu() for parameter in module.policy.parameters()]


def test_one_seed_two_runs_the_same_weights(device):
    for one, other in zip(trained(device), trained(device), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_an_engine_on_the_gpu_is_proven_after_a_refresh_and_a_stale_one_is_caught(monkeypatch):
    pytest.importorskip("vllm")
    from herl.sampler.vllm import VLLMSampler

    sampler = VLLMSampler(dtype="bfloat16", max_model_len=512, gpu_memory_utilization=0.2)
    module = HerlModule(PretrainedModel(path="tiny"), sampler, RuleJudge())
    module.trainer = trainer_on(torch.device("cuda"), precision="bf16-mixed")
    module.policy = policy = module.model.load()
    module.to("cuda")
    module.record = lambda numbers: None
    sampler.start(policy, module.stages.tokenizer)
    RefreshSampler().refresh(module)
    whole = sampler.load_weights

    def without_a_layer(named_tensors, version):
        whole(((name, tensor) for name, tensor in named_tensors if "layers.1." not in name), version)

    with torch.no_grad():
        for parameter in policy.model.layers[1].parameters():
            parameter *= 1.3
    monkeypatch.setattr(sampler, "load_weights", without_a_layer)
    with pytest.raises(SamplerError):
        RefreshSampler().refresh(module)
    sampler.close()


@pytest.mark.gpu
def test_rows_are_copied_ahead_on_the_stream_that_computes_with_them():
    """Each thread has its own current stream, and an engine may leave another one than the default."""
    device, own = torch.device("cuda"), torch.cuda.Stream()

    def streams():
        for _ in range(3):
            yield torch.cuda.current_stream(device)

    with torch.cuda.stream(own):
        assert list(_one_ahead(streams(), device)) == [own] * 3


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_leaves_stream_and_allocator_as_they_were():
    device = torch.device("cuda", torch.cuda.current_device())
    ones, before = torch.ones(8, device=device), torch.cuda.current_stream(device)
    with pytest.raises(RuntimeError):
        CudaRecorder(device).record(lambda: ones.sum().item())
    assert torch.cuda.current_stream(device) == before
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved(device)
    for _ in range(3):  # freed memory comes back
        torch.empty(2**26, device=device).record_stream(torch.cuda.Stream(device))
        torch.cuda.synchronize()
    assert torch.cuda.memory_reserved(device) <= reserved + 2**29

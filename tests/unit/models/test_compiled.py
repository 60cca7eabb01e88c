import threading

import pytest
import torch
from torch.nn.attention import flex_attention

from herl.models import shared_attention
from herl.models.compiled import compile_blocks, uncompiled
from herl.models.lora import Lora, adapters_off
from herl.models.pretrained import blocks, choose_attention
from herl.update import logprobs
from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs
from tests.support.experiences import several
from tests.support.small_models import ARCHITECTURES, model_of


def test_two_threads_that_take_turns_leave_nothing_behind():
    """A in, B in, A out, B out."""
    calls = []

    def backend(graph, inputs):
        return lambda *arguments: calls.append(1) or graph(*arguments)

    double = torch.compile(lambda x: 2 * x, backend=backend)
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with uncompiled():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with uncompiled():
        second_in.set()
        first_out.wait(10)
        double(torch.ones(2))
        assert not calls, "still uncompiled: this thread is inside"
    thread.join()
    double(torch.ones(2))
    assert calls, "compiled again"


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_model_without_compiled_layers_leaves_those_of_another_thread_compiled():
    calls = []

    def backend(graph, inputs):
        return lambda *arguments: calls.append(1) or graph(*arguments)

    judge, policy = torch.nn.Sequential(Double()), torch.nn.Sequential(Double())
    policy[0].compile(backend=backend)
    with uncompiled(judge):
        policy(torch.ones(2))
    assert calls
    calls.clear()
    with uncompiled(policy):
        policy(torch.ones(2))
    assert not calls


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "lora", "checkpointing"),
    [("llama", False, False), ("mistral", True, False), ("qwen3-sliding", True, True)],
)
def test_layers_stay_within_their_variants_in_all_modes_of_a_run(name, lora, checkpointing, monkeypatch):
    """Probe, old log-probs, reference and gradient, as on a GPU; torch would fall back to uncompiled layers."""
    monkeypatch.setattr(logprobs, "FLEX", ("cpu",))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # no gradients on a CPU
    attention = torch.compile(flex_attention.flex_attention, dynamic=True, fullgraph=True, backend="eager")
    monkeypatch.setattr(shared_attention, "_compiled_attention", attention)
    model = model_of(name.split("-")[0], **ARCHITECTURES[name])
    if lora:
        Lora(rank=2).add_to(model)
    choose_attention(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch._dynamo.reset()
    compile_blocks(blocks(model), backend="eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for count in (4, 3):
            for batch in micro_batches(several(count), max_tokens=300, aggregation="token_mean"):
                for training in (False, True):
                    with torch.no_grad():
                        answer_logprobs(model.train(training), batch, 1.0)
                with torch.no_grad(), adapters_off(model):
                    answer_logprobs(model, batch, 1.0)
                answer_logprobs(model, batch, 1.0)[0].sum().backward()
    torch._dynamo.reset()

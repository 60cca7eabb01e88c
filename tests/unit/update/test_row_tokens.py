"""Rows as long as a GPU's free memory allows; the GPU is a number here."""

import pytest
import torch

from herl.models.fsdp import FSDPStrategy
from herl.update import row_tokens as module
from herl.update.row_tokens import CPU_TOKENS, MAX_TOKENS, MIN_TOKENS, row_tokens
from tests.support.small_models import model_of

GIB = 2**30


@pytest.fixture
def tokens(monkeypatch):
    """The tokens of a row on a GPU with so many free GiB, for a model in as many shards."""
    model = model_of("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=8, vocab_size=32000)

    def found(free, *, shards=1, autocast=True, **strategy):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * GIB), 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: autocast)
        monkeypatch.setattr(module, "is_sharded", lambda policy: shards > 1)
        monkeypatch.setattr(module, "world_size", lambda: shards)
        optimizer = torch.optim.AdamW(model.parameters())
        return row_tokens("auto", model, optimizer, torch.device("cuda"), FSDPStrategy(**strategy))

    return found


def test_a_number_and_a_cpu_need_no_measurement():
    model = model_of("llama")
    optimizer = torch.optim.AdamW(model.parameters())
    assert row_tokens(500, model, optimizer, torch.device("cuda"), FSDPStrategy()) == 500
    assert row_tokens("auto", model, optimizer, torch.device("cpu"), FSDPStrategy()) == CPU_TOKENS


def test_rows_grow_with_the_memory_between_their_limits(tokens):
    lengths = [tokens(free) for free in (0.01, 1, 2, 4, 8, 16, 80)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (MIN_TOKENS, MAX_TOKENS)
    assert len(set(lengths)) > 3


def smallest(tokens, **settings):
    """The least memory, in 64ths of a GiB, in which rows of 4 096 tokens fit."""
    return next(free for free in range(64, 400) if tokens(free / 64, **settings) >= 4096) / 64


@pytest.mark.parametrize("autocast", [True, False])
def test_what_a_sharded_model_keeps_gathered_is_left_free(tokens, autocast):
    gathered = {"shards": 8, "autocast": autocast}
    plain = smallest(tokens, **gathered)
    assert smallest(tokens, autocast=autocast) != plain, "one GPU holds other weights than a shard"
    assert smallest(tokens, **gathered, reshard_after_forward=False) > plain
    assert smallest(tokens, **gathered, reduce_gradients_once=True) > plain

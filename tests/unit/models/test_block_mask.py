"""The mask of a row, against plain loops, and the compiled mask, against the blockwise path."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from herl.models import block_mask, shared_attention
from herl.models.block_mask import FLEX_BLOCK, MIN_COLUMNS, SharedContext, padding
from herl.models.shared_attention import blockwise_attention, masked_attention

CPU = torch.device("cpu")
WINDOWS = [None, 7, 150]


def layout(seed, longest=400):
    draw, contexts, column = random.Random(seed), [], 0
    for _ in range(draw.randint(1, 4)):
        start = column
        answers = [column := column + draw.randint(1, longest)]
        answers += [column := column + draw.randint(1, longest // 2) for _ in range(draw.randint(1, 5))]
        contexts.append(SharedContext(start=start, answers=tuple(answers)))
    return tuple(contexts)


def naive_mask(contexts, window):
    """Which token sees which in the padded row, pair by pair."""
    length = contexts[-1].end
    mask = torch.eye(length + padding(length), dtype=torch.bool)
    for context in contexts:
        columns = list(range(context.start, context.answers[0]))
        for piece in ([], *(list(range(*borders)) for borders in pairwise(context.answers))):
            seen = columns + piece
            for place, query in enumerate(seen):
                first = 0 if window is None else max(0, place - window + 1)
                mask[query, seen[first : place + 1]] = True
    return mask


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seed", range(4))
def test_the_mask_and_its_blocks_are_those_of_a_plain_loop(seed, window):
    contexts = layout(seed)
    expected = naive_mask(contexts, window)
    mask = block_mask.block_mask(contexts, window, CPU)
    columns = torch.arange(len(expected))
    assert torch.equal(mask.mask_mod(0, 0, columns[:, None], columns), expected)
    blocks = expected.unfold(0, FLEX_BLOCK, FLEX_BLOCK).unfold(1, FLEX_BLOCK, FLEX_BLOCK).flatten(2)
    partial, full = block_mask._blocks(block_mask._bounds(contexts), window)
    assert np.array_equal(partial | full, blocks.any(-1).numpy()), (
        "no block is computed for nothing, none is left out"
    )
    assert not (full & ~blocks.all(-1).numpy()).any(), "a full block needs no mask"
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(-1))


def test_rows_have_few_lengths():
    assert [length + padding(length) for length in (1, MIN_COLUMNS, MIN_COLUMNS + 1, 1000)] == [
        256,
        256,
        384,
        1024,
    ]


@pytest.fixture
def compiled(monkeypatch):
    """As on a GPU, but compiled for each shape, as torch's C++ for dynamic lengths does not compile."""
    whole = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    monkeypatch.setattr(shared_attention, "_compiled_attention", whole)


@pytest.mark.integration
@pytest.mark.parametrize("window", [None, 100])
def test_compiled_attention_equals_the_blockwise_path(compiled, window):
    contexts = layout(1)
    length = contexts[-1].end
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length + padding(length), 16, generator=generator) for heads in (6, 2, 2)
    )
    mask = block_mask.block_mask(contexts, window, CPU)
    found = masked_attention(query, key, value, mask, scaling=0.3)[:, :length]
    row = (tensor[:, :, :length] for tensor in (query, key, value))
    expected = blockwise_attention(*row, contexts, scaling=0.3, sliding_window=window)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unknown", ["dropout", "softcap", "s_aux", "position_bias"])
def test_scores_that_the_kernel_does_not_know_are_refused(unknown):
    row = torch.zeros(1, 1, 256, 16)
    mask = block_mask.block_mask(layout(2), None, CPU)
    with pytest.raises(NotImplementedError, match="dropped out, capped, biased or have sinks"):
        masked_attention(row, row, row, mask, **{unknown: 0.5})

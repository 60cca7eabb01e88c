"""The memory of a run on a CPU: formulas against measured peaks."""

import pytest

from herl.update.cpu_memory import Processes, Sampling, cpu_gib
from herl.update.gpu_cost import GIB, ModelSize, Settings

QWEN_05B = ModelSize(
    parameters=494_032_768, layers=24, width=896, inner=4864, vocabulary=151_936, outer=136_134_656,
    kv_bytes=12_288,
)  # fmt: skip
QWEN_6 = ModelSize(
    parameters=225_609_856, layers=6, width=896, inner=4864, vocabulary=151_936, outer=136_134_656,
    kv_bytes=3072,
)  # fmt: skip
SMOLLM2 = ModelSize(
    parameters=134_515_008, layers=30, width=576, inner=1536, vocabulary=49_152, outer=28_311_552,
    kv_bytes=23_040,
)  # fmt: skip
TINY = ModelSize(
    parameters=430_752, layers=4, width=96, inner=256, vocabulary=512, outer=49_152, kv_bytes=1536
)
ALL, RECOMPUTED = Settings(), Settings(checkpointing=True)

# (what, GiB that two updates with AdamW added to the process at most, model, tokens of the row, settings)
MEASURED = [
    ("tiny", 0.13, TINY, 1816, ALL),
    ("135M", 4.88, SMOLLM2, 1831, ALL),
    ("135M, recomputed", 2.62, SMOLLM2, 1831, RECOMPUTED),
    ("135M, recomputed, long row", 5.42, SMOLLM2, 5491, RECOMPUTED),
    ("135M, adapters", 4.13, SMOLLM2, 1831, Settings(trained_share=0.035)),
    ("six layers of 0.5B, short row", 4.75, QWEN_6, 423, ALL),
    ("six layers of 0.5B", 6.78, QWEN_6, 1831, ALL),
    ("six layers of 0.5B, adapters", 3.08, QWEN_6, 1831, Settings(trained_share=0.01)),
    ("0.5B, short row", 9.68, QWEN_05B, 423, ALL),
]


@pytest.mark.parametrize("point", MEASURED, ids=lambda point: point[0])
def test_the_formulas_hold_at_the_measured_points(point):
    _, measured, size, row, settings = point
    estimated = sum(cpu_gib(size, row, settings, Sampling(), Processes()).values())
    assert 0.9 <= estimated / measured <= 1.35


def test_sampling_takes_a_second_copy_of_the_weights():
    """135M with eight answers of 64 tokens at once: 1.03 GiB."""
    sampling = Sampling(packs=True, answers=8, prompts=1, prompt_tokens=80, answer_tokens=64)
    found = cpu_gib(SMOLLM2, 0, Settings(trained_share=0.0), sampling, Processes())
    assert sum(found.values()) == pytest.approx(1.03, rel=0.15)


def test_quantized_weights_are_not_copied_for_sampling():
    size = ModelSize(
        parameters=10**9, layers=10, width=1000, inner=3000, vocabulary=1000, outer=10**8, kv_bytes=0
    )
    settings = Settings(trained_share=0.0, frozen_bytes=1.3, quantized_share=0.8)
    found = cpu_gib(size, 0, settings, Sampling(packs=True), Processes())
    assert found["weights"] == pytest.approx(1.3e9 / GIB)
    assert found["sampler"] == pytest.approx(4 * 0.2e9 / GIB)

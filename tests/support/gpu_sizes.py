"""A model, a batch and a GPU in round numbers, for estimates that are worked out by hand."""

from herl.update.gpu_cost import GPU, Asked, ModelSize, Work

SIZE = ModelSize(
    parameters=1_000_000_000, layers=10, width=1000, inner=3000, vocabulary=50_000, outer=100_000_000,
    kv_bytes=10_000,
)  # fmt: skip
WORK = Work(
    rounds=((Asked(answers=(200,) * 100),),), prompt_tokens=10_000, trained_tokens=30_000,
    micro_batch_tokens=1000, judge_seconds=1.5,
)  # fmt: skip
CARD = GPU(tflops=100, gib=80, bandwidth=1.0, link=0.1)

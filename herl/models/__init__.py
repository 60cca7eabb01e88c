"""The models: loading, LoRA, quantization, attention over shared contexts, weights, sharding, export.

The sampler and the update build on this package, which imports neither.
"""

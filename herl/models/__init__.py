"""The models: loading, LoRA, attention over rows that share a context, weights, sharding, export.

The sampler and the update build on this package, which imports neither.
"""

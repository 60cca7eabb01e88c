"""The models themselves: loading, LoRA, attention over rows that share a context, weights, sharding, export.

The sampler and the update both build on this package; it knows neither of them.
"""

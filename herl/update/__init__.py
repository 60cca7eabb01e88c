"""Stages 9 to 11: experiences become rows, rows become log-probabilities, and those become a loss.

batch.py           experiences -> rows of tokens
packing_probe.py   which kinds of rows a model computes correctly
logprobs.py        rows -> log-probabilities and entropies
forward_swap.py    calls a model, with its hooks, for something else than its forward pass
scorer.py          the loss of one row, on policy and reference
loss/              the losses: base, policy (PPO and HeRL), sft, dpo
updater.py         the optimizer steps of a batch
running_stats.py   numbers that add up over rows, steps and ranks
schedule.py        learning rates, and how far a run is
row_tokens.py, gpu_cost.py, card_needs.py   what fits into a GPU
"""

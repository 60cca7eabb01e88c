"""Stages 9 to 11: experiences become rows, rows become log-probabilities, and those become a loss.

batch.py           experiences -> rows of tokens
packing_probe.py   probes which packing modes a model supports
logprobs.py        rows -> log-probabilities and entropies
teaching.py        what a teacher adds to the advantage of each token
forward_swap.py    runs another function in place of a model's forward pass, with its hooks
scorer.py          the loss of one row, on policy and reference
loss/              the losses: base, policy (PPO and HeRL), sft, dpo
updater.py         the optimizer steps of a batch
running_stats.py   statistics accumulated over rows, steps and ranks
schedule.py        learning rates and the progress of a run
row_tokens.py, gpu_cost.py, card_needs.py   GPU memory
"""

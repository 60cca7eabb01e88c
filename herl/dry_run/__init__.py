"""What a run will need, before it starts: `trial.py` tries a few batches, `estimate.py` adds up answers,
time and memory, `batch_cost.py` estimates a batch on other GPUs with the sampling simulated in `engines.py`,
`uplift.py` says whether hindsight can help."""

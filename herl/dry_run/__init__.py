"""What a run will need, before it starts: `trial.py` tries a few batches, `estimate.py` adds up answers,
time and memory, `uplift.py` says whether hindsight can help."""

"""What a run will need, before it starts: `trial.py` tries one batch, `estimate.py` adds up answers, time and
memory."""

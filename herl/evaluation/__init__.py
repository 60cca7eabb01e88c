"""Held-out measurements: `evaluate.py` runs them, `intervals.py` turns rewards into means with intervals."""

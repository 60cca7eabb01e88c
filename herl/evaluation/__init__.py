"""Held-out measurements: `evaluate.py` runs them, `intervals.py` adds confidence intervals."""

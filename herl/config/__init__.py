"""Configurations -> objects: `check.py` finds mistakes before loading, `build.py` makes objects."""

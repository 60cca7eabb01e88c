"""Measures herl on one GPU: see `__main__.py`."""

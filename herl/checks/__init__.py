"""Checks written in the data: which there are, and which arguments they take."""

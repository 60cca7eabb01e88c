"""Recorded answers: `lines.py` writes and reads them, `inspect.py` shows them, `answers.py` finds tasks."""

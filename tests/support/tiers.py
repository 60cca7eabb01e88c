"""The tiers of tests, by marker; pyproject.toml describes them.

A test without a marker belongs to the tier of its folder. For each tier, the summary reports the number of
tests, their seconds, and the CPU seconds of the tests and the processes they started. Seconds are summed over
all workers, so tiers may run side by side; on a busy machine, compare CPU seconds.
"""

import os

import pytest

TIERS = ("unit", "integration", "slow", "nightly")
FOLDERS = {"integration": "integration", "gpu": "integration"}
"""Tier by folder of tests/; all other tests are unit tests."""


def tier_of(item):
    """Returns the name of an item's tier: that of the test itself, of its module or of its folder."""
    found = {mark.name for mark in item.iter_markers() if mark.name in TIERS}
    if "nightly" in found:
        return "nightly"
    if len(found) > 1:
        raise pytest.UsageError(f"{item.nodeid}: expected one tier, got {sorted(found)}")
    if found:
        return found.pop()
    return next((FOLDERS[part] for part in item.path.parts[:-1] if part in FOLDERS), "unit")


def assign(items):
    """Adds the marker of its tier to every item."""
    for item in items:
        if item.get_closest_marker(tier_of(item)) is None:
            item.add_marker(tier_of(item))


def slowest_files_first(items):
    """Sorts files by the slowest tier in them, so that workers get short files last."""
    tiers = {}
    for item in items:
        tiers[item.path] = max(tiers.get(item.path, 0), TIERS.index(tier_of(item)))
    items.sort(key=lambda item: -tiers[item.path])


class _Clock:
    """Measures CPU seconds of this process and its finished children."""

    def __init__(self):
        self.restart()

    def restart(self):
        self._start = sum(os.times()[:4])

    def lap(self):
        start = self._start
        self.restart()
        return self._start - start


clock = _Clock()


def summary(reports):
    """Yields a line for each tier from the reports of setup, call and teardown of its tests."""
    for tier in TIERS:
        own = [report for report in reports if report.tier == tier]
        if own:
            tests = len({report.nodeid for report in own})
            seconds, cpu = sum(report.duration for report in own), sum(report.cpu_seconds for report in own)
            yield f"{tier}: {tests} tests, {seconds:.0f} s summed over workers, {cpu:.0f} s of CPU"

"""The time of a run from its phases."""

import pytest
from omegaconf import OmegaConf

from herl.dry_run.estimate import _side_by_side

SECONDS = {"sample": 4.0, "judge": 1.0, "revise": 2.0, "update": 5.0, "refresh": 1.0}


@pytest.mark.parametrize(
    ("rollout", "update", "hidden"),
    [
        ({"batches_ahead": 1}, 5.0, 5.0),  # the update is hidden
        ({"batches_ahead": 1}, 9.0, 7.0),  # the answers are
        ({"batches_ahead": 0}, 5.0, 0.0),
        ({}, 5.0, 0.0),  # a plan of one's own
    ],
)
def test_what_happens_side_by_side_counts_once(rollout, update, hidden):
    config = OmegaConf.create({"rollout": rollout})
    assert _side_by_side(config, {**SECONDS, "update": update}) == hidden


def test_the_wait_for_an_environment_passes_beside_the_update_too():
    config = OmegaConf.create({"rollout": {"batches_ahead": 1}})
    assert _side_by_side(config, {**SECONDS, "environment": 3.0, "update": 99.0}) == 10.0

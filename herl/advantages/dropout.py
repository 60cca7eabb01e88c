"""A part of the criteria is left out of each comparison."""

from __future__ import annotations

from collections.abc import Mapping

from herl.advantages.emphasis import Emphasis
from herl.errors import ConfigError
from herl.seeds import derive_seed
from herl.types import Group


class CriterionDropout(Emphasis):
    """Leaves out each criterion of a group with probability `rate`, for all its answers alike.

    The policy cannot rely on any single criterion, such as one on which the judge is easily fooled
    (arXiv:2608.11669). The choice is a hash of (seed, epoch, batch, task, criterion). One criterion always
    stays: of those with a weight, the one with the largest draw.

    Args:
        rate: Share of criteria to leave out, in (0, 1).
    """

    def __init__(self, rate: float = 0.25) -> None:
        if not 0.0 < rate < 1.0:
            raise ConfigError(f"emphasis.rate: expected a share in (0, 1), got {rate}")
        self.rate = rate

    def weights(self, group: Group, seed: int) -> Mapping[str, float]:
        """Returns the sizes of the weights of the criteria that stay."""
        weights = {one.id: abs(one.weight) for one in group.task.rubric.criteria if one.weight}
        drawn = {name: derive_seed(seed, name) / 2**63 for name in weights}
        kept = [name for name in weights if drawn[name] >= self.rate]
        return {name: weights[name] for name in kept or sorted(drawn, key=lambda name: drawn[name])[-1:]}

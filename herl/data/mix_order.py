"""The order in which the prompts of several sources are drawn, each source by its weight.

Of each 100 prompts, a source with 70 % of the weight gives about 70, in every batch: its prompts are spread
evenly over the epoch, from a random start. An epoch draws as many prompts as all sources have together. So
some sources begin again within an epoch and others do not come to their end; the next epoch goes on where a
source stopped. Each pass through a source has a new order, in which a prompt comes back only after a third of
its source, so that no batch has it twice.

All choices are hashes of (seed, source, epoch or pass), so nothing needs to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import cast

import numpy as np

from herl.errors import ConfigError, DataError
from herl.seeds import derive_seed


class MixedOrder:
    """The order in which the prompts of several sources are drawn.

    Args:
        names: The source of each prompt, by its place in the data.
        weights: Weight of each source.
        seed: All randomness is a hash of it.
        prompts_per_batch: Most prompts that are answered together: none comes twice among them.

    Raises:
        DataError: a source has no prompt left to train on, or too few for its weight.
        ConfigError: a source's weight is too small for one prompt an epoch.
    """

    def __init__(
        self, names: Sequence[str], weights: Mapping[str, float], seed: int, prompts_per_batch: int
    ) -> None:
        self._seed = seed
        self._weights = weights
        of_each: dict[str, list[int]] = {name: [] for name in weights}
        for place, name in enumerate(names):
            of_each[name].append(place)
        self._places = {name: np.array(places, dtype=np.int64) for name, places in of_each.items()}
        self.drawn = drawn_of_each(weights, len(names))
        """Prompts that an epoch draws from each source."""
        self.prompts = {name: len(places) for name, places in of_each.items()}
        """Prompts of each source."""
        for name, places in of_each.items():
            key = f"data.train.sources.{name}"
            if not places:
                raise DataError(
                    f"{key}: expected at least one prompt to train on, got none: all are held out. Add rows, "
                    "or name data.heldout.sources"
                )
            if not self.drawn[name]:
                raise ConfigError(
                    f"{key}.weight: expected at least one prompt in an epoch of {len(names)}, got "
                    f"{weights[name]:g} of {sum(weights.values()):g}, which gives none"
                )
            self._check_enough(key, len(places), self.drawn[name], prompts_per_batch)

    def _check_enough(self, key: str, prompts: int, drawn: int, prompts_per_batch: int) -> None:
        """A prompt comes back after a third of its source: no batch may take more than that."""
        whole_passes = prompts % drawn == 0  # none begins within an epoch
        total = sum(self.drawn.values())
        most = math.ceil(Fraction(drawn, total) * max(prompts_per_batch + len(self.drawn) - 2, 1))
        most = min(most, drawn, prompts_per_batch)
        if not whole_passes and most > prompts // 3 + 1:
            raise DataError(
                f"{key}: expected at least {3 * (most - 1)} prompts to train on, so that none comes twice in "
                f"a batch, which may take {most} of them, got {prompts}: lower its weight or "
                "data.prompts_per_batch, or add rows"
            )

    def places(self, epoch: int) -> list[int]:
        """Returns the places of an epoch's prompts, in order: as many as there are prompts."""
        streams = {}
        for name, places in self._places.items():
            size, count = len(places), self.drawn[name]
            first, start = divmod(epoch * count, size)
            last = (epoch * count + count - 1) // size
            passes = [self._pass(name, number) for number in range(first, last + 1)]
            streams[name] = places[np.concatenate(passes)[start : start + count]]
        return self._interleaved(streams, self.drawn, derive_seed(self._seed, epoch, "mix"))

    def shuffled(self, seed: int) -> list[int]:
        """Returns all places once, in random order. Sources keep their shares until one comes to its end."""
        streams = {
            name: np.random.default_rng(derive_seed(seed, name)).permutation(places)
            for name, places in self._places.items()
        }
        return self._interleaved(streams, self._weights, seed)

    def in_words(self) -> list[str]:
        """Returns a line about each source."""
        total = sum(self.drawn.values())
        return [
            f"{name}: {count / total:.0%} of the prompts drawn; its {self.prompts[name]} come "
            f"{count / self.prompts[name]:.3g} times an epoch"
            for name, count in self.drawn.items()
        ]

    def _pass(self, name: str, number: int) -> np.ndarray:
        """The order of a source's prompts at its pass of this number. The last third of the pass before does
        not come in its first third."""
        before, order = (
            np.random.default_rng(derive_seed(self._seed, name, one, "pass")).permutation(
                len(self._places[name])
            )
            for one in (number - 1, number)
        )
        third = len(order) // 3
        head, tail = np.split(order, [len(order) - third])
        late = np.isin(head, before[len(before) - third :])
        return np.concatenate([head[~late], head[late], tail])

    @staticmethod
    def _interleaved(streams: Mapping[str, np.ndarray], rates: Mapping[str, float], seed: int) -> list[int]:
        """Merges the sources, each at its rate and from a random start."""
        starts = {name: derive_seed(seed, name, "start") / 2**63 for name in streams}  # in [0, 1)
        times = [(np.arange(len(found)) + starts[name]) / rates[name] for name, found in streams.items()]
        merged = np.concatenate(list(streams.values()))[np.argsort(np.concatenate(times), kind="stable")]
        return cast("list[int]", merged.tolist())


def drawn_of_each(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Returns how many of `total` prompts are drawn from each source, by largest remainders.

    >>> drawn_of_each({"math": 7, "chat": 3}, 15)
    {'math': 11, 'chat': 4}
    """
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    wanted = {name: weight * total / sum(exact.values()) for name, weight in exact.items()}
    found = {name: math.floor(share) for name, share in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: found[name] - wanted[name])
    for name in by_remainder[: total - sum(found.values())]:
        found[name] += 1
    return found

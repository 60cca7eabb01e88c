"""The examples in docstrings are correct, and none can vanish unnoticed."""

import doctest
from importlib import import_module

import pytest

EXAMPLES = {
    "herl.types.task": ["Criterion.goodness"],
    "herl.advantages": ["group_advantages", "ones"],
    "herl.advantages.by_criterion": ["ByCriterion.__call__"],
    "herl.advantages.contrast": ["Contrast.weights"],
    "herl.advantages.emphasis": ["reweighted"],
    "herl.advantages.length": ["Overlong", "Shorter"],
    "herl.selection": ["form_group", "keep_ranked"],
    "herl.hindsight.candidates": ["tied_best", "top_k", "bottom_k", "all_imperfect"],
    "herl.judge.aggregation": [
        "weighted",
        "healthbench",
        "herl_medicine",
        "absolute",
        "all_or_nothing",
        "gated",
        "by_category",
    ],
    "herl.judge.words": ["words", "occurrences"],
    "herl.bonus.improvement": ["ImprovementBonus.bonus"],
    "herl.update.batch": ["MicroBatch"],
    "herl.update.loss.base": ["token_weights"],
    "herl.update.loss.kl": ["estimate", "k3", "to_go"],
    "herl.update.loss.policy": ["mismatch_weight"],
    "herl.update.loss.surrogates": ["ratio", "by_sequence", "ppo_clip", "cispo", "sapo", "shaped"],
    "herl.update.loss.sft": ["LikelihoodLoss"],
    "herl.update.loss.dpo": ["PreferenceLoss"],
    "herl.update.scorer": ["floor_of"],
    "herl.update.teaching": ["with_teacher"],
    "herl.update.schedule": ["learning_rate_share"],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_shows_what_the_code_returns(name):
    found = {test.name: test for test in doctest.DocTestFinder().find(import_module(name)) if test.examples}
    assert sorted(found) == sorted(f"{name}.{example}" for example in EXAMPLES[name])
    report: list[str] = []
    failed = sum(doctest.DocTestRunner().run(test, out=report.append).failed for test in found.values())
    assert not failed, "".join(report)

"""Measures revision prompts on a model before any training: attempts, and revisions of the two best.

    python tools/study/uplift.py experiment=smollm2_if sampler=vllm prompts=64 temperature=0.3

Tries several revision prompts on the first training prompts of an experiment, including the request alone,
which is not a revision but one more attempt at the revision's temperature. Prints a Markdown table: mean
rewards of the drafts and of their revisions, the shares of revisions that are better or worse than their
draft, or better than the best of all attempts, and the shares of criteria that they mended and broke. All
other arguments are passed to herl fit.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra import compose, initialize_config_dir

from herl.config.build import make, quiet
from herl.config.check import check, conf_dir
from herl.hindsight.candidates import top_k
from herl.hindsight.revision import RevisionBuilder
from herl.metrics.collection import changes
from herl.models.weights import named_weights
from herl.module import HerlModule
from herl.rollout.collect import collect

SENTENCES: dict[str, Any] = {"style": "sentences", "weights": False}
PROMPTS: dict[str, dict[str, Any]] = {
    "hindsight=rewrite": {"draft": False},
    "hindsight=revision": {"draft": True},
    "request and missed criteria": {"template": "{request}\n\nMake sure to follow this:\n{missed}"},
    "draft and missed criteria": {
        "template": "{request}\n\nA first answer was:\n{draft}\n\nIt did not do this:\n{missed}"
    },
    "missed criteria, as sentences": {
        "template": "{request}\n\nMake sure to follow this: {missed}",
        **SENTENCES,
    },
    "met and missed, as sentences": {
        "template": "{request}\n\nMake sure to follow this: {met} {missed}",
        **SENTENCES,
    },
    "request alone": {"template": "{request}"},
}
"""Arguments of `RevisionBuilder`."""
OPTIONS = {"prompts": 64, "attempts": 4, "temperature": 1.0}


def main() -> None:
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    options = OPTIONS | {name: type(OPTIONS[name])(value) for name, value in given.items() if name in OPTIONS}
    overrides = [argument for argument in sys.argv[1:] if argument.partition("=")[0] not in OPTIONS]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("fit", [*overrides, f"output_dir={Path('runs/uplift').resolve()}"])
    check(config)
    quiet()
    tasks = list(make(config.data).train[: options["prompts"]])
    module: HerlModule = make(config.module)
    policy = module.model.load()
    module.stages.sampler.start(policy, module.stages.tokenizer)
    module.stages.sampler.load_weights(named_weights(policy), 0)
    revision = replace(module.stages.plan.revision, temperature=options["temperature"])
    plan = replace(module.stages.plan, attempts_per_prompt=options["attempts"], revision=revision)
    columns = "drafts | revisions | better | worse | better than the best | mended | broken | n"
    print(f"| revision prompt | {columns} |\n| --- |" + " --: |" * 8)
    with module.stages.judge_runner:
        for name, words in PROMPTS.items():
            builder = RevisionBuilder(partial(top_k, k=2), **words)
            found = collect(tasks, replace(module.stages, plan=plan, hindsight=builder), (1,))
            print(f"| {name} | " + " | ".join(row(found)) + " |", flush=True)


def row(found) -> list[str]:
    """Returns the cells of a row."""
    rewards = []
    for group in found.groups:
        earned = {one.rollout.id: one.judgement.reward for one in group.attempts}
        best = max((reward for reward in earned.values() if reward is not None), default=0.0)
        for one in group.revisions:
            draft, after = earned[one.rollout.parent_id], one.judgement.reward
            if draft is not None and after is not None:
                rewards.append((draft, after, best))
    if not rewards:
        return [*[""] * 7, "0"]
    shares = [
        fmean(after > draft for draft, after, _ in rewards),
        fmean(after < draft for draft, after, _ in rewards),
        fmean(after > best for _, after, best in rewards),
    ]
    means = [fmean(draft for draft, _, _ in rewards), fmean(after for _, after, _ in rewards)]
    turned = changes(found.groups)
    turns = [fmean(turned[f"hindsight/{name}"]) for name in ("mended", "broken")]
    return [f"{value:.3f}" for value in (*means, *shares, *turns)] + [str(len(rewards))]


if __name__ == "__main__":
    main()

"""Prints the rewards of the shipped tiny model on the embedded task before any training.

python tools/embedded/evaluate.py [--model FOLDER]
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import fmean

from herl.advantages import group_advantages
from herl.bonus import NoBonus
from herl.data.animals import animals
from herl.hindsight.candidates import all_imperfect
from herl.hindsight.revision import RevisionBuilder
from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.metrics.rubric import rewards
from herl.models.pretrained import PretrainedModel
from herl.rollout.collect import collect
from herl.rollout.stages import RolloutPlan, Stages
from herl.sampler.transformers import TransformersSampler
from herl.selection import form_group
from herl.types import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    model = PretrainedModel(path=parser.parse_args().model)
    tokenizer = model.tokenizer()
    sampler = TransformersSampler(batch_size=512)
    sampler.start(model.load(), tokenizer)
    for regime in ("tight", "loose"):
        data = animals(regime)
        with JudgeRunner(RuleJudge()) as runner:
            stages = Stages(
                tokenizer=tokenizer,
                sampler=sampler,
                judge_runner=runner,
                plan=RolloutPlan(attempt=Sampling(max_new_tokens=64), revision=Sampling(max_new_tokens=64)),
                selection=form_group,
                advantages=group_advantages,
                hindsight=RevisionBuilder(candidates=partial(all_imperfect), perfect=2.0, draft=True),
                bonus=NoBonus(),
            )
            groups = collect([*data.train, *data.heldout], stages, ("evaluate",)).groups
        attempts = [reward for group in groups for reward in rewards(group.attempts)]
        revised = [reward for group in groups for reward in rewards(group.revisions)]
        best = [max(rewards(group.attempts)) for group in groups]
        print(
            f"{regime}: first attempt {fmean(attempts):.3f}, best of 8 {fmean(best):.3f}, "
            f"revised once {fmean(revised):.3f}"
        )
    task, group = groups[0].task, groups[0]
    print(task.request, *(f"\n  {a.reward:.2f} {a.rollout.text}" for a in group.attempts[:3]))
    print("revised:", *(f"\n  {r.reward:.2f} {r.rollout.text}" for r in group.revisions[:3]))


if __name__ == "__main__":
    main()

"""Stage 3: an answer -> one verdict per criterion and a reward.

`Judge` is the interface. A judge that cannot decide raises `JudgeError` or returns a verdict with
`met=None`. Such a verdict abstains: its criterion leaves the reward and never counts as a "no".

    base.py                    the interface
    rule.py                    checks written in the data
    instruction_following.py   the IFEval and IFBench checkers
    llm/                       a language model: prompt -> chat -> parse
    function.py                a plain Python function
    mix.py                     several judges combined into one
    aggregation.py             verdicts -> reward
    runner.py                  runs any judge on many answers at once, with a failure policy
    abstention.py              stops a run whose judge abstains too often
    budget.py                  limits on calls, tokens and money

To write your own, subclass `Judge`, return `self.verdict_sum(task, rollout, verdicts)`, and select it with
a file in a `judge/` folder of your configuration (README, "Write a plug-in").
"""

from herl.judge.base import Aggregation, Judge, needs_verdicts
from herl.judge.budget import Budget
from herl.judge.runner import JudgeRunner

__all__ = ["Aggregation", "Budget", "Judge", "JudgeRunner", "needs_verdicts"]

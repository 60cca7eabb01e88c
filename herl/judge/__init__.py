"""Stage 3: an answer -> one verdict per criterion and a reward.

`Judge` is the interface. A judge that cannot tell says so: it raises `JudgeError`, or returns a verdict
with `met=None`. Such a verdict abstains, the criterion leaves the reward, and it never counts as a "no".

    rule.py                    checks that stand in the data
    instruction_following.py   the IFEval and IFBench checkers
    llm.py                     a language model: questions -> chat (endpoint, vllm_chat, local) -> reading
    function.py, mix.py        a plain Python function; several judges as one
    runner.py                  runs any of them, with budget and failure policy

To write one, subclass `Judge`, return `self.verdict_sum(task, rollout, verdicts)`, and select it with a
file of your own in `conf/judge/` (README, "Write a plug-in").
"""

from herl.judge.base import Aggregation, Judge
from herl.judge.budget import Budget
from herl.judge.runner import JudgeRunner

__all__ = ["Aggregation", "Budget", "Judge", "JudgeRunner"]

"""Stage 3: an answer -> one verdict per criterion and a reward.

`Judge` is the interface. A judge that cannot tell says so: it raises `JudgeError`, or returns a verdict
with `met=None`. Such a verdict abstains, the criterion leaves the reward, and it never counts as a "no".

To write one, subclass `Judge`, return `self.verdict_sum(task, rollout, verdicts)`, and select it with a
file of your own in `conf/judge/` (README, "Write a plug-in").
"""

from herl.judge.base import Aggregation, Judge
from herl.judge.desk import JudgeDesk

__all__ = ["Aggregation", "Judge", "JudgeDesk"]

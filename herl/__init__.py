"""herl: reinforcement learning of language models from rubric rewards and hindsight experience.

The public names that need neither torch nor vllm: the records, the interfaces, the errors. The module that
trains is `herl.module.HerlModule`, the data `herl.data.RubricDataModule`; follow one prompt through the
numbered stages from `herl/data` (1) to `herl/module.py` (12).
"""

from herl.bonus import BonusReward, NoBonus
from herl.environment import Conversation, Environment, NoEnvironment, Opening, Reply
from herl.errors import (
    AbstentionLimit,
    AuditLimit,
    BudgetSpent,
    ConfigError,
    DataError,
    HerlError,
    JudgeError,
    JudgeStop,
    RunStopped,
    SamplerError,
    TrainingError,
)
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.judge import Judge
from herl.replay import NoReplay, Replay
from herl.sampler import Sampler, StreamingSampler
from herl.types import (
    Criterion,
    Experience,
    Group,
    Hindsight,
    Judged,
    Judgement,
    Member,
    Message,
    Rollout,
    Rubric,
    SampleRequest,
    Sampling,
    Task,
    ToolCall,
    Turn,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "AbstentionLimit",
    "AuditLimit",
    "BonusReward",
    "BudgetSpent",
    "ConfigError",
    "Conversation",
    "Criterion",
    "DataError",
    "Environment",
    "Experience",
    "Group",
    "HerlError",
    "Hindsight",
    "HindsightBuilder",
    "Judge",
    "JudgeError",
    "JudgeStop",
    "Judged",
    "Judgement",
    "Member",
    "Message",
    "NoBonus",
    "NoEnvironment",
    "NoHindsight",
    "NoReplay",
    "Opening",
    "Replay",
    "Reply",
    "Rollout",
    "Rubric",
    "RunStopped",
    "SampleRequest",
    "Sampler",
    "SamplerError",
    "Sampling",
    "StreamingSampler",
    "Task",
    "ToolCall",
    "TrainingError",
    "Turn",
    "Verdict",
]

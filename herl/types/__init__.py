"""The records that travel through the stages, in the order in which they are made.

    Task -> SampleRequest -> Rollout -> Judgement -> Hindsight -> Group -> Experience

Records are frozen: a stage returns new ones and never edits one. `origin` and `parent_id` say where a record
came from, and an order is a field; ids are opaque and never parsed. Nothing here needs torch.

The words, with TRL's / verl's terms where they have one:

    attempt          an answer that the policy samples for the plain prompt (completion / response)
    draft            the attempt that a revision starts from
    revision         an answer that was sampled with hindsight, or with the whole rubric, in its prompt
    hindsight        a revision prompt: the request, and the criteria that the draft met and missed
    rollout          one sampled answer with its token ids and log-probs (completion / response)
    group            all answers to one prompt in one step (generations of a prompt / uid)
    criterion        one weighted requirement; a rubric is all of a task's
    verdict          the judge's word on one criterion; a judgement holds those on one answer
    fulfilled        a criterion whose wish came true: met, or not met if it is undesirable
    reward           the number that the verdicts add up to (reward / token-level score)
    bonus            an addition to a draft's reward for its potential to improve
    member           an answer whose reward its group's advantages compare
    advantage        a member's reward compared with its group (advantage / advantage)
    experience       an answer with the context and the advantage that it is trained with
    policy           the model that learns; the reference is the one in the KL term (model / actor)
    refresh          moving the policy's weights to the sampler (weight sync)
    held-out         prompts that measure the policy and never train it (eval / validation)
    environment      what replies to an answer, which then takes more than one turn (environment)
    episode          an answer in more than one turn, with the replies between them (trajectory)
    turn             what the policy samples at once, up to an environment's reply
"""

from herl.types.answer import (
    FinishReason,
    Judged,
    Judgement,
    Origin,
    Rollout,
    SampleRequest,
    Sampling,
    Spoken,
    ToolCall,
    Turn,
)
from herl.types.group import Experience, Group, Hindsight, Member
from herl.types.task import Criterion, Message, Rubric, Task, Verdict

__all__ = [
    "Criterion",
    "Experience",
    "FinishReason",
    "Group",
    "Hindsight",
    "Judged",
    "Judgement",
    "Member",
    "Message",
    "Origin",
    "Rollout",
    "Rubric",
    "SampleRequest",
    "Sampling",
    "Spoken",
    "Task",
    "ToolCall",
    "Turn",
    "Verdict",
]

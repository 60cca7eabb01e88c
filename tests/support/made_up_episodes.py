"""An answer in three turns, made up, and a small environment."""

from dataclasses import replace

from herl.environment import Environment, Reply
from herl.testing import make_rollout
from herl.types import ToolCall, Turn

ARGUMENTS = {"name": "otter", "more": {"deep": [1, None, {"x": 0.5}]}}


def an_episode(text="It eats fish.", finish_reason="stop", **changes):
    """Three turns of 2, 3 and 1 tokens, with replies of 2 and 4."""
    turns = (
        Turn(
            text="Look up otter.", end=2, reply=({"role": "tool", "name": "lookup", "content": "otter: <b>fish</b>"},),
            reply_ids=(90, 91), calls=(ToolCall(name="lookup", arguments=ARGUMENTS),), thinking="Hm.", thinking_tokens=1,
        ),
        Turn(
            text="Look up.", end=5, reply=({"role": "tool", "content": "what?\x1b[31m"}, {"role": "user", "content": "Go on."}),
            reply_ids=(92, 93, 94, 95), calls=(ToolCall(name="", error="malformed"), ToolCall(name="lookup", arguments={"name": 3})),
        ),
    )  # fmt: skip
    made = make_rollout(text, token_ids=(4, 5, 6, 7, 8, 9), thinking_tokens=1, turns=turns, **changes)
    return replace(made, finish_reason=finish_reason)


class FakeQuiz(Environment):
    """Asks two more questions, with a call each, of which the second fails."""

    async def step(self, conversation, answer):
        if conversation.turn >= 2:
            return None
        call = ToolCall(name="ask", arguments=ARGUMENTS, error="unknown" * conversation.turn)
        return Reply([{"role": "user", "content": f"Question {conversation.turn}?"}], [call])

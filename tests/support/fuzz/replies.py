"""Texts of a judging model."""

import json

from hypothesis import strategies as st

from herl.judge.llm.parse import read_score, read_verdicts
from herl.judge.llm.scale import Scale
from tests.support.fuzz.texts import JSON, SCALAR, TEXT

CODE = "0f3a9c51"
WORD = st.sampled_from(["met", "not met", "cannot tell", "Met", 1, 0, True, None, "yes"])
VERDICT = WORD | SCALAR
REPLY = (
    st.text(max_size=80)
    | JSON.map(lambda value: json.dumps(value))
    | st.builds(
        lambda before, *words: (
            before + json.dumps({"code": CODE, "verdicts": dict(zip("12", words, strict=True))})
        ),
        TEXT,
        WORD,
        WORD,
    )
    | st.builds(
        lambda before, verdicts, after, key: before + json.dumps({key: verdicts}) + after,
        st.sampled_from(["", "<think>x</think>", "```json\n", "{", '"verdicts"']) | TEXT,
        st.dictionaries(
            st.sampled_from(["1", "2", "3", "x", ""]), VERDICT | st.fixed_dictionaries({"verdict": VERDICT})
        )
        | st.lists(st.fixed_dictionaries({"criterion": SCALAR, "verdict": VERDICT}), max_size=3)
        | JSON,
        st.sampled_from(["", "\n```", "}", "</think>"]) | TEXT,
        st.sampled_from(["verdicts", "score"]),
    )
)


def reply(text):
    read = (
        [read_score(text, Scale.of([1, 10]), CODE)]
        if "score" in text
        else read_verdicts(text, 2, Scale.of(None), CODE)
    )
    assert all(one.value is None or 0.0 <= one.value <= 1.0 for one in read)

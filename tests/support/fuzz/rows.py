"""Rows of a data file."""

import json

from hypothesis import strategies as st

from herl.data.foreign import ALIASES, CRITERION_ALIASES
from herl.data.formats import Reading, task_of
from herl.data.rows import Row
from herl.types import Task
from tests.support.fuzz.texts import JSON, SCALAR, TEXT

FIELDS = [
    "prompt", "messages", "rubric", "id", "meta", "reference", "source", "constraints", "instruction_id_list", "kwargs",
    "key", "reward_model", *(alias for names in ALIASES.values() for alias in names),
]  # fmt: skip
ITEM_FIELDS = [
    "text", "id", "weight", "title", "category", "check", "undesirable", "gate",
    *(alias for names in CRITERION_ALIASES.values() for alias in names),
]  # fmt: skip
ITEM = st.dictionaries(st.sampled_from(ITEM_FIELDS), JSON, max_size=6) | st.fixed_dictionaries(
    {"text": TEXT}, optional={"weight": SCALAR, "undesirable": st.booleans(), "id": SCALAR, "check": JSON}
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": TEXT})
RUBRIC = st.lists(ITEM | TEXT, max_size=4)
ROW = (
    st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON | RUBRIC | st.lists(MESSAGE, max_size=3), max_size=6)
    | st.fixed_dictionaries(
        {"prompt": TEXT | st.lists(MESSAGE, max_size=3), "rubric": RUBRIC}, optional={"id": SCALAR}
    )
    | st.fixed_dictionaries(
        {
            "prompt": TEXT,
            "instruction_id_list": st.lists(TEXT, max_size=3),
            "kwargs": st.lists(JSON, max_size=3),
        }
    )
    | st.builds(lambda value: {"prompt": "x", "rubric": json.dumps(value)}, JSON)
    | JSON
)


def row(value):
    task = task_of(Row(place="rows.jsonl:1", number=1, value=value), Reading())
    assert isinstance(task, Task)
    assert task.messages
    ids = [criterion.id for criterion in task.rubric.criteria]
    assert len(set(ids)) == len(ids), ids

"""The judge of this task: a plain function, called once for each answer."""

from herl import Task

MAX_WORDS = 16


def reward(task: Task, text: str) -> dict[str, bool]:
    """Returns a verdict for each criterion of the row, by its id: whether the answer meets it.

    The rubric in the row says what a verdict is worth; "praise" is undesirable there, so meeting it costs
    points. Numbers in [0, 1] are graded verdicts, and None means that the function cannot tell.

    Args:
        task: The row: `task.request` is its prompt, `task.rubric` has its criteria, `task.meta` the rest.
        text: The answer.
    """
    return {
        "color": f"it is {task.meta['color']}" in text.lower(),
        "short": len(text.split()) <= MAX_WORDS,
        "praise": "truly wonderful" in text.lower(),
    }

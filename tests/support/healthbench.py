"""Rows in the form of HealthBench's public file, and a fake grader with another prompt than the published one."""

import json
import re

GRADER = "A FAKE GRADER.\n<<conversation>>\n~~~\n<<rubric_item>>"
THEMES = ("theme:hedging", "theme:global_health")


def item(word, points, *tags):
    return {"criterion": f"Says {word}.", "points": points, "tags": list(tags)}


def line(name, *items, tags=THEMES[:1]):
    messages = [
        {"role": "user", "content": "My knee hurts."},
        {"role": "assistant", "content": "Since when?"},
        {"role": "user", "content": f"Since {name}."},
    ]
    return {
        "prompt_id": name, "prompt": messages, "rubrics": list(items), "example_tags": list(tags),
        "ideal_completions_data": None, "canary": "made up for herl's tests",
    }  # fmt: skip


ROWS = (
    line(
        "monday", item("rest", 5, "level:example", "axis:accuracy"), item("ice", 3, "axis:completeness"),
        item("the", -6, "axis:accuracy"), tags=THEMES,
    ),
    line("tuesday", item("a", 10, "level:cluster", "axis:accuracy"), item("zzz", -4, "axis:completeness")),
    line("friday", item("zzz", 7, "axis:completeness"), item("e", -9, "axis:accuracy"), tags=THEMES[1:]),
)  # fmt: skip


def write_rows(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_grader(path, text=GRADER):
    path.write_text(f'import nothing_of_this_runs\n\nGRADER_TEMPLATE = """\n{text}\n""".strip()\n')
    return str(path)


def fake_grade(asked):
    """Whether the last turn contains the word that the criterion names."""
    conversation, rubric_item = asked.split("\n~~~\n")
    answer = conversation.rpartition("assistant: ")[2]
    word = re.fullmatch(r"\[-?\d+\] Says (.*)\.", rubric_item)[1]
    met = word in answer
    return "```json\n" + json.dumps({"explanation": f"looked for {word}", "criteria_met": met}) + "\n```"

"""Settings that version 0.1 knew by other names, so that older runs and command lines can be translated."""

from __future__ import annotations

from herl.targets import moved

KEYS = {
    "benchmark.data.most": "benchmark.data.max_prompts",
    "callbacks.dashboard.most_criteria": "callbacks.dashboard.max_criteria",
    "callbacks.hindsight_gate": "module.hindsight_gate",
    "callbacks.record_answers.most": "callbacks.record_answers.max_answers",
    "data.most": "data.max_prompts",
    "hindsight.candidates.most": "hindsight.candidates.max_candidates",
    "memory": "replay",
    "memory.most_prompts": "replay.max_prompts",
    "module.judge_desk": "module.judge_runner",
    "module.memory": "module.replay",
    "module.memory.most_prompts": "module.replay.max_prompts",
    "module.most_skipped_steps": "module.max_skipped_steps",
    "most": "max_answers",
}
"""Keys, and prefixes of keys, by their old names."""

CHOICES = {"memory=replay": "replay=buffer"}
"""Choices from a config group, by their old names."""


def renamed_key(key: str) -> str:
    """Returns the new name of a dotted key, or the key itself if it was not renamed."""
    names = key.split(".")
    for count in range(len(names), 0, -1):
        if new := KEYS.get(".".join(names[:count])):
            return ".".join([new, *names[count:]])
    return key


def renamed(override: str) -> str:
    """Translates an override from an older run to today's names."""
    bare = override.lstrip("+~")
    prefix = override.removesuffix(bare)
    if bare in CHOICES:
        return prefix + CHOICES[bare]
    key, equals, value = bare.partition("=")
    if key.endswith("._target_"):
        value = moved(value.strip("'\"")) or value
    return f"{prefix}{renamed_key(key)}{equals}{value}"

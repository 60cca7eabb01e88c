"""How likely the untrained model finds what the policy answers in the end.

Reward that was gained by strange language shows as a fall. Needs runs with
`callbacks.record_answers.heldout=true`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from report import changed

NAME = "base log-prob"


def base_logprob(run: Path) -> dict[str, float]:
    """Returns the mean log-prob of a token of the last held-out answers, in nats, and its change.

    Under the model before training, one answer per prompt; the change is that since its own answers. The
    result is kept in base_logprob.json.

    Raises:
        SystemExit: the run recorded no held-out answers.
    """
    kept = run / "base_logprob.json"
    if not kept.is_file():
        files = sorted((run / "records").glob("heldout-*.jsonl"))
        if len(files) < 2:
            raise SystemExit(
                f"{run}: expected held-out answers (callbacks.record_answers.heldout=true), got none"
            )
        model, tokenizer = _loaded(str(OmegaConf.load(run / ".hydra" / "config.yaml").model.path))
        before, after = (
            mean_logprob(model, tokenizer, map(json.loads, file.read_text().splitlines()))
            for file in (files[0], files[-1])
        )
        kept.write_text(json.dumps(changed(NAME, before, after)))
    return dict(json.loads(kept.read_text()))


@torch.inference_mode()
def mean_logprob(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Iterable[Mapping[str, Any]]
) -> float:
    """Returns the mean log-prob of a token, in nats, over the first answer to each prompt."""
    first = {record["task_id"]: record for record in reversed(list(records))}
    total, count = 0.0, 0
    for record in first.values():
        context = render(tokenizer, [{"role": "user", "content": record["request"]}])
        answer = tokenizer.encode(record["text"], add_special_tokens=False)
        if answer:
            logits = model(torch.tensor([[*context, *answer]])).logits[0, len(context) - 1 : -1].float()
            chosen = torch.tensor(answer)[:, None]
            total += float(logits.log_softmax(-1).gather(1, chosen).sum())
            count += len(answer)
    return total / max(1, count)


@cache
def _loaded(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = PretrainedModel(path=path)
    return model.load().eval(), model.tokenizer()

"""A judge model in this process, run by a sampling engine."""

import os
import re
import shutil

import pytest

from herl.judge import JudgeRunner
from herl.judge.llm.client import Limits
from herl.judge.llm.judge import LLMJudge
from herl.judge.llm.local import LocalChat, opening
from herl.judge.llm.scale import Scale
from herl.judge.llm.server import VLLMChat
from herl.models.pretrained import PretrainedModel
from herl.sampler.transformers import TransformersSampler
from herl.testing import make_rollout, make_task

TASK = make_task()


class Verdicts(TransformersSampler):
    """The real engine with its text replaced, since the tiny model cannot write verdicts."""

    def __init__(self, words):
        super().__init__(batch_size=4)
        self.words = words
        self.rounds = []

    def generate(self, requests):
        from dataclasses import replace

        self.rounds.append([self._tokenizer.decode(request.prompt_ids) for request in requests])
        for rollout in super().generate(requests):
            assert len(rollout.token_ids) <= 4
            yield replace(rollout, text=self.words)


def judge_with(words, texts, **settings):
    engine = Verdicts(words)
    judge = LLMJudge(
        LocalChat(PretrainedModel(path="tiny"), engine),
        max_tokens=4,
        limits=Limits(tries=1),
        reasons=False,
        **settings,
    )
    with JudgeRunner(judge) as runner:
        futures = [runner.submit(TASK, make_rollout(text, id=f"g/{i}")) for i, text in enumerate(texts)]
        judgements = [future.result().judgement for future in futures]
    with JudgeRunner(judge) as runner:  # a second stage of the run: the model is there already
        runner.submit(TASK, make_rollout("again", id="g/9")).result()
    judge.close()
    return judgements, engine


def test_replies_are_begun_in_their_form_and_written_together():
    judgements, engine = judge_with(
        'met"}}} {"verdicts": and more', ["fish", "river", "otter"], mode="per_criterion"
    )
    assert [judgement.reward for judgement in judgements] == [1.0, 1.0, 1.0]
    assert len(engine.rounds) <= 3
    begun = re.compile(r'\{"code": "[0-9a-f]{8}", "verdicts": \{"1": \{"verdict": "$')
    assert all(begun.search(prompt) for prompts in engine.rounds for prompt in prompts)
    assert judgements[0].usage["tokens"] > 100


def test_nothing_holds_a_local_model_to_its_form_so_it_may_abstain():
    judgements, _ = judge_with("blah", ["fish"], mode="per_criterion")
    assert judgements[0].reward is None
    assert judgements[0].usage["abstained_malformed"] == 2
    assert "cut off after 4 tokens" in judgements[0].verdicts[0].reason


def test_another_type_of_weights_or_another_export_is_another_model(tmp_path):
    folder = shutil.copytree(PretrainedModel(path="tiny").source(), tmp_path / "model")

    def names():
        found = [
            LocalChat(PretrainedModel(path=str(folder), dtype=one), None) for one in ("float32", "bfloat16")
        ]
        served = VLLMChat(PretrainedModel(path=str(folder)), "log")
        return [*(chat.identity for chat in found), served.identity]

    before = names()
    assert before == names()
    assert len(set(before)) == 3
    weights = next(folder.glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    assert not set(before) & set(names())


class Broken(Verdicts):
    def generate(self, requests):
        raise RuntimeError("out of memory")


def test_an_engine_that_breaks_abstains_and_the_rest_goes_on():
    judge = LLMJudge(LocalChat(PretrainedModel(path="tiny"), Broken("")), limits=Limits(tries=1))
    with JudgeRunner(judge) as runner:
        judgement = runner.submit(TASK, make_rollout("fish")).result().judgement
    assert judgement.reward is None
    assert "RuntimeError: out of memory" in judgement.verdicts[0].reason


@pytest.mark.parametrize(
    ("mode", "begun"), [("holistic", '"reason": "'), ("one_shot", '"verdicts": {"1": {"reason": "')]
)
def test_the_opening_follows_the_schema(mode, begun):
    from herl.judge.llm.prompt import PromptBuilder

    [question] = PromptBuilder(mode, Scale.of(None)).questions(TASK, "fish")
    assert opening(question.schema) == f'{{"code": "{question.code}", {begun}'


def test_a_judging_model_without_system_messages_reads_them_before_the_request(tmp_path):
    folder = shutil.copytree(PretrainedModel(path="tiny").source(), tmp_path / "model")
    path = folder / "chat_template.jinja"
    path.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + path.read_text()
    )
    prompts = []
    for model in ("tiny", str(folder)):
        engine = Verdicts('met"}}}')
        judge = LLMJudge(
            LocalChat(PretrainedModel(path=model), engine),
            max_tokens=4, limits=Limits(tries=1), reasons=False, mode="per_criterion",
        )  # fmt: skip
        with JudgeRunner(judge) as runner:
            assert runner.submit(TASK, make_rollout("fish", id="g/0")).result().reward == 1.0
        judge.close()
        prompts.append(re.sub(r"[0-9a-f]{8}|<[^>]*>|\s|system|user|assistant", "", engine.rounds[0][0]))
    assert prompts[0] == prompts[1], "the same words"

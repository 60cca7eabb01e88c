"""The page is the oracle: given the same answers, herl takes the same gradients at every optimizer step."""

from collections import defaultdict
from dataclasses import replace

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM

from herl.callbacks import RefreshSampler
from herl.data.animals import animals
from herl.data.datamodule import EpochShuffle, RubricDataModule
from herl.errors import JudgeError
from herl.judge.rule import RuleJudge
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.transformers import TransformersSampler
from herl.testing import make_task
from herl.types import Criterion, Rubric
from tests import one_page
from tests.support.configuration import composed

TINY = one_page.HERL / "assets" / "tiny"
ATTEMPTS = 4  # instead of 8, to save time
UNREADABLE = "unreadable"
RUBRIC = {"fish": 3.0, "river": 2.0, "zoo": -2.0}


def task(id, **more):
    """A task about an animal, with a criterion that no rule can judge."""
    made = make_task(RUBRIC, id=id, request=f"Describe the {id}.", **more)
    mood = Criterion(id="mood", text="Is cheerful.", weight=4.0)
    return replace(made, rubric=Rubric(criteria=(*made.rubric.criteria, mood)))


SCRIPT = {  # attempts at each prompt, and a revision of the best of them
    "joins": (["It eats fish.", "It is brown.", "A river, a zoo.", "Brown."], "fish river"),
    "ties": (["It eats fish.", "It is brown.", "river", "fish zoo"], "It eats fish, so it does."),
    "worse": (["river", "It eats fish.", "zoo", "Brown."], "No idea."),
    "perfect": (["fish river", "fish", "river", "Brown."], "not asked for"),
    "flat": (["It eats fish."] * ATTEMPTS, "No idea."),  # but for the bonus
    "abstains": ([UNREADABLE, "It eats fish.", UNREADABLE, "Brown."], "river fish"),
    "revision_abstains": (["It eats fish.", "river"] * 2, UNREADABLE),
    "all_abstain": ([UNREADABLE] * ATTEMPTS, "not asked for"),
    "undesirable": (["fish zoo", "fish river zoo", "zoo", "fish"], "fish river"),
}


class RecordingJudge(RuleJudge):
    """Records every answer that it judges, and fails on unreadable ones."""

    def __init__(self):
        super().__init__()
        self.rollouts = []

    async def judge(self, task, rollout):
        self.rollouts.append(rollout)
        if UNREADABLE in rollout.text:
            raise JudgeError("cannot be read")
        return await super().judge(task, rollout)

    def answers(self):
        """Prompt -> the answers to it in order, all as token ids."""
        found = defaultdict(list)
        for rollout in sorted(self.rollouts, key=lambda rollout: rollout.index):
            found[rollout.prompt_ids].append(list(rollout.token_ids))
        return found


class RecordingSGD(torch.optim.SGD):
    """Records the gradients of every step."""

    def __init__(self, parameters, steps):
        super().__init__(parameters, lr=0.1)  # large: at later steps ratios leave the range of the clip
        self.steps = steps

    def step(self, closure=None):
        if closure is not None:
            closure()
        parameters = self.param_groups[0]["params"]
        self.steps.append([parameter.grad.clone() for parameter in parameters])
        return super().step()


def herl_gradients(sampler, tasks, folder):
    """The gradients of each optimizer step of `herl fit` on one batch, with defaults, and the answers."""
    config = composed("fit", f"rollout.attempts_per_prompt={ATTEMPTS}")
    judge, steps = RecordingJudge(), []
    parts = {
        name: instantiate(config[name])
        for name in ("hindsight", "bonus", "selection", "advantages", "loss", "rollout")
    }
    module = HerlModule(
        PretrainedModel(path="tiny"), sampler, judge, **parts, packing="shared",
        optimizer=lambda parameters: RecordingSGD(parameters, steps),
        updates_per_batch=config.module.updates_per_batch, max_grad_norm=config.module.max_grad_norm,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[RefreshSampler()],
    )  # fmt: skip
    trainer.fit(module, RubricDataModule(tasks, prompts_per_batch=len(tasks), seed=0))
    return steps, judge.answers()


def page_gradients(answers, tasks):
    """The page's results for the same answers, in float64.

    It looks answers up by the ids of their prompt, so the two must agree on every revision prompt.
    """
    policy, steps = AutoModelForCausalLM.from_pretrained(TINY).double(), []
    tokenizer = PretrainedModel(path="tiny").tokenizer()
    given = {prompt: list(them) for prompt, them in answers.items()}

    def sample(policy, tokenizer, context, n):
        them = given[tuple(context)]
        taken, them[:] = them[:n], them[n:]
        assert len(taken) == n
        return taken

    meets = one_page.meets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_page, "ATTEMPTS", ATTEMPTS)
        patch.setattr(one_page, "sample", sample)
        patch.setattr(one_page, "meets", lambda c, text: None if UNREADABLE in text else meets(c, text))
        in_order = [tasks[place] for place in EpochShuffle(len(tasks), seed=0)]
        groups = one_page.herl_step(policy, tokenizer, RecordingSGD(policy.parameters(), steps), in_order)
    assert not any(given.values()), "herl has sampled answers that the page did not ask for"
    return steps, groups


def deviation(steps, others):
    """The largest relative distances at any step, between whole gradients and between single parameters'."""
    assert len(steps) == len(others)
    whole, parameter = 0.0, 0.0
    for step, other in zip(steps, others, strict=True):
        distances = torch.stack([(a.double() - b).norm() for a, b in zip(step, other, strict=True)])
        norms = torch.stack([b.norm() for b in other])
        whole = max(whole, float(distances.norm() / norms.norm()))
        parameter = max(parameter, float((distances / norms).max()))
    return whole, parameter


def check_same(steps, expected):
    """The rest is rounding in float32, mostly of parameters with small gradients."""
    whole, parameter = deviation(steps, expected)
    assert whole < 1e-5
    assert parameter < 3e-5


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    tasks = [task(id) for id in SCRIPT]
    attempts = {id: attempts for id, (attempts, _) in SCRIPT.items()}
    revisions = {id: [revision] for id, (_, revision) in SCRIPT.items()}
    sampler = ScriptedSampler(attempts, revisions)
    steps, answers = herl_gradients(sampler, tasks, tmp_path_factory.mktemp("run"))
    return steps, answers, tasks


def test_the_page_takes_herls_gradients_at_every_optimizer_step(scripted, monkeypatch):
    steps, answers, tasks = scripted
    counts = count_clipped_tokens(monkeypatch)
    expected, groups = page_gradients(answers, tasks)
    assert len(steps) == one_page.UPDATES
    check_same(steps, expected)  # measured: 2.7e-6 and 7.4e-6
    check_that_every_case_occurs(groups)
    assert min(counts[name] for name in ("high", "low", "dual")) > 0, "a branch of the loss is not compared"


def test_it_does_with_answers_that_the_policy_sampled(tmp_path):
    tasks = animals().train[:8]
    steps, answers = herl_gradients(TransformersSampler(), tasks, tmp_path)
    expected, groups = page_gradients(answers, tasks)
    assert len(groups) >= 6
    check_same(steps, expected)  # measured: 2.6e-6 and 4.1e-6


CHANGES = {
    "ALPHA": 0.06,
    "FLAT": 1.0,
    "CLIP": 0.5,
    "DUAL_CLIP": 100.0,
    "ENTROPY_COEF": 0.011,
    "UPDATES": 3,
    "MAX_GRAD_NORM": 0.9,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_coefficient_is_noticed(scripted, name, monkeypatch):
    steps, answers, tasks = scripted
    monkeypatch.setattr(one_page, name, CHANGES[name])
    expected, _ = page_gradients(answers, tasks)
    assert len(steps) != len(expected) or deviation(steps, expected)[0] > 1e-3


def check_that_every_case_occurs(groups):
    tokenizer = PretrainedModel(path="tiny").tokenizer()
    found = {}
    for group in groups:
        prompt = tokenizer.decode(group[0][0])
        [id] = [id for id in SCRIPT if f"Describe the {id}." in prompt]
        found[id] = [answer for _, answer, _ in group]
    assert set(found) == set(SCRIPT) - {"flat", "all_abstain"}
    joined = {id for id, them in found.items() if SCRIPT[id][1] in [answer.text for answer in them]}
    assert joined == {"joins", "abstains", "undesirable"}
    assert {id for id, them in found.items() if len(them) != ATTEMPTS} == {"abstains"}
    bonuses = {id: max((answer.bonus for answer in them), key=abs) for id, them in found.items()}
    assert bonuses["joins"] > 0 > bonuses["worse"]
    assert bonuses["ties"] == bonuses["perfect"] == bonuses["revision_abstains"] == 0


def count_clipped_tokens(monkeypatch):
    counts, token_losses = defaultdict(int), one_page.token_losses

    def counted(logprobs, entropy, old, advantage):
        ratio = (logprobs - old).exp().tolist()
        counts["high"] += sum(one > 1 + one_page.CLIP and advantage > 0 for one in ratio)
        counts["low"] += sum(one < 1 - one_page.CLIP and advantage < 0 for one in ratio)
        counts["dual"] += sum(one > one_page.DUAL_CLIP and advantage < 0 for one in ratio)
        return token_losses(logprobs, entropy, old, advantage)

    monkeypatch.setattr(one_page, "token_losses", counted)
    return counts


def test_its_constants_are_the_defaults_of_herl_fit():
    config = composed("fit")
    assert {
        "ATTEMPTS": config.rollout.attempts_per_prompt,
        "MAX_NEW_TOKENS": config.rollout.attempt.max_new_tokens,
        "ALPHA": config.bonus.alpha,
        "FLAT": config.advantages.tolerance,
        "CLIP": config.loss.clip_low,
        "DUAL_CLIP": config.loss.dual_clip,
        "ENTROPY_COEF": config.loss.entropy_coef,
        "UPDATES": config.module.updates_per_batch,
        "MAX_GRAD_NORM": config.module.max_grad_norm,
    } == {name: value for name, value in vars(one_page).items() if type(value) in (int, float)}
    assert config.loss.clip_high == config.loss.clip_low
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-3, 0.0)


def test_its_sampler_draws_from_the_policy_and_ends_answers_at_their_end_token(policy, tokenizer):
    """Only for answers drawn from the policy is the mean log-prob minus the entropy."""
    torch.manual_seed(0)
    context = one_page.render(tokenizer, [{"role": "user", "content": "Describe the otter, a mammal."}])
    answers = one_page.sample(policy, tokenizer, context, 16)
    with torch.no_grad():
        scores = [one_page.logprobs(policy, context, ids) for ids in answers]
    surprise = torch.cat([-logprobs - entropy for logprobs, entropy in scores])
    assert abs(float(surprise.mean())) < 3 * float(surprise.std()) / len(surprise) ** 0.5
    for ids in answers:
        assert tokenizer.eos_token_id not in ids[:-1]
        assert ids[-1] == tokenizer.eos_token_id or len(ids) == one_page.MAX_NEW_TOKENS


def test_it_runs_and_shows_a_group(capsys):
    one_page.main(prompts=1)
    shown = capsys.readouterr().out
    assert "Describe the otter" in shown
    assert shown.count("A = ") == one_page.ATTEMPTS

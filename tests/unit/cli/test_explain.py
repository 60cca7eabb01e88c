"""herl explain and the help of a verb print what conf/ says, on 80 columns and without heavy imports."""

import subprocess
import sys

import pytest

from herl.cli.explain import COMMON, Book, explain, verb_help
from herl.cli.main import VERBS, WITHOUT_HYDRA
from herl.config.aliases import ADAPTERS, ALIASES, meant
from herl.errors import ConfigError


@pytest.fixture
def said(capsys):
    def of(*words):
        explain(words)
        return capsys.readouterr().out

    return of


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("rollout.attempts_per_prompt", ["group size n", "8 by default (conf/rollout/default.yaml:"]),
        ("rollout.attempts_per_prompt", ["6 with experiment=smollm2_if"]),
        ("judge", ["judge=CHOICE: one of", "rule by default", "  llm", "herl explain judge/chat"]),
        ("judge=llm", ["(conf/judge/llm.yaml)", "judge.votes=1", "the majority"]),
        ("judge/chat", ["endpoint by default"]),
        ("judge.chat", ["judge/chat=CHOICE"]),
        ("judge.max_tokens", ["2048 with judge=llm", "16 with judge=local", "enough for a verdict"]),
        ("judge=local", ["judge.votes=1", "judge.mode=per_criterion"]),  # what it extends, and its own
        ("data.train.path", ["must be set with data=file"]),
        ("resume", ["by default in herl fit"]),
        ("callbacks.alarms", ["callbacks=alarms", "callbacks.alarms.patience=5"]),
        ("module.judge.votes", ["judge.votes\n"]),  # the module's parts are groups
        ("kl_coef", ["loss.kl_coef\n"]),  # the end of one key only
        ("rollout.heldout.top_p", ["the same as validation.sampling.top_p"]),
        ("algorithm=critique", ["It chooses hindsight=revision", "loss.gamma=0.1"]),
    ],
)
def test_a_word_is_explained(said, word, expected):
    text = said(word)
    for part in expected:
        assert part in text


@pytest.mark.parametrize("alias", [*ALIASES, *ADAPTERS, "output_dir"])
def test_an_alias_is_explained_as_the_key_that_typing_it_sets(alias):
    text = " ".join(Book().explained(alias))
    for one in meant(f"{alias}=1"):
        key = one.removesuffix("=1")
        assert key in text or "=" in key, "lora=lora"


def test_words_that_are_read_as_choices_are_explained_too(said):
    assert "'use_vllm=true' is read as 'sampler=vllm'" in said("use_vllm")
    assert "judge.function" in said("reward")
    assert "validation.attempts" in said("n")
    assert "validation.val_check_interval" in said("eval_steps")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rollout.atempts_per_prompt", "Did you mean 'rollout.attempts_per_prompt'?"),
        ("strategi", "Did you mean 'strategy'?"),
        ("judge=lmm", "expected one of function, .*Did you mean 'llm'?"),
        ("kl_coeff", "Did you mean 'kl_coef'?"),
        ("concurrency", "expected one key, got the end of .*judge.limits.concurrency"),
    ],
)
def test_an_unknown_word_is_an_error_with_a_suggestion(said, word, message):
    with pytest.raises(ConfigError, match=message):
        said(word)


def test_several_words_and_none(said):
    assert "loss.kl_coef" in said("seed", "kl_coef")
    assert "tiny*" in said()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in WITHOUT_HYDRA])
def test_the_help_of_a_verb_fits_on_80_columns(verb, capsys):
    verb_help(verb)
    text = capsys.readouterr().out
    assert text.startswith(f"herl {verb}")
    assert max(map(len, text.splitlines())) <= 80
    assert ("judge/chat" in text) == (verb not in ("inspect", "compare"))
    assert ("ifbench" in text) == (verb in ("test", "improve"))


def test_the_keys_that_most_runs_set_exist():
    assert set(COMMON) <= set(Book().places)


def test_help_and_explain_load_nothing_heavy():
    code = (
        "import sys; from herl.cli.main import main; "
        "sys.argv = ['herl', 'fit', '--help']; main(); sys.argv = ['herl', 'explain', 'judge']; main(); "
        "assert not {'torch', 'transformers', 'lightning', 'hydra', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

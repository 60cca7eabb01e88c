"""A key in the place of a variable's name is refused, and no message repeats it."""

import pytest
from omegaconf import OmegaConf

from herl import ConfigError
from herl.config.check import check, check_value
from herl.config.early import check_early
from herl.config.keys_in_settings import check_composed, check_typed
from herl.errors import is_variable_name
from herl.judge.llm.endpoint import Endpoint
from herl.report.secret import redacted
from herl.sampler.vllm_server import VLLMServerSampler
from tests.support.configuration import composed

KEYS = [
    "sk-proj-hush1234", "sk-hush", "hf_hushHUSHhushHUSHhushHUSHhushHUSHhu", "ghp_hush0123456789hush0123456789hush",
    "xoxb-hush-12", "Bearer hush1234", "hush.hush", "hush0123456789abcdef", "HUSH0123456789ABCDEF", "AKIAHUSH00HUSH11HUSH",
    "eyJhush.hush.hush", "a/hush=",
]  # fmt: skip
NAMES = ["OPENAI_API_KEY", "my_key_2", "KEY", "AZURE_OPENAI_KEY_2026", "hf_token", "judge_key", "_K"]


def refused(run):
    with pytest.raises(ConfigError) as error:
        run()
    shown = f"{error.value}{error.value.__cause__!r}{error.value.__context__!r}"
    assert "hush" not in shown.lower()
    return str(error.value)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_given_as_the_name_of_a_variable_is_refused_everywhere_and_not_repeated(key, tmp_path):
    quoted = f"'{key}'" if " " in key else key
    messages = [
        refused(lambda: check_typed(["seed=1", f"judge.chat.api_key_env={quoted}"])),
        refused(lambda: check_typed([f"+judge={{chat: {{api_key_env: {quoted}, model: m}}}}"])),
        refused(lambda: check_typed([f"sampler.api_key_env=KEY,{quoted}"])),
        refused(lambda: check_composed(OmegaConf.create({"judge": {"chat": {"api_key_env": key}}}))),
        refused(lambda: Endpoint("http://x/v1", "m", api_key_env=key)),
        refused(lambda: VLLMServerSampler(str(tmp_path), urls=["http://x"], api_key_env=key)),
    ]
    assert all("api_key_env: expected the name of an environment variable" in one for one in messages)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_variables_pass(name):
    assert is_variable_name(name)
    check_typed(
        [f"judge.chat.api_key_env={name}", f"judge.chat.api_key_env='{name}'", f"x_env={name},{name}"]
    )
    check_composed(OmegaConf.create({"a": {"api_key_env": name, "b_env": None, "c_env": "${oc.env:X}"}}))


def test_a_variable_that_is_set_has_a_name(monkeypatch):
    monkeypatch.setenv("k0123456789abcdef", "x")
    assert is_variable_name("k0123456789abcdef")


@pytest.mark.parametrize(
    "typed",
    ["judge.chat.base_url=http://me:hush@node7/v1", "sampler.urls=[http://a:1,http://hush@b:2]",
     "judge.chat.base_url='https://:hush@node7/v1'", "judge.chat.base_url=https://x/v1?key=hush"],
)  # fmt: skip
def test_addresses_with_a_password_are_refused_before_they_are_kept(typed, tmp_path):
    assert "without user, password and query" in refused(lambda: check_typed([typed]))
    config = OmegaConf.from_dotlist([typed])
    assert "without user, password and query" in refused(lambda: check_composed(config))


def test_a_password_in_a_servers_address_is_refused_by_the_sampler(tmp_path):
    refused(lambda: VLLMServerSampler(str(tmp_path), urls=["http://me:hush@x"]))


# Messages


def test_an_interpolation_is_shown_as_it_is_written_and_not_as_what_it_stands_for(monkeypatch):
    monkeypatch.setenv("HERL_TEST_VALUE", "hush")
    chat = {"_target_": "herl.judge.llm.endpoint.Endpoint", "base_url": "http://x/v1", "model": "m"}
    for settings, expected in [
        ({"prompt_price": "${oc.env:HERL_TEST_VALUE}"}, "got '${oc.env:HERL_TEST_VALUE}'"),
        ({"structured": "${oc.env:HERL_TEST_VALUE}"}, "got '${oc.env:HERL_TEST_VALUE}'"),
        ({"extra_body": ["${oc.env:HERL_TEST_VALUE}"]}, "got ['${oc.env:HERL_TEST_VALUE}']"),
        ({"prompt_price": "${kept}"}, "got '${kept}'"),
    ]:
        config = OmegaConf.create({"kept": "${oc.env:HERL_TEST_VALUE}", "judge": {"chat": chat | settings}})
        assert expected in refused(lambda config=config: check(config))
    typed = "judge.chat.prompt_price=${oc.env:HERL_TEST_VALUE}"
    config = composed("fit", "judge=llm", "judge.chat.base_url=http://x/v1", "judge.chat.model=m", typed)
    assert "${oc.env:HERL_TEST_VALUE}" in refused(lambda: check_early(config, [typed], judges=False))


def test_a_value_that_is_written_out_is_shown():
    with pytest.raises(ConfigError, match="a: expected a whole number, got 'many'"):
        check_value("a", "many", int)


@pytest.mark.parametrize(
    "text",
    ["unknown model sk-hush1234567", "http://me:hush@proxy:3128 cannot be reached", "Authorization: Bearer hush12345",
     "got hush-in-a-variable here"],
)  # fmt: skip
def test_errors_are_printed_without_what_looks_like_a_key(text, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "hush-in-a-variable")
    assert "hush" not in redacted(text)
    assert redacted("got 12 of SOME words") == "got 12 of SOME words"

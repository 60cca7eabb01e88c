"""Templates that write today's date give a run the same prompts on every day."""

from copy import deepcopy
from datetime import datetime

import pytest

from herl.rollout.render import Today, reading_sample, render

DATED = (
    "{{ strftime_now('%d %b %Y %H:%M') }}",
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}",  # as in Llama 3
)
HELLO = [{"role": "user", "content": "Hello."}]


@pytest.fixture(params=DATED)
def dated(tokenizer, request):
    made = deepcopy(tokenizer)
    made.chat_template = request.param + str(tokenizer.chat_template)
    return made


def test_the_date_is_the_runs_and_not_todays(dated):
    today = Today()
    now = render(dated, HELLO, today.started)
    today.pin("2024-02-29T10:30:00")
    then = render(dated, HELLO, today.started)
    assert "29 Feb 2024" in dated.decode(list(then))
    assert f"{datetime.now():%b %Y}" in dated.decode(list(now))
    today.pin(None)  # a checkpoint of an earlier version
    assert render(dated, HELLO, today.started) == then


def test_a_fingerprint_holds_no_time(dated, tokenizer, monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 1)

    before = reading_sample(dated)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert "2031" in dated.decode(list(render(dated, HELLO)))
    assert reading_sample(dated) == before
    assert reading_sample(tokenizer) != before

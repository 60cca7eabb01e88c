"""An answer is what follows thinking, split by token ids; thinking that never ends leaves no answer."""

import pytest
from transformers import AutoTokenizer

from herl.models.source import SHIPPED
from herl.sampler.answer import finished_answer
from herl.types import SampleRequest, Sampling

THINK = ("<think>", "</think>")
HEAD = "<|im_start|>assistant\n"
CHANNELS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


def reading(*tags, opens=""):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "tiny")
    tokenizer.add_special_tokens({"additional_special_tokens": list(tags)})
    if opens:
        assert HEAD + "{% endif %}" in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(
            HEAD + "{% endif %}", f"{HEAD}{opens}\n{{% endif %}}"
        )
    return tokenizer


def sampled(tokenizer, text, prompt=None):
    if prompt is None:
        messages = [{"role": "user", "content": "Where?"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    else:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    request = SampleRequest(
        task_id="t", group_id="g", prompt_ids=tuple(ids), n=1, sampling=Sampling(), seed=0
    )
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = frozenset([tokenizer.eos_token_id])
    made = finished_answer(
        request, 0, token_ids, [0.0] * len(token_ids), tokenizer=tokenizer, end_ids=end, version=0
    )
    assert made.token_ids == tuple(token_ids), "training uses everything that was sampled"
    assert 0 <= made.thinking_tokens <= len(token_ids)
    return made


@pytest.mark.parametrize(
    ("tags", "opens", "text", "thinking", "answer"),
    [
        ((), "", "Rome.<|im_end|>", "", "Rome."),
        ((), "", "The tag </think> ends it.<|im_end|>", "", "The tag </think> ends it."),
        ((), "<think>", "Paris? No.</think>\n\nRome.<|im_end|>", "Paris? No.", "Rome."),
        ((), "<think>", "Paris? Let me", "Paris? Let me", None),
        ((), "<think>", "Paris?<|im_end|>", "Paris?", None),
        ((), "<think>", "<think>\nParis?</think>Rome.<|im_end|>", "Paris?", "Rome."),
        ((), "<think>", "a</think>Write </think> twice.<|im_end|>", "a", "Write </think> twice."),
        ((), "<think>", "a</think>Rome is cut", "a", "Rome is cut"),
        ((), "[THINK]", "Paris?[/THINK]Rome.<|im_end|>", "Paris?", "Rome."),
        (THINK, "", "<think>Paris?</think>Rome.<|im_end|>", "Paris?", "Rome."),
        (THINK, "", "\n<think>Paris?</think>Rome.<|im_end|>", "Paris?", "Rome."),
        (THINK, "", "Paris?</think>Rome.<|im_end|>", "Paris?", "Rome."),
        (THINK, "", "<think>Paris?", "Paris?", None),
        (THINK, "", "<think>Paris?<|im_end|>", "Paris?", None),
        (THINK, "", "Rome.<|im_end|>", "", "Rome."),
        (THINK, "", "Rome, cut", "", "Rome, cut"),
        (THINK, "", "<think></think>Rome.<|im_end|>", "", "Rome."),
        (THINK, "", "<think>a</think><think>b</think>Rome.<|im_end|>", "ab", "Rome."),
        (THINK, "<think>", "Paris?</think>Rome.<|im_end|>", "Paris?", "Rome."),
        (THINK, "<think>", "Paris?", "Paris?", None),
        (THINK, "", "<think>a</think>Rome. <think>b</think> Done.<|im_end|>", "a", "Rome. b Done."),
        (THINK, "", "Rome. Use <think> for this.<|im_end|>", "", "Rome. Use  for this."),
        (THINK, "<think>", "a</think>Models write <think> first.<|im_end|>", "a", "Models write  first."),
        (("<seed:think>", "</seed:think>"), "", "<seed:think>a</seed:think>b<|im_end|>", "a", "b"),
        (("<|START_THINKING|>", "<|END_THINKING|>"), "", "<|START_THINKING|>a", "a", None),
    ],
)
def test_thinking_and_answer_are_told_apart(tags, opens, text, thinking, answer):
    made = sampled(reading(*tags, opens=opens), text)
    assert (made.thinking, made.text, made.has_answer) == (thinking, answer or "", answer is not None)


def test_a_template_that_closes_thinking_leaves_it_closed():
    tokenizer = reading(*THINK, opens="<think>")
    closed = f"{HEAD}<think>\n\n</think>\n\n"
    for text in ("Rome.", "Models write <think> first."):
        made = sampled(tokenizer, f"{text}<|im_end|>", closed)
        assert (made.text, made.has_answer) == (text.replace("<think>", ""), True)
    assert sampled(tokenizer, "<think>Paris?</think>Rome.<|im_end|>", closed).text == "Rome."


def test_a_prompt_that_ends_with_a_tag_is_enough():
    made = sampled(reading(), "Paris?</think>Rome.<|im_end|>", "Assistant: <think>")
    assert (made.thinking, made.text) == ("Paris?", "Rome.")
    assert not sampled(reading(), "Paris?<|im_end|>", "Assistant: <think>").has_answer


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        (
            "<|channel|>analysis<|message|>Paris?<|end|><|start|>assistant<|channel|>final<|message|>Rome.",
            "Paris?",
            "Rome.",
        ),
        ("<|channel|>analysis<|message|>Paris?", "Paris?", None),
        ("<|channel|>final<|message|>Rome.<|im_end|>", "", "Rome."),
    ],
)
def test_only_the_final_channel_is_the_answer(text, thinking, answer):
    made = sampled(reading(*CHANNELS), text)
    assert (made.thinking, made.text, made.has_answer) == (thinking, answer or "", answer is not None)


@pytest.mark.parametrize(
    ("opened", "text", "thinking", "answer"),
    [
        ("analysis", "hm still", "hm still", None),
        ("analysis", "hm<|end|><|start|>assistant<|channel|>final<|message|>Rome.", "hm", "Rome."),
        ("final", "Rome.", "", "Rome."),
    ],
)
def test_a_prompt_may_open_a_channel(opened, text, thinking, answer):
    tokenizer = reading(*CHANNELS)
    made = sampled(
        tokenizer,
        text,
        f"<|start|>user<|message|>Where?<|end|><|start|>assistant<|channel|>{opened}<|message|>",
    )
    assert (made.thinking, made.text, made.has_answer) == (thinking, answer or "", answer is not None)

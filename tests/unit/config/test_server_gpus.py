"""Servers that a run on GPUs would start on the trainer's GPU."""

import pytest

from herl import ConfigError
from herl.config.server_gpus import check_servers
from tests.support.configuration import composed

JUDGE = ("judge=llm", "judge/chat=vllm")
MIX = (
    "judge=mix",
    "+judge@judge.judges.model=llm",
    "judge/chat@judge.judges.model.chat=vllm",
    "judge.default=model",
)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (JUDGE, "judge.chat"),
        ((*JUDGE, "judge.chat.arguments=[--dtype,float16]"), "judge.chat"),
        (("sampler=vllm_server", "sampler.start=2"), "sampler"),
        (
            ("+judge@further_judges.gold=llm", "judge/chat@further_judges.gold.chat=vllm"),
            "further_judges.gold.chat",
        ),
        (MIX, "judge.judges.model.chat"),
    ],
)
def test_a_server_without_a_gpu_of_its_own_is_refused_by_its_key(given, key, tmp_path):
    with pytest.raises(
        ConfigError, match=rf"^{key}.gpus: expected the GPUs of the server, such as .*{key}.arguments="
    ):
        check_servers(composed("fit", *given, output_dir=tmp_path))


@pytest.mark.parametrize(
    "given",
    [
        (),
        (*JUDGE, "judge.chat.gpus=7"),
        (*JUDGE, "judge.chat.arguments=[--gpu-memory-utilization,0.3]"),
        (*JUDGE, "judge.chat.arguments=[--kv-cache-memory-bytes,1000000000]"),
        ("sampler=vllm_server", "sampler.urls=[http://node7:8000]"),
        ("sampler=vllm_server", "sampler.start=2", "sampler.gpus=[6,7]"),
    ],
)
def test_a_server_elsewhere_or_with_a_share_is_allowed(given, tmp_path):
    check_servers(composed("fit", *given, output_dir=tmp_path))

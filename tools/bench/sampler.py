"""Measures herl's samplers against the bare vLLM engine, on the same requests with the same settings.

    python tools/bench/sampler.py [--prompts 8] [--answers 4] [--new-tokens 48] [--words 60] [--rounds 3]

All share one vLLM engine. bare: LLM.generate, with one request and seed per answer, as in herl. bare, n at
once: one request for all answers to a prompt. transformers: herl's transformers sampler, with packed weights
and with plain ones. Ways alternate, and prefix caches are reset.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

from workload import arguments_of, endless, median, report, requests_of, write

from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from herl.models.weights import named_weights
from herl.sampler import Sampler
from herl.sampler.transformers import TransformersSampler
from herl.sampler.vllm import VLLMSampler
from herl.sampler.vllm_arguments import sampling_params
from herl.types import SampleRequest, Sampling


def main() -> None:
    arguments = arguments_of(__doc__, prompts=8, answers=4, new_tokens=48, words=60, rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        model = PretrainedModel(path=endless(arguments.model, Path(folder) / "model"))
        tokenizer, policy = model.tokenizer(), model.load().eval()
        sampler = VLLMSampler(max_model_len=1024, kv_cache_gib=0.5)
        sampler.start(policy, tokenizer)
        sampler.load_weights(named_weights(policy), 0)
        in_process = {packed: TransformersSampler(pack_weights=packed) for packed in (True, False)}
        for other in in_process.values():
            other.start(policy, tokenizer)
    requests = [
        SampleRequest(
            task_id=str(place),
            group_id=str(place),
            prompt_ids=render(tokenizer, [{"role": "user", "content": text}]),
            n=arguments.answers,
            sampling=Sampling(max_new_tokens=arguments.new_tokens),
            seed=place,
        )
        for place, text in enumerate(requests_of(arguments.prompts, arguments.words))
    ]

    def sampled(by: Sampler) -> int:
        return sum(len(rollout.token_ids) for rollout in by.generate(requests))

    def bare() -> int:
        prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests for _ in range(r.n)]
        settings = [sampling_params(r, index, sampler._end_ids) for r in requests for index in range(r.n)]
        return tokens(sampler._llm.generate(prompts, settings, use_tqdm=False))

    def together() -> int:
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        settings = [sampling_params(request, 0, sampler._end_ids) for request in requests]
        for setting in settings:
            setting.n = arguments.answers
        return tokens(sampler._llm.generate(prompts, settings, use_tqdm=False))

    def tokens(outputs: list) -> int:  # type: ignore[type-arg]
        return sum(len(answer.token_ids) for output in outputs for answer in output.outputs)

    ways = {
        "bare": bare,
        "bare, n at once": together,
        "vllm": partial(sampled, sampler),
        "transformers": partial(sampled, in_process[True]),
        "transformers, plain": partial(sampled, in_process[False]),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    sampled(sampler)  # warms up
    for turn in range(arguments.rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            sampler._llm.reset_prefix_cache()
            started = time.perf_counter()
            count = ways[name]()
            rates[name].append(count / (time.perf_counter() - started))
    base = median(rates["bare"])
    report(
        f"{arguments.model}, {arguments.prompts} x {arguments.answers} answers of up to "
        f"{arguments.new_tokens} tokens; medians of {arguments.rounds}",
        ["way", "tokens/s", "of bare", "lowest", "highest"],
        [[name, median(r), median(r) / base, min(r), max(r)] for name, r in rates.items()],
    )
    write(arguments.json, rates)
    sampler.close()


if __name__ == "__main__":
    main()

"""Times herl's refresh of the vLLM engine against vLLM's bare reload of the same weights.

    python tools/bench/refresh.py [--model smollm2-135m-instruct] [--rounds 7] [--lora] [--json out.json]

bare: collective_rpc("reload_weights") over a prepared list of tensors, and a reset of the cache. herl: the
same from the policy's stream of weights, adapters merged. The probe is timed separately. Rounds alternate.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import lightning as L

from herl.callbacks import RefreshSampler
from herl.judge.rule import RuleJudge
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel
from herl.models.weights import named_weights
from herl.module import HerlModule
from herl.sampler.vllm import VLLMSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    model = PretrainedModel(path=arguments.model, lora=Lora() if arguments.lora else None)
    sampler = VLLMSampler(max_model_len=512, kv_cache_gib=0.25)
    module = HerlModule(model=model, sampler=sampler, judge=RuleJudge())
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.policy = policy = model.load().eval()
    sampler.start(policy, module.stages.tokenizer)
    ready = [(name, tensor.clone()) for name, tensor in named_weights(policy)]
    recorded: dict[str, float] = {}
    module.record = recorded.update  # type: ignore[method-assign]
    callback = RefreshSampler()

    def bare() -> float:
        started = time.perf_counter()
        sampler._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(ready)})
        sampler._llm.reset_prefix_cache()
        return time.perf_counter() - started

    def herl() -> float:
        module.counts["optimizer_steps"] += 1
        callback.refresh(module)
        return recorded["sampler/refresh_seconds"]

    bare(), herl()  # the first of each compiles and warms up
    seconds: dict[str, list[float]] = {"bare": [], "herl": [], "probe": []}
    for turn in range(arguments.rounds):
        for way in (bare, herl) if turn % 2 else (herl, bare):
            seconds[way.__name__].append(way())
        seconds["probe"].append(recorded["sampler/probe_seconds"])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["herl"] / medians["bare"]
    print(f"{arguments.model}{', LoRA' if arguments.lora else ''}: medians of {arguments.rounds} rounds")
    for name, values in seconds.items():
        print(f"  {name:<6} {medians[name]:7.3f} s   {min(values):.3f} to {max(values):.3f}")
    print(f"  herl / bare = {ratio:.2f}; largest probe error {recorded['sampler/probe_error']:.1e}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": seconds, "ratio": ratio}, indent=2) + "\n")
    sampler.close()


if __name__ == "__main__":
    main()

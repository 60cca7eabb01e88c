"""Measures the peak memory of log-probs and entropies with their backward pass, at a vocabulary of 150k,
against computing all logits at once.

    python tools/bench/logprob_memory.py [--vocabulary 150000] [--answers 8] [--tokens 256] [--rounds 3]

The model has two narrow layers, so that the head dominates. Each way runs in separate processes; its memory
is the peak minus that before the pass.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from workload import arguments_of, experiences_of, median, peak_gib, report, write

from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs

WAYS = ("naive", "chunked")


def peak(way: str, vocabulary: int, answers: int, tokens: int) -> float:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.support.naive import padded_logprobs

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).train()
    experiences = experiences_of(1, answers, 16, tokens)
    sum(parameter.sum() for parameter in model.parameters()).backward()  # allocates the gradients
    before = peak_gib()
    if way == "naive":
        logprobs, _ = padded_logprobs(model, experiences)
    else:
        [batch] = micro_batches(experiences, max_tokens=2**20, aggregation="token_mean", packing="packed")
        logprobs, _ = answer_logprobs(model, batch, 1.0)
    logprobs.sum().backward()
    return peak_gib() - before


def main() -> None:
    arguments = arguments_of(__doc__, vocabulary=150_000, answers=8, tokens=256, rounds=3, one="")
    setting = (arguments.vocabulary, arguments.answers, arguments.tokens)
    if arguments.one:
        print(json.dumps(peak(arguments.one, *setting)))
        return
    peaks: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(arguments.rounds):
        for way in WAYS[:: 1 if turn % 2 else -1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            peaks[way].append(json.loads(done.stdout.splitlines()[-1]))
    base = median(peaks["naive"])
    report(
        f"{arguments.answers} answers of {arguments.tokens} tokens, vocabulary {arguments.vocabulary}; peak "
        f"GiB above the model, medians of {arguments.rounds}",
        ["way", "GiB", "of naive"],
        [[way, median(peaks[way]), median(peaks[way]) / base] for way in WAYS],
    )
    write(arguments.json, peaks)


if __name__ == "__main__":
    main()

"""Shared by the benchmarks: prompts and answers of given lengths, the machine's limit, tables."""

import argparse
import hashlib
import json
import random
import resource
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from herl.models.pretrained import PretrainedModel
from herl.testing import make_experience, make_rollout, make_task
from herl.types import Experience, Task

WORDS = ("otter", "river", "stone", "winter", "lantern", "quiet", "copper", "meadow", "signal", "bridge")


def arguments_of(
    description: str | None, model: str = "smollm2-135m-instruct", **options: object
) -> argparse.Namespace:
    """Parses --model, --json and one option per keyword, with the type of its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=model)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def endless(model: str, folder: Path) -> str:
    """Copies a model with an end token that is hardly ever sampled, so that all answers have full length."""
    source = Path(PretrainedModel(path=model).source())
    shutil.copytree(source, folder)
    rare = "<file_sep>" if "smollm2" in model else None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = PretrainedModel(path=model).tokenizer()
    rare = rare or str(tokenizer.convert_ids_to_tokens(tokenizer.vocab_size - 1))
    config["eos_token"] = rare
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            settings["eos_token_id"] = tokenizer.convert_tokens_to_ids(rare)
            (folder / name).write_text(json.dumps(settings))
    return str(folder)


def requests_of(count: int, words: int, seed: int = 0) -> list[str]:
    """Returns `count` different requests of about `words` words."""
    draw = random.Random(seed)
    return [f"Write a story about {' '.join(draw.choices(WORDS, k=words))}." for _ in range(count)]


def tasks_of(count: int, words: int) -> list[Task]:
    """Returns tasks whose criteria any text meets or misses by chance, so that groups have a signal."""
    weights = {"ing": 3.0, "the": 2.0, "ou": 1.0, "st": 1.0}
    return [make_task(weights, id=f"t{i}", request=text) for i, text in enumerate(requests_of(count, words))]


def reward_of(text: str) -> float:
    """Returns a number in [0, 1) that differs between answers, so that every group has a signal."""
    return hashlib.sha256(text.encode()).digest()[0] / 256


def experiences_of(
    groups: int, answers: int, context: int, lengths: Sequence[int] | int, vocabulary: int = 10_000
) -> list[Experience]:
    """Returns answers of random tokens, `answers` to each of `groups` contexts, cycling through `lengths`."""
    draw = random.Random(0)
    turns = [lengths] if isinstance(lengths, int) else list(lengths)
    found = []
    for group in range(groups):
        prompt_ids = [draw.randrange(3, vocabulary) for _ in range(context)]
        for index in range(answers):
            length = turns[len(found) % len(turns)]
            rollout = make_rollout(
                id=f"{group}/{index}",
                group_id=str(group),
                prompt_ids=prompt_ids,
                token_ids=[draw.randrange(3, vocabulary) for _ in range(length)],
                logprobs=[-1.0] * length,
            )
            found.append(make_experience(rollout, reward=0.5, advantage=draw.uniform(-1.0, 1.0)))
    return found


def gemm_gflops(
    size: int = 2048, seconds: float = 1.0, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Returns this device's current rate of matrix products, by default of a CPU in float32."""
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    at_once = 1 if device == "cpu" else 20  # so that a GPU does not wait for the next product
    for _ in range(at_once):
        matrix @ matrix
    synchronize()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(at_once):
            matrix @ matrix
        synchronize()
        count += at_once
    return 2 * size**3 * count / (time.perf_counter() - started) / 1e9


def synchronize() -> None:
    """Waits for the GPU, if there is one, so that clocks include its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    """Returns the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    print(title)
    for line in [list(columns), *cells]:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def write(path: Path | None, figures: Mapping[str, object]) -> None:
    """Writes the figures as JSON if a path is given."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")

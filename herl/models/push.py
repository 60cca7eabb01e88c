"""Uploads an exported model to the Hugging Face Hub.

The token is huggingface_hub's own: HF_TOKEN, or the one of `hf auth login`. herl never stores or shows it,
even if an answer of the Hub repeats it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from herl.errors import ConfigError

NETWORK_ERROR = cast(type[Exception], HfHubHTTPError.__bases__[0])
"""Base of the HTTP client's errors; the client is httpx or httpx2, by the version of huggingface_hub."""
REFUSALS = {
    401: "the token is not valid. Log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there. It needs write access, and you must be a member of the organization",
}


def check_push(repository: str) -> None:
    """Checks what can be checked before a model is loaded: the repository's name, and that there is a token.

    Raises:
        ConfigError: the name is not owner/name, there is no token, or the Hub is switched off.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"push: expected owner/name, got '{repository}' ({error})") from error
    if "/" not in repository:
        raise ConfigError(f"push: expected owner/name, got '{repository}', which has no owner")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("push: needs the network, which HF_HUB_OFFLINE=1 rules out")
    if get_token() is None:
        raise ConfigError(
            f"push: expected a Hugging Face token that may write to {repository}, got none. "
            "Log in with `hf auth login`, or set HF_TOKEN"
        )


def push(folder: Path, files: Collection[str], repository: str, *, private: bool) -> str:
    """Uploads files of a folder in one commit, and returns the repository's address.

    Args:
        folder: An exported model. It is left unchanged, even by an error.
        files: The files to upload, relative to the folder.
        repository: owner/name; created if needed.
        private: Whether to create it as a private one. An existing public one is then an error.

    Raises:
        ConfigError: the Hub refused, could not be reached, or the repository is public against `private`.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise ConfigError(
                f"push: {repository} is public; pass private=false to upload to it all the same. "
                f"The model is in {folder}"
            )
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Upload a model written by herl export",
        )
    except (NETWORK_ERROR, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(_reason(error).replace(str(get_token()), "***").split())
        raise ConfigError(f"push: {api.endpoint}/{repository}: {reason}. The model is in {folder}") from error
    return str(address)


def _reason(error: BaseException) -> str:
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # the upload of one of the files
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = "; ".join(filter(None, (error.server_message, REFUSALS.get(status))))
        return f"HTTP {status} {said}".rstrip(".")
    return f"{type(error).__name__}: {error}".rstrip(".")

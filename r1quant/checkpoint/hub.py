"""Models on the Hugging Face Hub: downloads what a checkpoint needs, into the Hub's own cache.

Files that are in the cache already are not downloaded again, an interrupted download goes on where it stopped as far
as huggingface_hub can, and its environment variables (HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME, HF_TOKEN) hold. It does
not know what is in the files.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from r1quant.checkpoint.safetensors import CARRIED, open_folder
from r1quant.errors import CheckpointError

WANTED = ("config.json", "*.safetensors", "model.safetensors.index.json", *CARRIED)
# The patterns match across slashes. Subfolders and "consolidated" files hold the weights a second time.
UNWANTED = ("*/*", "consolidated*")
LOGIN = "run 'hf auth login'"


def fetch(repo_id: str) -> Path:
    """The local folder that holds the model. Raises CheckpointError, whatever the reason that it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    except Exception as error:
        raise _refusal(repo_id, error) from None
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{repo_id} on the Hub has no safetensors weights",
            "name a repository that has them, or download a GGUF file and name that file",
        )
    return folder


def headers(repo_id: str) -> tuple[Path, list[tuple[str, str, tuple[int, ...]]] | None]:
    """config.json, and name, dtype and shape of every tensor: no weight is downloaded, only the headers of the files,
    and nothing if all is in the cache. None if no header can be had.

    Raises CheckpointError if there is no config.json, whatever the reason.
    """
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    try:
        config = Path(hf_hub_download(repo_id, "config.json"))
    except Exception as error:
        raise _refusal(repo_id, error) from None
    with suppress(CheckpointError):
        return config, [(i.name, i.dtype, i.shape) for i in open_folder(config.parent).tensors.values()]
    try:
        found = get_safetensors_metadata(repo_id).files_metadata.values()
    except Exception:
        return config, None
    return config, [(n, t.dtype, tuple(t.shape)) for file in found for n, t in file.tensors.items()]


def _refusal(repo_id: str, error: Exception) -> CheckpointError:
    """What to tell a user about an exception of huggingface_hub. The order matters: some kinds contain others."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return CheckpointError(f"{repo_id} is not a valid name on the Hub", "name a model as owner/name")
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{repo_id} is gated: its owner wants its terms accepted first",
            f"accept them at {constants.ENDPOINT}/{repo_id}, then {LOGIN}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"{repo_id} is neither a local folder nor a model on the Hub that you may read",
            f"check the spelling; if the model is private, {LOGIN}",
        )
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) and constants.is_offline_mode():
        return CheckpointError(
            f"{repo_id} is not wholly in the local cache, and HF_HUB_OFFLINE forbids to download it",
            "unset HF_HUB_OFFLINE, or name a local folder",
        )
    if isinstance(cause, HfHubHTTPError) and status in (401, 403):
        return CheckpointError(f"the Hub refuses access to {repo_id} (HTTP {status})", f"{LOGIN} with a valid token")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CheckpointError(
            f"the disk is full: {repo_id} does not fit into {constants.HF_HUB_CACHE}",
            "free space, or point HF_HOME to a larger disk; finished files are kept",
        )
    reason = f"HTTP {status}" if status else (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return CheckpointError(
        f"{repo_id} could not be downloaded from {constants.ENDPOINT}: {reason[:200]}",
        "check the network and try again, finished files are kept; or name a local folder",
    )


def card(repo_id: str) -> str | None:
    """The README.md of a model, cached or downloaded; None if it has none, or none can be had now."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, "README.md")).read_text("utf-8")
    except Exception:  # whatever the reason: what it says is then not known
        return None


def cached(repo_id: str, hashes: Mapping[str, str]) -> str | None:
    """The revision in the local cache whose weight files have these hashes, by file name; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    held = try_to_load_from_cache(repo_id, "config.json")
    if not isinstance(held, str) or not hashes:
        return None
    folder = Path(held).parent  # snapshots/REVISION; a file is a link to blobs/SHA256
    same = all((folder / name).resolve().name == digest for name, digest in hashes.items())
    return folder.name if same else None

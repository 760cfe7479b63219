"""Sends files to a repository on the Hugging Face Hub, only those that it does not have, and checks what arrived.

Contents are addressed by hash there: what was sent before an interruption is not sent again. The token is that of
HF_TOKEN or of `hf auth login`, and is never shown. It does not know what is in the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1quant.checkpoint.hub import LOGIN
from r1quant.errors import UploadError
from r1quant.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

ALONE = 1 << 20  # bytes from which a file is sent by itself, ahead of the commit
AGAIN = "run the same command again: files that arrived are not sent again"


@dataclass(frozen=True)
class Outgoing:
    """A file that is published: its path there, and its content or where that lies."""

    path: str
    source: Path | bytes
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Sent:
    """commit: its address; sent: the paths that were not there before; extra: files of the repository beside ours."""

    commit: str
    sent: tuple[str, ...]
    extra: tuple[str, ...]


def upload(
    repo: str, files: Sequence[Outgoing], private: bool, revision: str | None, message: str, progress: Progress
) -> Sent:
    """Creates the repository and the branch if they are not there, and makes one commit of what is missing.

    Raises UploadError if the Hub cannot be reached, refuses, or holds other bytes afterwards.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if token is None:
        raise UploadError("there is no token for the Hub", f"set HF_TOKEN, or {LOGIN}")
    with _explained(repo, token):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = _listed(api, repo, revision)
        missing = [file for file in files if not _same(there.get(file.path), file)]
        progress.begin(f"uploading to {repo}", sum(file.nbytes for file in missing))
        additions = [CommitOperationAdd(file.path, file.source) for file in missing]
        for file, addition in zip(missing, additions, strict=True):
            if file.nbytes >= ALONE:
                api.preupload_lfs_files(repo, [addition], revision=revision)
            progress.advance(file.nbytes, file.path)
        at = revision
        address = f"{api.endpoint}/{repo}/tree/{revision or 'main'}"
        if additions:
            commit = api.create_commit(repo, additions, commit_message=message, revision=revision)
            at, address = commit.oid, commit.commit_url
        arrived = _listed(api, repo, at)
    wrong = [file.path for file in files if not _same(arrived.get(file.path), file)]
    if wrong:
        raise UploadError(f"{repo} holds other bytes than were sent: {', '.join(wrong)}", AGAIN)
    extra = set(arrived) - {file.path for file in files} - {".gitattributes"}
    return Sent(address, tuple(file.path for file in missing), tuple(sorted(extra)))


def _listed(api: HfApi, repo: str, revision: str | None) -> dict[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same(there: RepoFile | None, file: Outgoing) -> bool:
    """Whether the Hub lists these bytes: by sha256 of large files, by git's hash of others."""
    if there is None or there.size != file.nbytes:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == file.sha256)
    content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


@contextmanager
def _explained(repo: str, token: str) -> Iterator[None]:
    """Turns whatever huggingface_hub raises into an UploadError, and keeps its own progress bars quiet."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except Exception as error:
        raise _refusal(repo, error, token) from None
    finally:
        if not quiet:
            enable_progress_bars()


def _refusal(repo: str, error: Exception, token: str) -> UploadError:
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RevisionNotFoundError

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        if isinstance(cause, Exception):
            chain.append(cause)
        else:
            break
    status = next((code for link in chain if (code := _status(link)) is not None), None)
    if isinstance(error, HFValidationError):
        return UploadError(f"{repo} is not a valid name on the Hub", "name a repository as owner/name, or a ./folder")
    if isinstance(error, OfflineModeIsEnabled):
        return UploadError("HF_HUB_OFFLINE forbids to upload", "unset HF_HUB_OFFLINE, or publish into a folder")
    if isinstance(error, RevisionNotFoundError):
        return UploadError(f"{repo} has no such revision", "name a branch with --revision")
    if status in (401, 403):
        return UploadError(
            f"the Hub refuses to write to {repo} (HTTP {status})", f"{LOGIN} with a token that may write"
        )
    last = chain[-1]
    reason = f"HTTP {status}" if status else (str(last).strip().splitlines() or [type(last).__name__])[0]
    file = next((str(link) for link in chain if str(link).startswith("Error while uploading")), "")
    explanation = " ".join(filter(None, (file.rstrip("."), reason))).replace(token, "***")
    return UploadError(f"{repo} could not be written to {constants.ENDPOINT}: {explanation[:200]}", AGAIN)


def _status(error: Exception) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None

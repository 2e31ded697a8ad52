"""Bases of the Hugging Face hub: from its cache where they are there, else downloaded.

Only what is used is downloaded, each network in one precision. The client's own variables count:
HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bs_ray.models.base import BaseNotFound
from bs_ray.models.layout import used_files

_MODEL_INDEX = "model_index.json"


def folder(repo: str, revision: str | None, *, fetch: bool = True) -> Path:
    """The snapshot of a repository's revision, by default that of `main`. Raises BaseNotFound."""
    found = cached(repo, revision)
    if found:
        return found
    if not fetch:
        raise BaseNotFound(f"base: got {repo}, which is neither a folder nor in the hub's cache")
    return download(repo, revision)


def cached(repo: str, revision: str | None) -> Path | None:
    """The snapshot in the cache; None where it lacks anything that is used."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repo, _MODEL_INDEX, revision=revision)
    if not isinstance(index, str):
        return None
    snapshot = Path(index).parent
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.glob("**/*.*")]
    try:
        used_files(json.loads(Path(index).read_text()), names, repo)
    except BaseNotFound:
        return None
    return snapshot


def kept() -> Iterator[str]:
    """org/name@commit of every snapshot in the cache that is a pipeline's."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    for index in sorted(place.glob(f"models--*/snapshots/*/{_MODEL_INDEX}")):
        repo = index.parts[-4].removeprefix("models--").replace("--", "/")
        yield f"{repo}@{index.parent.name}"


def download(repo: str, revision: str | None) -> Path:
    """The snapshot as the hub has it now; what is in the cache already is not fetched again.

    Raises BaseNotFound, which says what to do where it is gated, missing or out of reach.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        commit = api.model_info(repo, revision=revision).sha
        tree = api.list_repo_tree(repo, recursive=True, revision=commit)
        names = [entry.path for entry in tree if hasattr(entry, "size")]  # folders have none
        if _MODEL_INDEX not in names:
            raise BaseNotFound(
                f"base: got {repo}, which has no model_index.json; expected a repository in "
                "diffusers' layout. Download its .safetensors file where it has one, and name that"
            )
        file = api.hf_hub_download(repo, _MODEL_INDEX, revision=commit)
        wanted = used_files(json.loads(Path(file).read_text()), names, repo)
        return Path(api.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except BaseNotFound:
        raise
    except Exception as error:  # the client's own, and those of its HTTP library
        raise _explained(repo, revision, error) from error


def _explained(repo: str, revision: str | None, error: Any) -> BaseNotFound:
    from huggingface_hub import constants, errors

    login = "`hf auth login` or HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        problem = (
            f"which is gated, and this account has not been let in; expected access to it. Accept "
            f"its terms at {constants.ENDPOINT}/{repo}, then give a token with {login}"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        problem = (
            f"which is neither a folder here nor a repository that {constants.ENDPOINT} shows to "
            f"this account; expected one of them. Check the spelling; a private one needs {login}"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        problem = (
            f"which has no revision {revision}; expected a branch, a tag or a commit of it. Look "
            f"at {constants.ENDPOINT}/{repo}/commits/main"
        )
    elif isinstance(error, errors.HfHubHTTPError):
        problem = (
            f"for which {constants.ENDPOINT} answered {error.response.status_code}; expected its "
            f"files. Run again later; where the answer is 403, give a token with {login}"
        )
    else:
        problem = (
            f"which is neither a folder here nor in the hub's cache {constants.HF_HUB_CACHE}, and "
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}); expected one of "
            f"them. Where there is a network, run `bs-ray bases fetch {repo}`, then copy the cache"
        )
    at = f"@{revision}" if revision else ""
    return BaseNotFound(f"base: got {repo}{at}, {problem}")

"""Which files of the hub are to be fetched: a repository's listing, and the one model in it that a pattern finds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...roster.model_files import PART, matching_models, parts_missing, repository_folder
from .errors import PullError, gated, no_network

_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, and what its bytes are held against.

    sha256:   None where neither the hub tells it nor the roster pins it (files outside LFS).
    git_sha1: of a file outside LFS, git's hash of its bytes; None for others.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def digest(self) -> str | None:
        """The hash that is checked, as `hasher` gives it; None where there is none to check."""
        return self.sha256 or self.git_sha1

    def hasher(self) -> hashlib._Hash:
        """What is fed with the file's bytes to get `digest`. Source: git's objects, "blob SIZE" before the content."""
        if self.sha256 is None and self.git_sha1 is not None:
            return hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)
        return hashlib.sha256()


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository. revision: the commit that the files were listed at."""

    name: str
    revision: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True)
class Remedies:
    """How a person corrects what was asked of the hub: it stands in a roster, or on the command line."""

    repo: str = "Correct `repo` in the roster"
    revision: str = "Correct `revision` in the roster, or leave it out"
    pattern: str = "Correct `pattern` in the roster"
    narrower: str = "Narrow `pattern` in the roster so that it finds one"
    other: str = "choose another by `pattern` in the roster"
    whole: str = "Write `repo` and `pattern` in place of `mask_of`: then coe pull fetches the whole model"
    again: str = "pull again"


ROSTER: Final = Remedies()


@dataclass(frozen=True)
class WantedModel:
    """A model that a specialist, or the parent, is to have: the one that `pattern` finds in a repository.

    revision: None for the newest. sha256: of its files in order, where the roster pins them.
    """

    name: str
    repo: str
    pattern: str
    revision: str | None = None
    sha256: tuple[str, ...] = ()


EVERYTHING: Final = "*.gguf"  # the pattern of an address that names none
HUB: Final = "hf:"  # what a model on the hub begins with on the command line
_ADDRESS: Final = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<pattern>.+))?")
COMMAND_LINE: Final = Remedies(
    "Correct the repository behind hf:",
    "Correct the revision behind @, or leave it out",
    "Correct what stands behind the repository",
    "Say which behind the repository: hf:OWNER/REPO/FILE.gguf, or a pattern that finds one, hf:OWNER/REPO/*Q4_K_M*",
    "name another: hf:OWNER/REPO/FILE.gguf",
    "Fetch the model first (coe pull, with its `repo` in a roster), then give the file",
    "give the command again",
)


def hub_address(text: str) -> WantedModel:
    """The model that `hf:OWNER/REPO[@REVISION][/FILE]` names; FILE may be a pattern. Raises PullError."""
    match = _ADDRESS.fullmatch(text.removeprefix(HUB).strip("/"))
    if not match:
        raise PullError(f"{text} names no repository of the hub.", "Write hf:OWNER/REPO or hf:OWNER/REPO/FILE.gguf.")
    return WantedModel(text, match["repo"], match["pattern"] or EVERYTHING, match["revision"])


@dataclass(frozen=True)
class PlannedModel:
    """A model to be fetched: the specialists that wait for it, and its files (several of a split one) in order."""

    names: tuple[str, ...]
    repo: str
    revision: str
    folder: Path
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class DownloadPlan:
    """The models to be fetched, and those that cannot be: their names, and why."""

    models: tuple[PlannedModel, ...]
    refused: tuple[tuple[str, PullError], ...]


def plan_downloads(
    wanted: Sequence[WantedModel],
    found: Mapping[tuple[str, str | None], Repository | PullError],
    models_dir: Path,
) -> DownloadPlan:
    """Choose the files of each wanted model. Names that want the same files share one download.

    found: what asking the hub for each repository at a revision gave.
    """
    models: dict[tuple[str, tuple[HubFile, ...]], PlannedModel] = {}
    refused: list[tuple[str, PullError]] = []
    for one in wanted:
        repository = found[one.repo, one.revision]
        try:
            if isinstance(repository, PullError):
                raise repository
            files = pinned(choose_files(repository, one.pattern), one)
        except PullError as error:
            refused.append((one.name, error))
            continue
        before = models.get((one.repo, files))
        names = (*before.names, one.name) if before else (one.name,)
        folder = repository_folder(models_dir, one.repo)
        models[one.repo, files] = PlannedModel(names, one.repo, repository.revision, folder, files)
    return DownloadPlan(tuple(models.values()), tuple(refused))


def listed_models(repository: Repository, pattern: str, remedies: Remedies = ROSTER) -> tuple[tuple[HubFile, ...], ...]:
    """The files of every model that the pattern finds, in order; of a split one those parts that are there.

    Raises PullError when it finds none.
    """
    # A repository's names become paths here: a name that leads out of its folder is never fetched.
    inside = {file.path: file for file in repository.files if _is_inside(file.path)}
    models = matching_models(inside, pattern)
    if not models:
        ggufs = [name for name in inside if name.lower().endswith(".gguf")]
        there = f"Its GGUF files: {_listed(ggufs)}." if ggufs else "It holds no GGUF file at all."
        remedy = remedies.pattern if ggufs else remedies.repo
        raise PullError(f"Nothing in {repository.name} matches {pattern!r}. {there}", f"{remedy}.")
    return tuple(tuple(inside[name] for name in model) for model in models)


def choose_files(repository: Repository, pattern: str, remedies: Remedies = ROSTER) -> tuple[HubFile, ...]:
    """The files of the one model that the pattern finds, in order. Raises PullError when it finds none or several."""
    models = listed_models(repository, pattern, remedies)
    if len(models) > 1:
        first = [model[0].path for model in models]
        raise PullError(
            f"{pattern!r} finds {len(models)} models in {repository.name}: {_listed(first)}.",
            f"{remedies.narrower}.",
        )
    missing = parts_missing([file.path for file in models[0]])
    if missing:
        raise PullError(
            f"The model {models[0][0].path} in {repository.name} lacks part {', '.join(map(str, missing))}.",
            f"Wait until its upload is complete, or {remedies.other}.",
        )
    return models[0]


def pattern_of(files: Sequence[HubFile]) -> str:
    """What finds a model of a repository, all its parts, where it stands behind the repository's name."""
    return PART.sub(r"-*-of-\g<parts>.gguf", files[0].path)


def pinned(files: tuple[HubFile, ...], wanted: WantedModel) -> tuple[HubFile, ...]:
    """The files with the hashes that the roster pins. Raises PullError where the hub lists others."""
    if not wanted.sha256:
        return files
    if len(wanted.sha256) != len(files):
        raise PullError(
            f"The roster pins {len(wanted.sha256)} files by sha256, and the model has {len(files)}.",
            "Write one `sha256` for each part, in order.",
        )
    for file, pin in zip(files, wanted.sha256, strict=True):
        if file.sha256 is not None and file.sha256 != pin:
            raise PullError(
                f"The hub lists {file.path} of {wanted.repo} with the SHA-256 {file.sha256}, the roster pins {pin}.",
                "The file was changed there, or the pin is another file's: see to both; "
                "`revision` in the roster names an older commit.",
            )
    return tuple(replace(file, sha256=pin) for file, pin in zip(files, wanted.sha256, strict=True))


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def look_up(
    endpoint: str, repo: str, token: str | None, revision: str | None = None, remedies: Remedies = ROSTER
) -> Repository | PullError:
    """Ask the hub for a repository's files; an error is given back, so that other repositories go on.

    revision: None for the newest.
    """
    try:
        info = HfApi(endpoint=endpoint, token=token).model_info(repo, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        return PullError(f"The hub has no revision {revision} of {repo}.", f"{remedies.revision}.")
    except GatedRepoError:
        return gated(endpoint, repo)
    except RepositoryNotFoundError:
        # The hub says the same of a private repository to a token that may not see it.
        return PullError(
            f"The hub has no repository {repo}, or it is private.",
            f"{remedies.repo}, or give a token that may read it (--token or HF_TOKEN).",
        )
    except HFValidationError as error:
        return PullError(f"{repo} is no repository's name: {error}.", f"{remedies.repo}.")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            return gated(endpoint, repo)
        return PullError(f"The hub at {endpoint} answered {status} for {repo}.", "Try again later.")
    except Exception as error:  # the HTTP library below, and so what it raises, differs between hub versions
        return no_network(endpoint, error, remedies.again)
    files = tuple(
        HubFile(
            file.rfilename,
            file.size,
            file.lfs.sha256 if file.lfs else None,
            None if file.lfs or not _GIT_SHA1.fullmatch(file.blob_id or "") else file.blob_id,
        )
        for file in info.siblings or ()
        if file.size is not None
    )
    return Repository(repo, info.sha or "main", files)

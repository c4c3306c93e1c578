"""Which files of the hub are to be fetched: a repository's listing, and the one model in it that a pattern finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from ...roster.model_files import matching_models, parts_missing, repository_folder
from .errors import PullError, gated, no_network


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. sha256: None where the hub does not tell it (small files outside LFS)."""

    path: str
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository. revision: the commit that the files were listed at."""

    name: str
    revision: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True)
class WantedModel:
    """A model that a specialist, or the parent, is to have: the one that `pattern` finds in a repository."""

    name: str
    repo: str
    pattern: str


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
    wanted: Sequence[WantedModel], found: Mapping[str, Repository | PullError], models_dir: Path
) -> DownloadPlan:
    """Choose the files of each wanted model. Names that want the same files share one download.

    found: what asking the hub for each repository gave.
    """
    models: dict[tuple[str, tuple[HubFile, ...]], PlannedModel] = {}
    refused: list[tuple[str, PullError]] = []
    for one in wanted:
        repository = found[one.repo]
        try:
            if isinstance(repository, PullError):
                raise repository
            files = choose_files(repository, one.pattern)
        except PullError as error:
            refused.append((one.name, error))
            continue
        before = models.get((one.repo, files))
        names = (*before.names, one.name) if before else (one.name,)
        folder = repository_folder(models_dir, one.repo)
        models[one.repo, files] = PlannedModel(names, one.repo, repository.revision, folder, files)
    return DownloadPlan(tuple(models.values()), tuple(refused))


def choose_files(repository: Repository, pattern: str) -> tuple[HubFile, ...]:
    """The files of the one model that the pattern finds, in order. Raises PullError when it finds none or several."""
    # A repository's names become paths here: a name that leads out of its folder is never fetched.
    inside = {file.path: file for file in repository.files if _is_inside(file.path)}
    models = matching_models(inside, pattern)
    if not models:
        ggufs = [name for name in inside if name.lower().endswith(".gguf")]
        there = f"Its GGUF files: {_listed(ggufs)}." if ggufs else "It holds no GGUF file at all."
        remedy = "Correct `pattern` in the roster." if ggufs else "Correct `repo` in the roster."
        raise PullError(f"Nothing in {repository.name} matches {pattern!r}. {there}", remedy)
    if len(models) > 1:
        first = [model[0] for model in models]
        raise PullError(
            f"{pattern!r} finds {len(models)} models in {repository.name}: {_listed(first)}.",
            "Narrow `pattern` in the roster so that it finds one.",
        )
    missing = parts_missing(models[0])
    if missing:
        raise PullError(
            f"The model {models[0][0]} in {repository.name} lacks part {', '.join(map(str, missing))}.",
            "Wait until its upload is complete, or choose another by `pattern` in the roster.",
        )
    return tuple(inside[name] for name in models[0])


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def look_up(endpoint: str, repo: str, token: str | None) -> Repository | PullError:
    """Ask the hub for a repository's files; an error is given back, so that other repositories go on."""
    try:
        info = HfApi(endpoint=endpoint, token=token).model_info(repo, files_metadata=True)
    except GatedRepoError:
        return gated(endpoint, repo)
    except RepositoryNotFoundError:
        # The hub says the same of a private repository to a token that may not see it.
        return PullError(
            f"The hub has no repository {repo}, or it is private.",
            "Correct `repo` in the roster, or give a token that may read it (--token or HF_TOKEN).",
        )
    except HFValidationError as error:
        return PullError(f"{repo} is no repository's name: {error}.", "Correct `repo` in the roster.")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            return gated(endpoint, repo)
        return PullError(f"The hub at {endpoint} answered {status} for {repo}.", "Try again later.")
    except Exception as error:  # the HTTP library below, and so what it raises, differs between hub versions
        return no_network(endpoint, error)
    files = tuple(
        HubFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
        if file.size is not None
    )
    return Repository(repo, info.sha or "main", files)

"""`coe pull`: fetch specialists' models from the model hub into the models folder.

huggingface_hub finds what a repository holds. The bytes are fetched here, since its own download (2.4.0) throws the
unfinished part away when it is interrupted, and a model has many gigabytes: here the part stays, in a hidden folder
beside the model, and the next pull goes on at its end. A file takes its place only when it is whole and, where the
hub tells its SHA-256, when that agrees; until then whatever stood there stays.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath

import httpx
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from coe.engine.units import size_text

from ..roster.model_files import matching_models, parts_missing, repository_folder
from ..roster.models import ModelSource, Roster

PARENT = "parent"  # what the roster's parent is called on the command line

_HUB = "https://huggingface.co"
_PARTIAL = ".partial"  # hidden, so that no roster pattern finds what is in it
_VERIFIED = ".verified"
_CHUNK_BYTES = 2**20
_TIMEOUT = httpx.Timeout(30.0, connect=15.0)
_RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0)  # between attempts that brought nothing new
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PullError(Exception):
    """A model cannot be fetched; `remedy` says what a person can do about it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message} {remedy}")
        self.message = message
        self.remedy = remedy


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
class Want:
    """Somebody's wish for a model: the one that `pattern` finds in a repository."""

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
class Plan:
    """What is to be fetched, and which wishes cannot be met: the name, and why."""

    models: tuple[PlannedModel, ...]
    refused: tuple[tuple[str, PullError], ...]


def plan_downloads(wants: Sequence[Want], found: Mapping[str, Repository | PullError], models_dir: Path) -> Plan:
    """Choose the files of each wish. Wishes for the same files become one model.

    found: what asking the hub for each repository gave.
    """
    models: dict[tuple[str, tuple[HubFile, ...]], PlannedModel] = {}
    refused: list[tuple[str, PullError]] = []
    for want in wants:
        repository = found[want.repo]
        try:
            if isinstance(repository, PullError):
                raise repository
            files = choose_files(repository, want.pattern)
        except PullError as error:
            refused.append((want.name, error))
            continue
        before = models.get((want.repo, files))
        names = (*before.names, want.name) if before else (want.name,)
        folder = repository_folder(models_dir, want.repo)
        models[want.repo, files] = PlannedModel(names, want.repo, repository.revision, folder, files)
    return Plan(tuple(models.values()), tuple(refused))


def choose_files(repository: Repository, pattern: str) -> tuple[HubFile, ...]:
    """The files of the one model that the pattern finds, in order. Raises PullError when it finds none or several."""
    # A repository's names become paths here; one that leads out of its folder is nothing we fetch.
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


def pull(
    roster: Roster,
    names: Sequence[str],
    *,
    yes: bool,
    token: str | None,
    console: Console,
    confirm: Callable[[str], bool],
) -> int:
    """Fetch the models of the named specialists (`parent` for the parent; no name: every specialist).

    Says what it will fetch and how that fits on the disk, and asks by `confirm` before more than one model, unless
    `yes`. token: of the hub; None for the one that huggingface_hub has saved. HF_ENDPOINT names another hub.
    Gives the exit status: 0 when everything asked for is there. What can be fetched is, even when something else
    cannot.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    wants, refused = _wants(roster, names, console)
    found = {repo: _look_up(endpoint, repo, token) for repo in dict.fromkeys(want.repo for want in wants)}
    plan = plan_downloads(wants, found, roster.models_path)
    for name, error in (*refused, *plan.refused):
        _say(console, f"{name}: {error}", "red")
    failed = bool(refused or plan.refused)

    try:
        to_fetch = [model for model in plan.models if not _is_complete(model, console)]
        if not to_fetch:
            return int(failed)
        needed = sum(_lacking_bytes(model) for model in to_fetch)
        free = _free_bytes(roster.models_path)
        for model in to_fetch:
            _say(console, f"{', '.join(model.names)}: {model.repo}")
            for file in model.files:
                _say(console, f"  {size_text(file.size_bytes):>10}  {file.path}")
        _say(console, f"To download: {size_text(needed)}. Free in {roster.models_path}: {size_text(free)}.")
        if needed > free:
            raise _no_room(needed, roster.models_path)
        if len(to_fetch) > 1 and not yes and not confirm(f"Download {len(to_fetch)} models, {size_text(needed)}?"):
            return 1
    except PullError as error:
        _say(console, str(error), "red")
        return 1

    headers = {"accept-encoding": "identity"}  # sizes and ranges are those of the file itself
    if bearer := token or get_token():
        headers["authorization"] = f"Bearer {bearer}"
    with httpx.Client(headers=headers, timeout=_TIMEOUT, follow_redirects=True) as client, _bars(console) as bars:
        for model in to_fetch:
            try:
                # All parts first: a split model must not end as a mixture of two versions.
                parts = [(file, _fetch(client, endpoint, model, file, bars)) for file in model.files]
                for file, part in parts:
                    if part:
                        _place(model, file, part)
            except PullError as error:
                _say(console, f"{', '.join(model.names)}: {error}", "red")
                failed = True
            else:
                _say(console, f"{', '.join(model.names)}: {model.folder / model.files[0].path}")
    return int(failed)


def _wants(roster: Roster, names: Sequence[str], console: Console) -> tuple[list[Want], list[tuple[str, PullError]]]:
    sources: dict[str, ModelSource] = {}
    refused: list[tuple[str, PullError]] = []
    for name in names or roster.names:
        specialist = roster.find(name)
        if specialist and (specialist.build or specialist.mask):
            # What has to be there before it can be built, or cut.
            key = specialist.name if specialist.build and specialist.build.parent else PARENT
            if (parent := roster.parent_of(specialist)) is not None:
                sources[key] = parent
        elif specialist:
            sources[specialist.name] = specialist
        elif name == PARENT and roster.parent:
            sources[PARENT] = roster.parent
        elif name == PARENT:
            refused.append((name, PullError("The roster names no parent.", "Add `parent` to it.")))
        else:
            known = ", ".join([*roster.names, *([PARENT] if roster.parent else [])])
            refused.append((name, PullError("The roster has no such specialist.", f"It has: {known}.")))
    wants = []
    for name, source in sources.items():
        if source.repo is not None:
            wants.append(Want(name, source.repo, source.pattern or "*.gguf"))
        elif source.package is not None:
            _say(console, f"{name}: nothing to pull, it comes with the package {source.package} (pip install).")
        else:
            _say(console, f"{name}: nothing to pull, it is the file {source.file} of your own.")
    return wants, refused


def _look_up(endpoint: str, repo: str, token: str | None) -> Repository | PullError:
    try:
        info = HfApi(endpoint=endpoint, token=token).model_info(repo, files_metadata=True)
    except GatedRepoError:
        return _gated(endpoint, repo)
    except RepositoryNotFoundError:
        # The hub says the same of a private repository to those who may not see it.
        return PullError(
            f"The hub has no repository {repo}, or it is private.",
            "Correct `repo` in the roster, or give a token that may read it (--token or HF_TOKEN).",
        )
    except HFValidationError as error:
        return PullError(f"{repo} is no repository's name: {error}.", "Correct `repo` in the roster.")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            return _gated(endpoint, repo)
        return PullError(f"The hub at {endpoint} answered {status} for {repo}.", "Try again later.")
    except Exception as error:  # the HTTP library below, and so what it raises, differs between hub versions
        return _no_network(endpoint, error)
    files = tuple(
        HubFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
        if file.size is not None
    )
    return Repository(repo, info.sha or "main", files)


def _fetch(client: httpx.Client, endpoint: str, model: PlannedModel, file: HubFile, bars: Progress) -> Path | None:
    """Bring one file into its partial file, going on with what is there; None when the file is in its place already.

    Raises PullError. What has come by then stays, unless it is not what the hub lists.
    """
    if _is_verified(model.folder, file):
        return None
    part = _part(model, file)
    bar = bars.add_task(PurePosixPath(file.path).name, total=file.size_bytes)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with _opened(part) as out:
            digest = hashlib.sha256()
            while chunk := out.read(_CHUNK_BYTES):
                digest.update(chunk)
            if out.tell() > file.size_bytes:
                digest = _restart(out)
            bars.update(bar, completed=out.tell())
            url = hf_hub_url(model.repo, file.path, revision=model.revision, endpoint=endpoint)
            waits = iter(_RETRY_WAITS_S)
            while (before := out.tell()) < file.size_bytes:
                cut: Exception = httpx.RemoteProtocolError("the file ended early")
                try:
                    with client.stream("GET", url, headers={"range": f"bytes={before}-"} if before else {}) as response:
                        if before and response.status_code in (200, 416):
                            digest = _restart(out)  # the server cannot go on in the middle
                        if response.status_code != 416 or not before:
                            _check_status(response, endpoint, model.repo, file.path)
                            for chunk in response.iter_bytes():  # as it comes: gathered chunks are lost in a cut
                                _write(out, chunk)
                                digest.update(chunk)
                                bars.update(bar, completed=out.tell())
                                if out.tell() > file.size_bytes:
                                    break
                except httpx.RequestError as error:
                    cut = error
                if out.tell() > before:
                    waits = iter(_RETRY_WAITS_S)
                    continue
                wait_s = next(waits, None)
                if wait_s is None:
                    raise _no_network(endpoint, cut)
                time.sleep(wait_s)
            if out.tell() != file.size_bytes or (file.sha256 and digest.hexdigest() != file.sha256):
                part.unlink()  # going on with it could only fail again
                raise PullError(
                    f"What came for {file.path} is not what {model.repo} lists: its SHA-256 or its length differs.",
                    "It was thrown away; pull again. Behind a proxy or a mirror, see whether that alters files.",
                )
            os.fsync(out.fileno())
        return part
    except OSError as error:
        raise _disk_error(error, part, max(1, file.size_bytes - _length(part))) from error
    finally:
        bars.update(bar, visible=False)


def _place(model: PlannedModel, file: HubFile, part: Path) -> None:
    target = model.folder / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        _note_verified(model.folder, file)
        part.parent.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise _disk_error(error, target, file.size_bytes) from error


def _part(model: PlannedModel, file: HubFile) -> Path:
    # Named by its content: what is left of another version of the file is never gone on with.
    return model.folder / _PARTIAL / f"{(file.sha256 or model.revision)[:16]}-{PurePosixPath(file.path).name}"


@contextmanager
def _opened(part: Path) -> Iterator[FileIO]:
    """The partial file, locked against another pull. Unbuffered, so that closing it writes nothing more."""
    with FileIO(part, "a+") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError("Another pull is fetching this file.", "Wait until it is done.") from None
        out.seek(0)
        yield out


def _write(out: FileIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[out.write(left) or 0 :]


def _restart(out: FileIO) -> hashlib._Hash:
    out.truncate(0)
    out.seek(0)
    return hashlib.sha256()


def _check_status(response: httpx.Response, endpoint: str, repo: str, path: str) -> None:
    status = response.status_code
    if status < 300:
        return
    if status in (401, 403):
        raise _gated(endpoint, repo)
    if status == 404:
        raise PullError(f"The hub lists {path} in {repo} but does not have it.", "Pull again in a while.")
    if status == 429 or status >= 500:
        raise httpx.RemoteProtocolError(f"status {status}", request=response.request)  # tried again, like a cut line
    raise PullError(f"The hub at {endpoint} answered {status} for {path} of {repo}.", "Pull again in a while.")


def _is_complete(model: PlannedModel, console: Console) -> bool:
    if not all(_is_verified(model.folder, file) for file in model.files):
        return False
    _say(console, f"{', '.join(model.names)}: already there, {model.folder / model.files[0].path}")
    return True


def _lacking_bytes(model: PlannedModel) -> int:
    return sum(
        max(0, file.size_bytes - _length(_part(model, file)))
        for file in model.files
        if not _is_verified(model.folder, file)
    )


def _is_verified(folder: Path, file: HubFile) -> bool:
    """Whether the file in its place is the hub's. Hashing it is left out while it is as it was when that was known."""
    target = folder / file.path
    if _length(target) != file.size_bytes or not target.is_file():
        return False
    if file.sha256 is None:
        return True
    note = _note(folder, file)
    if note.is_file() and note.read_text(encoding="utf-8") == _stamp(target, file.sha256):
        return True
    with target.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
            return False
    _note_verified(folder, file)
    return True


def _note_verified(folder: Path, file: HubFile) -> None:
    if file.sha256 is None:
        return
    note = _note(folder, file)
    with suppress(OSError):  # it only saves time; a models folder that cannot be written to is fine here
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(_stamp(folder / file.path, file.sha256), encoding="utf-8")


def _note(folder: Path, file: HubFile) -> Path:
    return folder / _VERIFIED / (file.path.replace("/", "--") + ".sha256")


def _stamp(target: Path, sha256: str) -> str:
    stat = target.stat()
    return f"{sha256} {stat.st_size} {stat.st_mtime_ns}\n"


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return shutil.disk_usage(there).free


def _gated(endpoint: str, repo: str) -> PullError:
    return PullError(
        f"The hub does not let you download {repo}: it is gated, or the token may not read it.",
        f"Accept its licence at {endpoint}/{repo}, then give a token of that account (--token or HF_TOKEN).",
    )


def _no_network(endpoint: str, error: Exception) -> PullError:
    return PullError(
        f"The hub at {endpoint} cannot be reached: {error or type(error).__name__}.",
        "See to the network, a proxy (HTTPS_PROXY) or HF_ENDPOINT, and pull again: it goes on where it stopped.",
    )


def _no_room(needed_bytes: int, folder: Path) -> PullError:
    free = _free_bytes(folder)
    return PullError(
        f"The disk of {folder} has no room: {size_text(needed_bytes)} ({needed_bytes} bytes) are needed, "
        f"{size_text(free)} ({free} bytes) are free.",
        "Make room, or choose another `models_dir` in the roster, and pull again: it goes on where it stopped.",
    )


def _disk_error(error: OSError, path: Path, needed_bytes: int) -> PullError:
    if error.errno in _NO_ROOM:
        return _no_room(needed_bytes, path.parent)
    return PullError(
        f"{path} cannot be written: {error.strerror or error}.",
        "See to the permissions of the folder, or choose another `models_dir` in the roster.",
    )


def _bars(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

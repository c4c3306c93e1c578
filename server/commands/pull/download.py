"""Fetching the files of a model: resumable HTTP downloads (range requests), verified by SHA-256.

huggingface_hub finds what a repository holds. The bytes are fetched here, since its own download (2.4.0) throws the
unfinished part away when it is interrupted, and a model has many gigabytes: here the part stays, in a hidden folder
beside the model, and the next pull goes on at its end. A file takes its place only when it is whole and, where the
hub tells its SHA-256, when that agrees; until then the file that stood there stays.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Final

import httpx
from huggingface_hub import get_token, hf_hub_url
from rich.progress import Progress

from coe.engine.files import cached_of

from .errors import PullError, disk_error, gated, no_network
from .files import HubFile, PlannedModel

_PARTIAL: Final = ".partial"  # hidden, so that no roster pattern finds what is in it
_VERIFIED: Final = ".verified"
_CHUNK_BYTES: Final = 2**20
RETRY_WAITS_S: Final = (1.0, 2.0, 4.0, 8.0)  # between attempts that brought next to nothing
# A server that trickles keeps a read's time limit from ever passing: less than that within so long is no download.
_WINDOW_S: Final = 60.0
LEAST_BYTES: Final = 64 * 1024


_HUB: Final = "https://huggingface.co"
_TIMEOUT: Final = httpx.Timeout(30.0, connect=15.0)


def hub_endpoint() -> str:
    """The hub's address: HF_ENDPOINT's, else that of Hugging Face."""
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def hub_client(token: str | None) -> httpx.Client:
    """A client for the hub's files. token: None for the one that huggingface_hub has saved.

    Where the hub redirects to another host, httpx leaves the token out.
    """
    headers = {"accept-encoding": "identity"}  # sizes and ranges are those of the file itself
    if bearer := token or get_token():
        headers["authorization"] = f"Bearer {bearer}"
    return httpx.Client(headers=headers, timeout=_TIMEOUT, follow_redirects=True)


class Pace:
    """Whether a download gets on: at least LEAST_BYTES in every _WINDOW_S. Times are of a monotonic clock."""

    fault: Final = f"less than {LEAST_BYTES // 1024} KiB came within {_WINDOW_S:.0f} s"

    def __init__(self, now: float) -> None:
        self._begun, self._n_bytes = now, 0

    def keeps_up(self, now: float, n_bytes: int) -> bool:
        """Note bytes that came; False when they are too few."""
        self._n_bytes += n_bytes
        if now - self._begun < _WINDOW_S:
            return True
        enough = self._n_bytes >= LEAST_BYTES
        self._begun, self._n_bytes = now, 0
        return enough


def fetch_model(client: httpx.Client, endpoint: str, model: PlannedModel, bars: Progress) -> None:
    """Bring all files of a model into their places. Raises PullError; partial files stay for the next pull.

    All parts are fetched before the first takes its place: a split model must not end as a mixture of two versions.
    """
    parts = [(file, _fetch(client, endpoint, model, file, bars)) for file in model.files]
    for file, part in parts:
        if part:
            _place(model, file, part)


def is_complete(model: PlannedModel) -> bool:
    """Whether all files of a model are in their places, and are the hub's."""
    return all(_is_verified(model.folder, file) for file in model.files)


def missing_bytes(model: PlannedModel) -> int:
    """Bytes that are still to be fetched of a model."""
    return sum(
        max(0, file.size_bytes - _length(_part(model, file)))
        for file in model.files
        if not _is_verified(model.folder, file)
    )


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not be there yet."""
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return shutil.disk_usage(there).free


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
            digest = file.hasher()
            while chunk := out.read(_CHUNK_BYTES):
                digest.update(chunk)
            if out.tell() > file.size_bytes:
                digest = _restart(out, file)
            bars.update(bar, completed=out.tell())
            url = hf_hub_url(model.repo, file.path, revision=model.revision, endpoint=endpoint)
            waits = iter(RETRY_WAITS_S)
            while (before := out.tell()) < file.size_bytes:
                cut: Exception = httpx.RemoteProtocolError("the file ended early")
                try:
                    with client.stream("GET", url, headers={"range": f"bytes={before}-"} if before else {}) as response:
                        if before and response.status_code in (200, 416):
                            digest = _restart(out, file)  # the server cannot go on in the middle
                        if response.status_code != 416 or not before:
                            check_status(response, endpoint, model.repo, file.path)
                            pace = Pace(time.monotonic())
                            for chunk in response.iter_bytes():  # as it comes: gathered chunks are lost in a cut
                                if not pace.keeps_up(time.monotonic(), len(chunk)):
                                    raise httpx.ReadTimeout(pace.fault)
                                _write(out, chunk)
                                digest.update(chunk)
                                bars.update(bar, completed=out.tell())
                                if out.tell() > file.size_bytes:
                                    break
                except httpx.RequestError as error:
                    cut = error
                if out.tell() - before >= min(LEAST_BYTES, file.size_bytes - before):
                    waits = iter(RETRY_WAITS_S)
                    continue
                wait_s = next(waits, None)
                if wait_s is None:
                    raise no_network(endpoint, cut)
                time.sleep(wait_s)
            if out.tell() != file.size_bytes or (file.digest and digest.hexdigest() != file.digest):
                part.unlink()  # going on with it could only fail again
                raise PullError(
                    f"What came for {file.path} is not what {model.repo} lists, or the roster pins: "
                    "its SHA-256 (outside LFS git's SHA-1) or its length differs.",
                    "It was thrown away; pull again. Behind a proxy or a mirror, see whether that alters files.",
                )
            os.fsync(out.fileno())
        return part
    except OSError as error:
        needed = max(1, file.size_bytes - _length(part))
        raise disk_error(error, part, needed, free_bytes(part.parent)) from error
    finally:
        bars.update(bar, visible=False)


def _place(model: PlannedModel, file: HubFile, part: Path) -> None:
    target = model.folder / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        _remember_verified(model.folder, file)
        if (known := file.sha256) is not None:
            # A parent's identity and a pin ask for it: else gigabytes would be read once more.
            cached_of((target,), "sha256", lambda: known)
        part.parent.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise disk_error(error, target, file.size_bytes, free_bytes(target.parent)) from error


def _part(model: PlannedModel, file: HubFile) -> Path:
    # Named by its content: what is left of another version of the file is never gone on with.
    return model.folder / _PARTIAL / f"{(file.digest or model.revision)[:16]}-{PurePosixPath(file.path).name}"


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


def _restart(out: FileIO, file: HubFile) -> hashlib._Hash:
    out.truncate(0)
    out.seek(0)
    return file.hasher()


def check_status(response: httpx.Response, endpoint: str, repo: str, path: str) -> None:
    """Raises PullError for a refusal, httpx.RemoteProtocolError for what is worth another attempt."""
    status = response.status_code
    if status < 300:
        return
    if status in (401, 403):
        raise gated(endpoint, repo)
    if status == 404:
        raise PullError(f"The hub lists {path} in {repo} but does not have it.", "Pull again in a while.")
    if status == 429 or status >= 500:
        raise httpx.RemoteProtocolError(f"status {status}", request=response.request)  # tried again, like a cut line
    raise PullError(f"The hub at {endpoint} answered {status} for {path} of {repo}.", "Pull again in a while.")


def _is_verified(folder: Path, file: HubFile) -> bool:
    """Whether the file in its place is the hub's. Hashing it is left out while it is as it was when that was known."""
    target = folder / file.path
    if _length(target) != file.size_bytes or not target.is_file():
        return False
    if file.digest is None:
        return True
    record = _record_path(folder, file)
    if record.is_file() and record.read_text(encoding="utf-8") == _stamp(target, file.digest):
        return True
    digest = file.hasher()
    with target.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.digest:
        return False
    _remember_verified(folder, file)
    return True


def _remember_verified(folder: Path, file: HubFile) -> None:
    if file.digest is None:
        return
    record = _record_path(folder, file)
    with suppress(OSError):  # it only saves time; a models folder that cannot be written to is fine here
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(_stamp(folder / file.path, file.digest), encoding="utf-8")


def _record_path(folder: Path, file: HubFile) -> Path:
    return folder / _VERIFIED / (file.path.replace("/", "--") + ".sha256")


def _stamp(target: Path, digest: str) -> str:
    stat = target.stat()
    return f"{digest} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}\n"


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

"""Single ranges of a model on the hub (HTTP range requests), in sparse local files.

A file here is as long as the one on the hub, and what was fetched lies at its own offset, so that whatever reads a GGUF
reads it; the rest is a hole that takes no room. A small record beside it says what has come: the next try goes on with
that. The hub's SHA-256 of a file cannot be held against ranges of it: length, commit and ETag are.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
from huggingface_hub import hf_hub_url

from coe.engine.files import read_bounded, written_beside
from coe.engine.gguf.check import header_end
from coe.engine.units import size_text

from . import download
from .connections import Connections
from .errors import PullError, StoppedError, disk_error, no_network
from .files import COMMAND_LINE, HubFile, PlannedModel, Remedies
from .lanes import completed
from .pruning import mark_used

Span = tuple[int, int]  # from, to (not with it), in bytes of a file

# How far a file is fetched to find the end of its header, which says nowhere how long it is: with a vocabulary of
# 262,144 and its merges some 16 MiB, without a vocabulary some 100 KiB.
HEADER_STEPS: Final = tuple(size * 2**20 for size in (1, 4, 8, 16, 32, 64))
_GAP_BYTES: Final = 128 * 1024  # ranges this near are fetched as one: a request takes as long as so many bytes
_LANES: Final = 8  # requests at a time: norms are small ranges, hundreds of them
_SAVE_BYTES: Final = 16 * 2**20  # what a process that is killed loses at most
_MOST_RECORD_BYTES: Final = 2**22
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_ELSEWHERE: Final = "name another cache folder by XDG_CACHE_HOME"


def joined(spans: Iterable[Span], gap: int = 0) -> list[Span]:
    """The spans in order, those that overlap or lie at most `gap` bytes apart as one."""
    found: list[Span] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if found and begin <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def missing(wanted: Iterable[Span], there: Sequence[Span]) -> list[Span]:
    """What of the wanted spans is not there. there: in order and apart, as `joined` gives them."""
    found: list[Span] = []
    for begin, end in joined(wanted):
        for from_, to in there:
            if to <= begin or from_ >= end:
                continue
            if from_ > begin:
                found.append((begin, from_))
            begin = max(begin, to)
        if begin < end:
            found.append((begin, end))
    return found


class RangedModel:
    """A model of the hub of which single ranges are here. A context manager: what has come is kept when it ends."""

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        model: PlannedModel,
        tell: Callable[[int, int], None] | None = None,
        remedies: Remedies = COMMAND_LINE,
    ) -> None:
        """endpoint, token: the hub's. tell: called with the bytes that came, of how many that are known to be needed.

        Raises PullError where nothing can be written.
        """
        self._tell = tell or (lambda done, total: None)
        self._asked_bytes = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._hub = _Hub(download.hub_client(token), endpoint, Connections(), remedies)
        self.fetched_bytes = 0
        self.model = model
        self._files: list[_RangedFile] = []
        try:
            for file in model.files:
                self._files.append(_RangedFile(self._hub, model, file, self._came, self._stop))
            mark_used(model.folder)
        except BaseException:
            self._close()
            raise

    @property
    def path(self) -> Path:
        """The first file's place here."""
        return self._files[0].path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def stop(self) -> None:
        """End what is being fetched, from another thread: that raises StoppedError there. What came stays."""
        self._stop.set()
        self._hub.connections.end()

    def fetch_headers(self) -> None:
        """Fetch every file's beginning until its header is whole.

        Raises PullError, or ModelFileError for a header that does not hold together.
        """
        for file in self._files:
            for step in HEADER_STEPS:
                end = min(step, file.size)
                self._fetch([(file, (0, end))])
                if header_end(file.shown, file.read(0, end), file.size) is not None:
                    break
            else:
                raise PullError(
                    f"The header of {file.shown} is longer than {size_text(HEADER_STEPS[-1])}.",
                    "Give a file of a known converter.",
                )

    def fetch(self, wanted: Iterable[tuple[Path, int, int]]) -> None:
        """Fetch what is not here of (a file's place here, offset, bytes). Raises PullError; what came stays."""
        spans: dict[Path, list[Span]] = {}
        for path, offset, n_bytes in wanted:
            spans.setdefault(path, []).append((offset, offset + n_bytes))
        by_path = {file.path: file for file in self._files}
        self._fetch([(by_path[path], span) for path, some in spans.items() for span in some])

    def remove(self) -> None:
        """Remove what was fetched: it has served."""
        for file in self._files:
            file.remove()
            with suppress(OSError):  # others of the repository are there
                for folder in file.path.parents:
                    folder.rmdir()
                    if folder == self.model.folder.parent:
                        break

    def _fetch(self, wanted: Sequence[tuple[_RangedFile, Span]]) -> None:
        jobs = [
            (file, span)
            for file in self._files
            for span in joined(file.missing(span for of, span in wanted if of is file), _GAP_BYTES)
        ]
        if not jobs:
            return
        self._asked_bytes += sum(end - begin for _, (begin, end) in jobs)
        unsaved = 0
        with ThreadPoolExecutor(min(_LANES, len(jobs)), "ranges") as lanes:
            running: dict[Future[None], Span] = {}
            try:  # around the submitting, too: a Ctrl-C may come while it goes on
                running |= {lanes.submit(file.bring, *span): span for file, span in jobs}
                for one in completed(running):
                    one.result()
                    unsaved += running[one][1] - running[one][0]
                    if unsaved >= _SAVE_BYTES:
                        self._save()
                        unsaved = 0
            except BaseException:
                lanes.shutdown(wait=False, cancel_futures=True)
                self.stop()  # else what waits for an answer holds this up for as long as a read may take
                raise
        self._save()
        if self._stop.is_set():
            again = self._hub.remedies.again
            raise StoppedError("It was stopped.", f"{again[0].upper()}{again[1:]}: it goes on where it stopped.")

    def _came(self, count: int) -> None:
        with self._lock:
            self.fetched_bytes += count
            self._tell(self.fetched_bytes, self._asked_bytes)

    def _save(self) -> None:
        for file in self._files:
            file.save()

    def _close(self) -> None:
        self._stop.set()
        for file in self._files:
            file.close()
        self._hub.client.close()


@dataclass(frozen=True)
class _Hub:
    """What files are fetched by, and how a person corrects what was asked for."""

    client: httpx.Client
    endpoint: str
    connections: Connections
    remedies: Remedies


class _RangedFile:
    """One file of a model: a sparse file, and the record of what has come of it."""

    def __init__(
        self,
        hub: _Hub,
        model: PlannedModel,
        file: HubFile,
        came: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self.path = model.folder / file.path
        self.size = file.size_bytes
        self.shown = Path(model.repo) / file.path  # what messages call it
        self._hub, self._repo, self._name = hub, model.repo, file.path
        self._url = hf_hub_url(model.repo, file.path, revision=model.revision, endpoint=hub.endpoint)
        self._came, self._stop = came, stop
        self._lock = threading.Lock()
        self._is_stale = False
        self._facts = [model.revision, file.digest, self.size]
        self._record = self.path.with_name(f".{self.path.name}.ranges")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._out = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._disk_error(error, 1) from error
        try:
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._there, self._etag = self._recorded()
            self._saved = list(self._there)
            if os.fstat(self._out).st_size != self.size:
                os.ftruncate(self._out, self.size)
        except BlockingIOError:
            os.close(self._out)
            raise PullError(f"Another command is fetching {self.shown}.", "Wait until it is done.") from None
        except OSError as error:
            os.close(self._out)
            raise self._disk_error(error, self.size) from error  # a file system that knows no holes

    def missing(self, wanted: Iterable[Span]) -> list[Span]:
        """What of the wanted spans has not come."""
        return missing(wanted, self._there)

    def read(self, begin: int, end: int) -> bytes:
        """Bytes that have come."""
        return os.pread(self._out, end - begin, begin)

    def bring(self, begin: int, end: int) -> None:
        """Fetch a span, in several attempts if need be; runs on a thread. Raises PullError; what came stays."""
        waits = iter(download.RETRY_WAITS_S)
        at = begin
        while at < end and not self._stop.is_set():
            before = at
            cut: Exception = httpx.RemoteProtocolError("the range ended early")
            try:
                for piece in self._pieces(at, end):
                    self._write(at, piece)
                    at += len(piece)
            except httpx.RequestError as error:
                cut = error
            if at - before >= min(download.LEAST_BYTES, end - before):
                waits = iter(download.RETRY_WAITS_S)
                continue
            if self._stop.is_set():
                return
            wait_s = next(waits, None)
            if wait_s is None:
                raise no_network(self._hub.endpoint, cut, self._hub.remedies.again)
            self._stop.wait(wait_s)

    def save(self) -> None:
        """Write down what has come, once that is on the disk."""
        if self._is_stale:
            self._record.unlink(missing_ok=True)
            return
        with self._lock:
            there, etag = list(self._there), self._etag
        if there == self._saved:
            return
        try:
            os.fsync(self._out)
            with written_beside(self._record, private=True) as beside:
                beside.write_text(json.dumps({"of": self._facts, "etag": etag, "there": there}))
        except OSError as error:
            raise self._disk_error(error, 1) from error
        self._saved = there

    def close(self) -> None:
        """Keep what has come for the next try."""
        with suppress(PullError):  # then that is fetched again
            if self.path.exists():
                self.save()
        os.close(self._out)

    def remove(self) -> None:
        """Remove file and record."""
        for path in (self._record, self.path):
            path.unlink(missing_ok=True)

    def _pieces(self, begin: int, end: int) -> Iterable[bytes]:
        """The bytes of a span as they come; fewer where the connection ends. Raises PullError, httpx.RequestError."""
        headers = {"range": f"bytes={begin}-{end - 1}"}
        if self._etag and not self._etag.startswith("W/"):
            headers["if-range"] = self._etag
        extensions = dict(self._hub.connections.extensions)
        with self._hub.client.stream("GET", self._url, headers=headers, extensions=extensions) as response:
            self._require_range(response, begin)
            pace = download.Pace(time.monotonic())
            for piece in response.iter_bytes():
                if self._stop.is_set():
                    return
                if not pace.keeps_up(time.monotonic(), len(piece)):
                    raise httpx.ReadTimeout(pace.fault)
                piece = piece[: end - begin]
                if not piece:
                    return
                begin += len(piece)
                yield piece

    def _require_range(self, response: httpx.Response, begin: int) -> None:
        """Raises where an answer is not the range that was asked for, of the file that the other ranges are of."""
        if response.status_code == 416:
            raise self._changed("it is shorter now")
        download.check_status(response, self._hub.endpoint, self._repo, self._name)
        etag = response.headers.get("etag")
        with self._lock:
            self._etag = self._etag or etag
            same = etag is None or etag == self._etag
        if not same:
            raise self._changed("its ETag is another one")
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status_code != 206 or found is None:
            raise PullError(
                f"{httpx.URL(self._hub.endpoint).host} gives {self.shown} only as a whole ({size_text(self.size)}), "
                f"not in ranges (it answered {response.status_code}).",
                f"{self._hub.remedies.whole}.",
            )
        if int(found[3]) != self.size:
            raise self._changed(f"it has {int(found[3]):,} bytes, and {self.size:,} were listed")
        if int(found[1]) != begin:
            raise httpx.RemoteProtocolError(f"another range came than was asked for: {found[0]}")

    def _changed(self, how: str) -> PullError:
        """The file on the hub is not the one that was begun with: nothing of that can be used."""
        self._is_stale = True  # the ETag stays: other lanes have answers to hold against it
        return PullError(
            f"{self.shown} changed on the hub while it was read: {how}.",
            f"What had come was thrown away: {self._hub.remedies.again}.",
        )

    def _write(self, at: int, piece: bytes) -> None:
        left = memoryview(piece)
        try:
            while left:
                written = os.pwrite(self._out, left, at)
                with self._lock:
                    self._there = joined([*self._there, (at, at + written)])
                at, left = at + written, left[written:]
                self._came(written)
        except OSError as error:
            self._stop.set()
            raise self._disk_error(error, len(left)) from error

    def _recorded(self) -> tuple[list[Span], str | None]:
        """What has come by the record, where that is of this very file, and its ETag."""
        try:
            record = json.loads(read_bounded(self._record, _MOST_RECORD_BYTES))
            spans = joined((int(begin), int(end)) for begin, end in record["there"])
            fits = not spans or (spans[0][0] >= 0 and spans[-1][1] <= self.size)
            if record["of"] == self._facts and fits and os.fstat(self._out).st_size == self.size:
                return spans, record["etag"] if isinstance(record["etag"], str) else None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return [], None

    def _disk_error(self, error: OSError, needed: int) -> PullError:
        folder = next(folder for folder in self.path.parents if folder.is_dir())
        return disk_error(error, self.path, needed, download.free_bytes(folder), _ELSEWHERE, self._hub.remedies.again)

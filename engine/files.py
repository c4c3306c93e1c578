"""Files that appear whole or not at all, how a file is known again, and where what can be computed again is kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what writing fails with where there is no room


def is_full_disk(error: OSError) -> bool:
    """Whether writing failed for want of room; of a file that is too large to be read an error of ours says more."""
    return error.errno in FULL_DISK and error.strerror == os.strerror(error.errno)


_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """Open a file that somebody named, to read its bytes; never waits, and never reads a device.

    Raises OSError, whose `strerror` says what is in the file's place: a FIFO would be waited for without end, and
    /dev/zero has none.
    """
    require_regular(path)
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may have become a FIFO meanwhile
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        require_regular(path)
        raise OSError(errno.EINVAL, "It is no regular file", str(path))
    os.set_blocking(file, True)
    return os.fdopen(file, "rb")


def open_stream(path: Path) -> BinaryIO:
    """The same for what is read once from its beginning, which may be a pipe: `<(command)` of a shell."""
    if stat.S_ISFIFO(os.stat(path).st_mode):
        return path.open("rb")
    return open_regular(path)


def require_regular(path: Path) -> os.stat_result:
    """The file's status. Raises OSError, whose `strerror` says why it is no file that can be read."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise FileNotFoundError(
                errno.ENOENT, f"It is a link to {os.readlink(path)}, which is not there", str(path)
            ) from None
        raise
    except ValueError:  # a zero byte
        raise OSError(errno.EINVAL, "No path can be called so", str(path)) from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "It is a folder", str(path))
    for is_kind, what in _KINDS:
        if is_kind(status.st_mode):
            raise OSError(errno.EINVAL, f"It is {what} and no file", str(path))
    return status


def unread(path: Path, error: OSError) -> str:
    """What a message says of a file that could not be read: `x.json does not exist`, `x.json cannot be read: ...`."""
    if isinstance(error, FileNotFoundError) and not os.path.islink(path):
        return f"{path} does not exist"
    return f"{path} cannot be read: {error.strerror or error}"


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A regular file's bytes. Raises OSError, also for a file that is larger than `most_bytes`."""
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"It is larger than {most_bytes // 2**20} MiB", str(path))
    return content


def cache_folder() -> Path:
    """Where what can be computed again is kept: $XDG_CACHE_HOME/coe, else ~/.cache/coe."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "coe"


def state_folder() -> Path:
    """Where what cannot be computed again is kept, such as keys: $XDG_STATE_HOME/coe, else ~/.local/state/coe."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "coe"


def private_folder(path: Path) -> None:
    """Make a folder that the user alone can enter, and those above it that are missing; one that is open to others is
    closed to them, where it is the user's. Raises OSError where it cannot be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        with suppress(OSError):  # a file system without modes
            path.chmod(0o700)


def shared_folder(path: Path) -> None:
    """Make a folder for models, and those above it that are missing: open to whom the one that it lies in is open,
    whatever the umask. Raises OSError where it cannot be made."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        with suppress(OSError):
            folder.chmod(folder.parent.stat().st_mode & 0o777)


def share_like(path: Path, like: Path) -> None:
    """Let those read a model who may read the one that it was made of, whatever the umask."""
    with suppress(OSError):
        path.chmod(like.stat().st_mode & 0o666 | 0o600)


def make_private(path: Path) -> None:
    """Close a file to others before anything is written to it. Raises OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)


def stamp(path: Path) -> str:
    """A file's place, size, times and inode: another one when its bytes may have changed. Raises OSError."""
    status = path.stat()
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}"


@contextmanager
def written_beside(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; it takes its place when the block ends well, and is removed when it does not.

    The bytes are on the disk before the name changes, so that a crash leaves either the old file or the new one.
    private: the user alone can read it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if private:
            make_private(beside)
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        beside.unlink(missing_ok=True)


_CHUNK: Final = 8 * 2**20
_hashed: Final[dict[tuple[str, str], str]] = {}  # of this process: the cache's folder may not be writable


def sha256_of(paths: tuple[Path, ...], progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of the files' bytes, one after the other; cached by path, size and time of change.

    progress: called with the number of bytes of each piece read. Raises OSError.
    """

    def hashed() -> str:
        digest = hashlib.sha256()
        for path in paths:
            with open_regular(path) as file:
                while piece := file.read(_CHUNK):
                    digest.update(piece)
                    if progress is not None:
                        progress(len(piece))
        return digest.hexdigest()

    return cached_of(paths, "sha256", hashed)


def remember_sha256(paths: tuple[Path, ...], sha256: str) -> None:
    """What `sha256_of` gives for these files, as long as they stay as they are: of files that stand for others of which
    the hash is known. Raises OSError where they are gone."""
    key = _files_key(paths)
    if _hashed.get(("sha256", key)) != sha256:
        _hashed["sha256", key] = sha256
        _keep(paths, "sha256", key, sha256)


def cached_of(paths: tuple[Path, ...], what: str, compute: Callable[[], str]) -> str:
    """A text that is computed of files; cached by path, size and time of change.

    what: what it is, for the cache's folder. Raises OSError, and what `compute` raises.
    """
    key = _files_key(paths)
    if (what, key) not in _hashed:
        _hashed[what, key] = _cached_once(paths, what, key, compute)
    return _hashed[what, key]


def _files_key(paths: tuple[Path, ...]) -> str:
    return hashlib.sha256("\n".join(stamp(path) for path in paths).encode()).hexdigest()


def _cache_place(what: str, key: str) -> Path:
    return cache_folder() / what / f"{key}.json"


def _cached_once(paths: tuple[Path, ...], what: str, key: str, compute: Callable[[], str]) -> str:
    try:
        return str(json.loads(_cache_place(what, key).read_text())[what])
    except (OSError, ValueError, KeyError):
        pass
    found = compute()
    _keep(paths, what, key, found)
    return found


def _keep(paths: tuple[Path, ...], what: str, key: str, found: str) -> None:
    place = _cache_place(what, key)
    try:
        private_folder(cache_folder())
        private_folder(place.parent)
        with written_beside(place, private=True) as beside:
            beside.write_text(json.dumps({what: found, "files": [str(path) for path in paths]}))
    except OSError:  # a cache that cannot be written costs time and nothing else
        pass

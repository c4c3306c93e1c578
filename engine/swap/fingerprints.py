"""Fingerprints: keys that are equal where bytes are, by the mask that made a file or by content hashing (SHA-256).

`read_weights` gives the weights of a specialist from the headers of its files, with keys by its mask where the file
names it, and with fingerprints where `fingerprint_file` has taken them before; it keeps them in the cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import SharingError, SourceChangedError
from ..files import cache_folder, private_folder, stamp, written_beside
from ..gguf.architectures import ARCHITECTURES, Architecture, block_tensor, expert_bytes, is_per_expert
from ..gguf.header import Header, TensorInfo
from ..gguf.reader import read_split
from ..gguf.records import Records, digest, numbers, read_records
from ..spec import Kept, Member
from .plan import CONTENT, Keys, Place, Shape, Weights

PROVENANCE: Final = "coe.surgery."  # keys that a cut file has of its making begin so
SKELETON: Final = PROVENANCE + "skeleton"  # a file that has this key, its parent's path, has no weights of its own

# Keys that say nothing of how a file computes: its name, its parts, how it was made.
_DESCRIPTIVE: Final = ("general.", "split.", "quantize.", PROVENANCE)
_LAYERS, _KEPT = PROVENANCE + "layers", PROVENANCE + "kept_experts"
_CHUNK: Final = 8 * 2**20
_FOLIO_PAGES: Final = 8192  # more than the largest folio of a page cache has
_SCHEMA: Final = 1


class HeaderReader:
    """Reads each file's header once, however many specialists have to do with it. Threads may share one."""

    def __init__(self) -> None:
        self._headers: dict[Path, list[Header]] = {}
        self._metadata: dict[Path, tuple[Mapping[str, str], Mapping[int, tuple[int, ...]] | None]] = {}
        self._records: Records = {}  # of the file that was read last
        self._digests: Mapping[str, str] = {}  # and their digests
        self._lock = threading.Lock()

    def headers(self, path: Path) -> list[Header]:
        """Of all parts of a split file. Raises ModelFileError."""
        if path not in self._headers:
            self._headers[path] = read_split(path)
        return self._headers[path]

    def metadata(self, path: Path) -> tuple[Mapping[str, str], Mapping[int, tuple[int, ...]] | None]:
        """The values of a file's metadata or their hashes, and its slots (`read_slots`). Raises ModelFileError."""
        with self._lock:
            if path not in self._metadata:
                records = read_records(path, self._records)
                digests = {
                    key: self._digests[key] if record is self._records.get(key) else digest(record)
                    for key, record in records.items()
                }
                self._metadata[path] = digests, _slots(records)
                self._records, self._digests = records, digests
            return self._metadata[path]


def read_weights(
    path: Path, parent: Path | None = None, kept: Kept | None = None, *, reader: HeaderReader | None = None
) -> Weights:
    """A specialist's weights: of a file of its own, or of a skeleton at `path` that is filled from its parent.

    kept:   layer, the parent's experts slot by slot, in place of what the skeleton says; None for what it says.
    reader: what it has read already is not read again.

    Only headers are read, and fingerprints that `fingerprint_file` has taken before.

    Raises ModelFileError for a file that cannot be read, SharingError for one that cannot share a resident.
    """
    reader = reader or HeaderReader()
    headers = reader.headers(path)
    first = headers[0]
    architecture = ARCHITECTURES.get(first.architecture)
    if architecture is None:
        raise SharingError(f"The experts of the architecture {first.architecture!r} are not known.")
    n_expert = int(first.value("expert_count", 0) or 0)
    if n_expert < 2:
        raise SharingError(f"{path.name} has no experts to exchange.")
    if parent is None and SKELETON in first.metadata:
        raise SharingError(f"{path.name} is a skeleton without weights.", "Name its parent beside it.")
    digests, slots = reader.metadata(path)
    if kept:
        slots = dict(kept)
    sources = headers if parent is None else reader.headers(parent)
    if parent is not None:
        _require_parent(architecture, headers, sources, slots)
    places = _places(architecture, headers, sources, slots if parent is not None else None, n_expert)
    files = tuple(header.path for header in sources)
    tensors = {tensor.name: (int(tensor.type), tensor.shape) for header in headers for tensor in header.tensors}
    metadata = {key: value for key, value in digests.items() if not key.startswith(_DESCRIPTIVE)}
    n_groups = int(first.value("expert_group_count", 1) or 1)
    shape = Shape(first.architecture, n_expert, n_groups, tensors, metadata)
    by_mask = _keys_by_mask(architecture, first, slots, places)
    keys = () if by_mask is None else (by_mask,)
    found = Weights(path, shape, places, keys, str(first.metadata.get(PROVENANCE + "parent_sha256", "")), files)
    return with_fingerprints(found) or found


def with_fingerprints(weights: Weights) -> Weights | None:
    """The weights with the fingerprints of their files; None where they have them already, or none were taken.

    Cheap while none were taken: it looks whether the cache has such a file.
    """
    if weights.has_fingerprints:
        return None
    found = cached_fingerprints(weights.files)
    return replace(weights, keys=(*weights.keys, _selected(found, weights.places))) if found else None


def read_slots(header: Header) -> Mapping[int, tuple[int, ...]] | None:
    """Layer -> the parent's experts, slot by slot, as a cut file says; None for a file without provenance."""
    return _slots(read_records(header.path)) if {_LAYERS, _KEPT} <= header.array_lengths.keys() else None


def _slots(records: Records) -> Mapping[int, tuple[int, ...]] | None:
    layers, kept = numbers(records.get(_LAYERS)), numbers(records.get(_KEPT))
    if layers is None or kept is None:
        return None
    size = len(kept) // max(len(layers), 1)
    return {layer: tuple(kept[at * size : (at + 1) * size]) for at, layer in enumerate(layers)}


def sources(weights: Weights) -> tuple[Path, ...]:
    """The files that a specialist's bytes come from."""
    return tuple(dict.fromkeys(place.path for place in weights.places))


def file_stamp(path: Path) -> str:
    """Size, time of change and inode: another one when a file was written or replaced. Raises SourceChangedError."""
    try:
        status = path.stat()
    except OSError as error:
        raise SourceChangedError(f"{path} cannot be read: {error.strerror}.", "Put it back.") from error
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def member_stamp(member: Member, reader: HeaderReader | None = None) -> str:
    """The stamps of a member's files, parts of split ones included. Raises ModelFileError, SourceChangedError."""
    reader = reader or HeaderReader()
    paths = [header.path for path in (member.path, member.parent) if path for header in reader.headers(path)]
    return "; ".join(file_stamp(path) for path in paths)


# --- places, and keys by the mask ------------------------------------------------------------------------------


def _places(
    architecture: Architecture,
    headers: Sequence[Header],
    sources: Sequence[Header],
    kept: Mapping[int, tuple[int, ...]] | None,
    n_expert: int,
) -> tuple[Place, ...]:
    where = {tensor.name: (header.path, tensor) for header in sources for tensor in header.tensors}
    places = []
    for wanted in (tensor for header in headers for tensor in header.tensors):
        path, tensor = where[wanted.name]
        found = block_tensor(wanted.name)
        if found is None or not is_per_expert(architecture, wanted.name):
            places.append(Place(wanted.name, path, tensor.offset, tensor.n_bytes))
            continue
        if wanted.shape[-1] != n_expert:
            raise SharingError(f"{wanted.name} has not as many experts as its file says.", "Fetch the file again.")
        experts = tuple(range(n_expert)) if kept is None else kept[found[0]]
        places.append(Place(wanted.name, path, tensor.offset, expert_bytes(tensor), found[0], experts))
    return tuple(places)


def _require_parent(
    architecture: Architecture,
    skeleton: Sequence[Header],
    parent: Sequence[Header],
    kept: Mapping[int, tuple[int, ...]] | None,
) -> None:
    """Raises SharingError where a skeleton does not fit the file that is to fill it."""
    name = skeleton[0].path.name
    if kept is None:
        raise SharingError(f"{name} does not say which experts it keeps.", "Give them beside it.")
    theirs = {tensor.name: tensor for header in parent for tensor in header.tensors}
    n_expert = int(parent[0].value("expert_count", 0) or 0)
    for tensor in (tensor for header in skeleton for tensor in header.tensors):
        whole = theirs.get(tensor.name)
        if whole is None or whole.type != tensor.type or not _fits(tensor, whole):
            raise SharingError(f"{tensor.name} of {name} does not fit {parent[0].path.name}.", "Make it again.")
        found = block_tensor(tensor.name)
        if found is not None and is_per_expert(architecture, tensor.name):
            slots = kept.get(found[0], ())
            if len(slots) != tensor.shape[-1] or len(set(slots)) != len(slots):
                raise SharingError(
                    f"{len(set(slots))} experts are kept in layer {found[0]}, and {name} has {tensor.shape[-1]}.",
                    "Make the skeleton again for this mask.",
                )
    if any(not 0 <= expert < n_expert for experts in kept.values() for expert in experts):
        raise SharingError(f"{name} keeps experts that {parent[0].path.name} does not have.", "Make it again.")


def _fits(part: TensorInfo, whole: TensorInfo) -> bool:
    return part.shape == whole.shape or (len(part.shape) == len(whole.shape) and part.shape[:-1] == whole.shape[:-1])


def _keys_by_mask(
    architecture: Architecture,
    header: Header,
    kept: Mapping[int, tuple[int, ...]] | None,
    places: Sequence[Place],
) -> Keys | None:
    """Keys by the mask that made a file, as it says itself; None when it does not."""
    parent = header.metadata.get(PROVENANCE + "parent_sha256")
    complete = kept is not None and all(
        len(kept.get(place.layer, ())) == len(place.experts) for place in places if place.layer is not None
    )
    if kept is None or not complete or not parent:
        return None
    scale = header.metadata.get(PROVENANCE + "shared_scale")
    experts, others = {}, {}
    for place in places:
        found = block_tensor(place.name)
        if place.layer is not None:
            experts[place.name] = tuple(map(str, kept[place.layer]))
        else:
            scaled = scale is not None and found is not None and found[1] == architecture.shared_output
            others[place.name] = f"scaled by {scale!r}" if scaled else ""
    return Keys(f"{parent} {header.metadata.get(PROVENANCE + 'quantized', '')}", experts, others)


# --- keys by content ------------------------------------------------------------------------------------------


def fingerprint_file(path: Path, progress: Callable[[int], None] | None = None, *, in_background: bool = False) -> None:
    """Take the fingerprints of every tensor and every expert of a file, all parts of a split one, for the cache.

    progress:      called with the bytes of each piece. Returns at once for a file whose fingerprints are there.
    in_background: on one core, and the page cache is left as it was found: what other processes read stays in it.

    Raises ModelFileError, SourceChangedError, or SharingError for an architecture that is not known.
    """
    headers = read_split(path)
    paths = [header.path for header in headers]
    if cached_fingerprints(paths) is not None:
        return
    key = _cache_path(paths)  # of the files as they are before they are read
    architecture = ARCHITECTURES.get(headers[0].architecture)
    if architecture is None:
        raise SharingError(f"The experts of the architecture {headers[0].architecture!r} are not known.")
    report = progress or (lambda count: None)
    experts: dict[str, list[str]] = {}
    others: dict[str, str] = {}
    with ThreadPoolExecutor(1 if in_background else min(8, os.cpu_count() or 1), "hash") as pool:
        for header in headers:
            with header.path.open("rb", buffering=0) as file:
                read = _reader_without_trace(file.fileno()) if in_background else os.pread
                for tensor, digests in _tensor_hashes(pool, read, file.fileno(), architecture, header, report):
                    if is_per_expert(architecture, tensor):
                        experts[tensor] = digests
                    else:
                        others[tensor] = digests[0]
    private_folder(cache_folder())
    private_folder(key.parent)
    with written_beside(key, private=True) as beside:
        beside.write_text(json.dumps({"schema": _SCHEMA, "file": str(path), "experts": experts, "others": others}))


def cached_fingerprints(paths: Sequence[Path]) -> Keys | None:
    """The fingerprints of these very files, all parts of one, each expert in the file's order; None for none taken."""
    try:
        found = json.loads(_cache_path(paths).read_text())
        if found["schema"] != _SCHEMA:
            return None
        experts = {name: tuple(keys) for name, keys in found["experts"].items()}
        return Keys(CONTENT, experts, found["others"])
    except (OSError, ValueError, KeyError):
        return None


def _cache_path(paths: Sequence[Path]) -> Path:
    stamps = "\n".join(stamp(path) for path in paths)
    return cache_folder() / "contents" / f"{hashlib.sha256(stamps.encode()).hexdigest()}.json"


def _reader_without_trace(file: int) -> Callable[[int, int, int], bytes]:
    """An `os.pread` of this file that lets pages go which were not in the page cache before.

    Where the system does not say what is in it, everything stays. Source: mincore(2), posix_fadvise(2).
    """
    size = os.fstat(file).st_size
    if not hasattr(os, "posix_fadvise") or not size:
        return os.pread
    found: NDArray[np.uint8] = np.ones(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(file, size, prot=mmap.PROT_READ) as mapped:
        view: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
        mincore = ctypes.CDLL(None).mincore
        mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        if mincore(view.ctypes.data, size, found.ctypes.data):
            found[:] = 1
        del view  # a map that is looked at cannot be closed
    were_there = (found & 1).astype(np.bool_)

    def read(descriptor: int, n_bytes: int, offset: int) -> bytes:
        data = os.pread(descriptor, n_bytes, offset)
        first, end = offset // mmap.PAGESIZE, -(-(offset + n_bytes) // mmap.PAGESIZE)
        if not were_there[first:end].any():
            # With what was let go before: pages lie in folios that reach beyond a piece, and go only as a whole.
            before = were_there[max(0, first - _FOLIO_PAGES) : first][::-1]
            first -= int(before.argmax()) if before.any() else len(before)
            os.posix_fadvise(descriptor, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)
        return data

    return read


def _tensor_hashes(
    pool: ThreadPoolExecutor,
    read: Callable[[int, int, int], bytes],
    file: int,
    architecture: Architecture,
    header: Header,
    report: Callable[[int], None],
) -> Iterator[tuple[str, list[str]]]:
    """Each tensor's name, and the hash of each of its experts or of the whole."""
    for tensor in header.tensors:
        size = expert_bytes(tensor) if is_per_expert(architecture, tensor.name) else tensor.n_bytes
        offsets = range(tensor.offset, tensor.offset + tensor.n_bytes, size)
        digests = []
        for found in pool.map(lambda offset, size=size: _hash(read, file, offset, size), offsets):
            digests.append(found)
            report(size)
        yield tensor.name, digests


def _hash(read: Callable[[int, int, int], bytes], file: int, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    end = offset + size
    while offset < end:
        piece = read(file, min(_CHUNK, end - offset), offset)
        if not piece:
            raise SourceChangedError("A file became shorter while it was read.", "Leave it alone and try again.")
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()[:32]


def _selected(keys: Keys, places: Sequence[Place]) -> Keys:
    """The keys of a specialist's own experts among those of the file they lie in."""
    experts, others = {}, {}
    for place in places:
        if place.layer is None:
            others[place.name] = keys.others[place.name]
        else:
            experts[place.name] = tuple(keys.experts[place.name][number] for number in place.experts)
    return Keys(keys.origin, experts, others)

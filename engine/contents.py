"""What a specialist's files hold, read from headers, from the mask that made them, or by hashing once a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from .architectures import ARCHITECTURES, Architecture, block_tensor, expert_bytes, is_per_expert
from .errors import SharingError, SourceChangedError
from .files import cache_folder, stamp, written_beside
from .gguf_header import Header, TensorInfo, read_array, read_fingerprints, read_split
from .sharing import Keys, Place, Shape, Specialist
from .spec import Member

PROVENANCE: Final = "coe.surgery."  # keys that a cut file has of its making begin so
SKELETON: Final = PROVENANCE + "skeleton"  # a file that has this key has no weights of its own

# Keys that say nothing of how a file computes: its name, its parts, how it was made.
_DESCRIPTIVE: Final = ("general.", "split.", "quantize.", PROVENANCE)
_BY_CONTENT: Final = "content"
_CHUNK: Final = 8 * 2**20
_SCHEMA: Final = 1


def read_specialist(path: Path, parent: Path | None = None) -> Specialist:
    """A specialist's weights: of a file of its own, or of a skeleton at `path` that is filled from its parent.

    Only headers are read, and hashes of contents that `hash_contents` has worked out before.

    Raises ModelFileError for a file that cannot be read, SharingError for one that cannot share a resident.
    """
    headers = read_split(path)
    first = headers[0]
    architecture = ARCHITECTURES.get(first.architecture)
    if architecture is None:
        raise SharingError(f"The experts of the architecture {first.architecture!r} are not known.")
    n_expert = int(first.value("expert_count", 0) or 0)
    if n_expert < 2:
        raise SharingError(f"{path.name} has no experts to exchange.")
    kept = read_slots(first)
    if parent is None and SKELETON in first.metadata:
        raise SharingError(f"{path.name} is a skeleton without weights.", "Name its parent beside it.")
    sources = headers if parent is None else read_split(parent)
    numbers = kept if parent is not None else None
    if parent is not None:
        _require_parent(headers, sources, kept)
    places = _places(architecture, headers, sources, numbers, n_expert)
    hashed = known_contents(sources)
    keys = [_named(architecture, first, kept, places), _selected(hashed, places) if hashed else None]
    tensors = {tensor.name: (int(tensor.type), tensor.shape) for header in headers for tensor in header.tensors}
    metadata = {key: value for key, value in read_fingerprints(path).items() if not key.startswith(_DESCRIPTIVE)}
    n_groups = int(first.value("expert_group_count", 1) or 1)
    shape = Shape(first.architecture, n_expert, n_groups, tensors, metadata)
    known = tuple(key for key in keys if key is not None)
    return Specialist(path, shape, places, known, str(first.metadata.get(PROVENANCE + "parent_sha256", "")))


def read_slots(header: Header) -> dict[int, tuple[int, ...]] | None:
    """Layer -> the parent's experts, slot by slot, as a cut file says; None for a file without provenance."""
    layers, kept = PROVENANCE + "layers", PROVENANCE + "kept_experts"
    if not {layers, kept} <= header.array_lengths.keys():
        return None
    numbers, experts = read_array(header.path, layers), read_array(header.path, kept)
    size = len(experts) // max(len(numbers), 1)
    return {
        int(layer): tuple(int(expert) for expert in experts[at * size : (at + 1) * size])
        for at, layer in enumerate(numbers)
    }


def sources(specialist: Specialist) -> tuple[Path, ...]:
    """The files that a specialist's bytes come from."""
    return tuple(dict.fromkeys(place.path for place in specialist.places))


def file_stamp(path: Path) -> str:
    """Size, time of change and inode: another one when a file was written or replaced. Raises SourceChangedError."""
    try:
        status = path.stat()
    except OSError as error:
        raise SourceChangedError(f"{path} cannot be read: {error.strerror}.", "Put it back.") from error
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def member_stamp(member: Member) -> str:
    """The stamps of a member's files, parts of split ones included. Raises ModelFileError, SourceChangedError."""
    paths = [header.path for path in (member.path, member.parent) if path for header in read_split(path)]
    return "; ".join(file_stamp(path) for path in paths)


# --- where, and what by the mask ------------------------------------------------------------------------------


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
    skeleton: Sequence[Header], parent: Sequence[Header], kept: Mapping[int, tuple[int, ...]] | None
) -> None:
    """Raises SharingError where a skeleton does not fit the file that is to fill it."""
    name = skeleton[0].path.name
    if kept is None:
        raise SharingError(f"{name} does not say which experts it keeps.", "Make the skeleton again.")
    theirs = {tensor.name: tensor for header in parent for tensor in header.tensors}
    n_expert = int(parent[0].value("expert_count", 0) or 0)
    for tensor in (tensor for header in skeleton for tensor in header.tensors):
        whole = theirs.get(tensor.name)
        if whole is None or whole.type != tensor.type or not _fits(tensor, whole):
            raise SharingError(f"{tensor.name} of {name} does not fit {parent[0].path.name}.", "Make it again.")
    if any(expert >= n_expert for experts in kept.values() for expert in experts):
        raise SharingError(f"{name} keeps experts that {parent[0].path.name} does not have.", "Make it again.")


def _fits(part: TensorInfo, whole: TensorInfo) -> bool:
    return part.shape == whole.shape or (len(part.shape) == len(whole.shape) and part.shape[:-1] == whole.shape[:-1])


def _named(
    architecture: Architecture,
    header: Header,
    kept: Mapping[int, tuple[int, ...]] | None,
    places: Sequence[Place],
) -> Keys | None:
    """Keys by the mask that made a file, as it says itself; None when it does not."""
    parent = header.metadata.get(PROVENANCE + "parent_sha256")
    told = kept is not None and all(
        len(kept.get(place.layer, ())) == len(place.experts) for place in places if place.layer is not None
    )
    if kept is None or not told or not parent:
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


# --- what by content ------------------------------------------------------------------------------------------


def hash_contents(path: Path, progress: Callable[[int], None] | None = None) -> None:
    """Work out what every tensor and every expert of a file holds, all parts of a split one; kept for later.

    progress: called with the bytes of each piece. Returns at once for a file that is known.

    Raises ModelFileError, or SharingError for an architecture that is not known.
    """
    headers = read_split(path)
    if known_contents(headers) is not None:
        return
    key = _cache_path(headers)  # of the files as they are before they are read
    architecture = ARCHITECTURES.get(headers[0].architecture)
    if architecture is None:
        raise SharingError(f"The experts of the architecture {headers[0].architecture!r} are not known.")
    tell = progress or (lambda count: None)
    experts: dict[str, list[str]] = {}
    others: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "hash") as pool:
        for header in headers:
            with header.path.open("rb", buffering=0) as file:
                for tensor, digests in _digests(pool, file.fileno(), architecture, header, tell):
                    if is_per_expert(architecture, tensor):
                        experts[tensor] = digests
                    else:
                        others[tensor] = digests[0]
    key.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(key) as beside:
        beside.write_text(json.dumps({"schema": _SCHEMA, "file": str(path), "experts": experts, "others": others}))


def known_contents(headers: Sequence[Header]) -> Keys | None:
    """What `hash_contents` found in these very files; None when it has not looked at them."""
    try:
        found = json.loads(_cache_path(headers).read_text())
        if found["schema"] != _SCHEMA:
            return None
        experts = {name: tuple(keys) for name, keys in found["experts"].items()}
        return Keys(_BY_CONTENT, experts, found["others"])
    except (OSError, ValueError, KeyError):
        return None


def _cache_path(headers: Sequence[Header]) -> Path:
    stamps = "\n".join(stamp(header.path) for header in headers)
    return cache_folder() / "contents" / f"{hashlib.sha256(stamps.encode()).hexdigest()}.json"


def _digests(
    pool: ThreadPoolExecutor, file: int, architecture: Architecture, header: Header, tell: Callable[[int], None]
) -> Iterator[tuple[str, list[str]]]:
    """Each tensor's name, and the hash of each of its experts or of the whole."""
    for tensor in header.tensors:
        size = expert_bytes(tensor) if is_per_expert(architecture, tensor.name) else tensor.n_bytes
        offsets = range(tensor.offset, tensor.offset + tensor.n_bytes, size)
        digests = []
        for digest in pool.map(lambda offset, size=size: _digest(file, offset, size), offsets):
            digests.append(digest)
            tell(size)
        yield tensor.name, digests


def _digest(file: int, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    end = offset + size
    while offset < end:
        piece = os.pread(file, min(_CHUNK, end - offset), offset)
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

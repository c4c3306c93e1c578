"""Carrying a swap out: bytes from the files into a loaded model's tensors, on all cores, with few calls.

Where the processor can reach a tensor, files are read straight into it. Elsewhere pieces are read into one half of a
buffer (pinned, where the device has such memory) while the other half is on its way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, SourceChangedError, SwapError
from ..llama.devices import physical_cores
from ..llama.ggml import GgmlTensor, ggml_function, tensor_get, tensor_set
from ..llama.model import Model
from ..spec import Kept, LoadSpec, Member
from .fingerprints import HeaderReader, file_stamp, member_stamp, read_weights, sources, with_fingerprints
from .plan import Move, SlotOrder, Span, Swap, Weights, comparable, plan_fill, plan_swap
from .weights import Loaded, LoadedTensor, find_weights, require_match, require_same_bytes

_PIECE_BYTES: Final = 4 * 2**20  # read at once by one thread
_HALF_BYTES: Final = 32 * 2**20  # of the buffer that feeds a device
_GATHER_BYTES: Final = 2**20  # spans that lie this close together are read in one piece
# A tensor up to this size is set in one call: a call to a device waits for it.
_WHOLE_ON_HOST: Final = 64 * 2**10
_WHOLE_ON_DEVICE: Final = 2**20

_AGAIN: Final = "Send the request again: the files are being read anew."

_pointer = ctypes.c_void_p


@dataclass(frozen=True)
class SwapReport:
    """What a swap took."""

    changed_bytes: int
    moved_bytes: int
    seconds: float


@dataclass(frozen=True)
class _Write:
    """Bytes of a tensor to overwrite at once, from `at` on, with those of these spans."""

    tensor: LoadedTensor
    at: int
    n_bytes: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class _Prepared:
    """A swap planned beforehand. It holds for a resident that is `current` in `order`, while neither of the two has got
    fingerprints since."""

    current: Weights
    target: Weights
    order: SlotOrder
    swap: Swap
    direct: list[_Write]
    staged: list[_Write]


class Swapper:
    """Owns what a resident is: its weights, which specialist they are now, and in which slots.

    A specialist's id is a number, by the files its weights come from and what is taken of them, so that two names for
    the same weights are one. `broken` once a swap has failed half-way; the resident must not be used again.
    """

    def __init__(self, model: Model, spec: LoadSpec, *, direct: bool = True) -> None:
        """Take over a loaded model; one that was loaded from a skeleton is filled.

        direct: read straight into tensors that the processor can reach; False for tests of the other way.

        Raises ModelFileError, SourceChangedError for the members' files, SharingError or LayoutError where the model
        cannot be overwritten in place, SwapError when filling failed.
        """
        assert spec.sharing is not None
        self._check = spec.sharing.check
        self._direct = direct
        self._ids: dict[str, int] = {}
        self._members: list[Weights] = []
        self._stamps: dict[Path, str] = {}
        self._stale: dict[int, str] = {}
        self._titles: list[str] = []
        numbers: dict[tuple[Path, Path | None, Kept], int] = {}
        loaded_as: Member | None = None
        reader = HeaderReader()
        for member in spec.sharing.members:
            key = (member.path, member.parent, member.kept)
            if key not in numbers:
                numbers[key] = len(self._members)
                self._members.append(read_weights(*key, reader=reader))
                # Masks have their skeleton in common: its name says nothing.
                self._titles.append(member.name if member.kept else member.path.name)
                if member.stamp and member_stamp(member, reader) != member.stamp:
                    self._stale[numbers[key]] = f"{self._titles[-1]} was changed since the roster was read."
            self._ids[member.name] = numbers[key]
            if loaded_as is None and member.path == spec.path and spec.sharing.first in ("", member.name):
                loaded_as = member
        for specialist in self._members:
            self._stamps |= {path: file_stamp(path) for path in sources(specialist)}
        if loaded_as is None:
            raise EngineError(f"{spec.path.name} is none of the specialists that are to share it.")
        self.current = self._ids[loaded_as.name]
        self.order: SlotOrder = self._members[self.current].own_order
        self.broken = False
        self._loaded: Loaded = find_weights(model, spec)
        for specialist in self._members:
            require_match(self._loaded, specialist)
        tensors = [tensor for found in self._loaded.values() for tensor in found]
        self._whole_below = _WHOLE_ON_HOST if all(t.data is not None for t in tensors) else _WHOLE_ON_DEVICE
        self._pool = ThreadPoolExecutor(physical_cores(), "swap")
        self._prepared: dict[int, _Prepared] = {}
        self._halves: list[NDArray[np.uint8]] = []
        self._keep: list[Callable[[], None]] = []
        if loaded_as.parent is not None:
            self.require_unchanged(self.current)
            plan = plan_fill(self._members[self.current], whole_below=self._whole_below)
            self._carry_out(self.current, *self._pieces(plan.moves))
            _forget_pages(spec.path)
        require_same_bytes(self._loaded, self._members[self.current])

    def id_of(self, name: str) -> int:
        """The id of a specialist. Raises EngineError for a name that the resident was not given."""
        try:
            return self._ids[name]
        except KeyError:
            raise EngineError(f"The resident has no specialist called {name!r}.") from None

    def title_of(self, specialist_id: int) -> str:
        """What a specialist is called in logs and errors."""
        return self._titles[specialist_id]

    def names_of(self, specialist_id: int) -> str:
        """The roster's names of a specialist: several where they stand for the same weights."""
        return " / ".join(name for name, number in self._ids.items() if number == specialist_id)

    def specialist(self, specialist_id: int) -> Weights:
        """A specialist's weights."""
        return self._members[specialist_id]

    def require_unchanged(self, specialist_id: int) -> None:
        """Raises SourceChangedError when a file that a specialist's bytes come from is another one than before."""
        if specialist_id in self._stale:
            raise SourceChangedError(self._stale[specialist_id], _AGAIN)
        for path in sources(self._members[specialist_id]):
            if file_stamp(path) != self._stamps[path]:
                raise SourceChangedError(f"{path} was changed on disk.", _AGAIN)

    def prefetch(self, specialist_id: int) -> Future[None]:
        """Work the next swap to a specialist out, and ask the kernel to have at hand what it reads; returns at once."""
        return self._pool.submit(self._prefetch, specialist_id, self.current, self.order)

    def _learn(self, *specialist_ids: int) -> None:
        """Take up what has been worked out since of what these files hold, where nothing could be compared so far."""
        one, other = (self._members[specialist_id] for specialist_id in specialist_ids)
        if comparable(one, other) is None:
            for specialist_id in specialist_ids:
                known = with_fingerprints(self._members[specialist_id])
                self._members[specialist_id] = known or self._members[specialist_id]

    def _prefetch(self, specialist_id: int, current: int, order: SlotOrder) -> None:
        prepared = self._prepare(specialist_id, current, order)
        self._prepared[specialist_id] = prepared
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError), _opened(sources(self._members[specialist_id])) as files:
                for span in (span for move in prepared.swap.moves for span in move.spans):
                    os.posix_fadvise(files[span.path], span.offset, span.n_bytes, os.POSIX_FADV_WILLNEED)

    def _prepare(self, specialist_id: int, current: int, order: SlotOrder) -> _Prepared:
        self._learn(current, specialist_id)
        mine, target = self._members[current], self._members[specialist_id]
        found = self._prepared.get(specialist_id)
        if found is not None and found.current is mine and found.target is target and found.order is order:
            return found
        swap = plan_swap(mine, order, target, whole_below=self._whole_below)
        return _Prepared(mine, target, order, swap, *self._pieces(swap.moves))

    def swap(self, specialist_id: int) -> SwapReport:
        """Make the resident another specialist. No decode may be under way.

        Raises SourceChangedError before anything is overwritten; SwapError when it failed later: then the resident is
        broken.
        """
        if self.broken:
            raise SwapError("The resident was left half-changed by a swap that failed.", "It has to be loaded again.")
        started = time.perf_counter()
        if specialist_id == self.current:
            return SwapReport(0, 0, 0.0)
        self.require_unchanged(specialist_id)
        prepared = self._prepare(specialist_id, self.current, self.order)
        self._carry_out(specialist_id, prepared.direct, prepared.staged)
        swap = prepared.swap
        self.current, self.order = specialist_id, swap.order
        return SwapReport(swap.changed_bytes, swap.moved_bytes, time.perf_counter() - started)

    def _carry_out(self, specialist_id: int, direct: Sequence[_Write], staged: Sequence[_Write]) -> None:
        """Overwrite; whatever interrupts it leaves the resident broken."""
        self.broken = True
        try:
            with _opened(sources(self._members[specialist_id])) as files:
                self._read_in_place(direct, files)
                self._send(staged, files)
                self.require_unchanged(specialist_id)  # bytes read of a file that was being written are of no use
                if self._check:
                    self._compare([*direct, *staged], files)
        except (EngineError, OSError) as error:
            raise SwapError(
                f"Changing to {self._titles[specialist_id]} failed half-way: {error}",
                "The resident is loaded again with the next request.",
            ) from error
        self.broken = False

    def _pieces(self, moves: Sequence[Move]) -> tuple[list[_Write], list[_Write]]:
        """The moves cut into pieces for threads: those read in place, and those that go through the buffer."""
        direct: list[_Write] = []
        staged: list[_Write] = []
        for move in moves:
            for tensor in self._loaded.get(move.tensor, ()):  # what generation never reads need not be right
                pieces = direct if self._direct and tensor.data is not None else staged
                if len(move.spans) > 1 and move.n_bytes <= _GATHER_BYTES:
                    pieces.append(_Write(tensor, move.at, move.n_bytes, move.spans))
                    continue
                at = move.at
                for span in move.spans:
                    for start in range(0, span.n_bytes, _PIECE_BYTES):
                        size = min(_PIECE_BYTES, span.n_bytes - start)
                        pieces.append(_Write(tensor, at + start, size, (Span(span.path, span.offset + start, size),)))
                    at += span.n_bytes
        return direct, staged

    def _read_in_place(self, pieces: Sequence[_Write], files: dict[Path, int]) -> None:
        def read(part: Sequence[_Write]) -> None:
            for piece in part:
                assert piece.tensor.data is not None
                _read(piece.spans, files, _memory(piece.tensor.data + piece.at, piece.n_bytes))

        self._each(read, pieces)

    def _each(self, work: Callable[[Sequence[_Write]], None], pieces: Sequence[_Write]) -> None:
        """Work on pieces on all threads, some neighbours at a time. Raises the first failure, when all have ended."""
        parts = [[piece for piece, _ in part] for part in _filled([(p, p.n_bytes) for p in pieces], _PIECE_BYTES)]
        done = [self._pool.submit(work, part) for part in parts]
        wait(done)  # a thread that still writes while the caller gives up would write into freed memory
        for future in done:
            future.result()

    def _send(self, pieces: Sequence[_Write], files: dict[Path, int]) -> None:
        """Through two halves of a buffer: one is filled by the threads while the other goes to the device."""
        if not pieces:
            return
        if not self._halves:
            self._halves = [self._staging(pieces[0].tensor) for _ in range(2)]
        loads = list(_filled([(piece, piece.n_bytes) for piece in pieces], _HALF_BYTES))
        reading = self._fill(loads[0], self._halves[0], files)
        try:
            for number, load in enumerate(loads):
                for future in reading:
                    future.result()
                if number + 1 < len(loads):
                    reading = self._fill(loads[number + 1], self._halves[(number + 1) % 2], files)
                base = self._halves[number % 2].ctypes.data
                for piece, at in load:
                    tensor_set(piece.tensor.address, base + at, piece.at, piece.n_bytes)
        finally:
            wait(reading)

    def _fill(self, load: Sequence[tuple[_Write, int]], half: NDArray[np.uint8], files: dict[Path, int]) -> Any:
        def read(part: Sequence[tuple[_Write, int]]) -> None:
            for piece, at in part:
                _read(piece.spans, files, half.data[at : at + piece.n_bytes])

        step = -(-len(load) // (4 * self._pool._max_workers))
        return [self._pool.submit(read, load[at : at + step]) for at in range(0, len(load), step)]

    def _staging(self, tensor: LoadedTensor) -> NDArray[np.uint8]:
        """Memory that the tensor's device reads fast: pinned where it has such, else ordinary."""
        buffer = GgmlTensor.from_address(tensor.address).buffer
        kind = ggml_function("ggml_backend_buffer_get_type", _pointer, _pointer)(buffer)
        device = ggml_function("ggml_backend_buft_get_device", _pointer, _pointer)(kind)
        host = ggml_function("ggml_backend_dev_host_buffer_type", _pointer, _pointer)(device) if device else None
        allocate = ggml_function("ggml_backend_buft_alloc_buffer", _pointer, _pointer, ctypes.c_size_t)
        pinned = allocate(host, _HALF_BYTES) if host else None
        if not pinned:
            return np.empty(_HALF_BYTES, np.uint8)
        base = ggml_function("ggml_backend_buffer_get_base", _pointer, _pointer)(pinned)
        self._keep.append(lambda: ggml_function("ggml_backend_buffer_free", None, _pointer)(pinned))
        return np.frombuffer(_memory(base, _HALF_BYTES), np.uint8)

    def _compare(self, pieces: Sequence[_Write], files: dict[Path, int]) -> None:
        """Raises SwapError where what was moved is not there."""

        def compare(part: Sequence[_Write]) -> None:
            for piece in part:
                wanted, found = (np.empty(piece.n_bytes, np.uint8) for _ in range(2))
                _read(piece.spans, files, wanted.data)
                tensor_get(piece.tensor.address, found.ctypes.data, piece.at, piece.n_bytes)
                if not np.array_equal(wanted, found):
                    raise SwapError("bytes that were moved did not arrive.")

        self._each(compare, pieces)

    def close(self) -> None:
        """Let threads and buffers go; the model stays."""
        self._pool.shutdown()
        self._halves = []
        for free in self._keep:
            free()
        self._keep = []


@contextlib.contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[dict[Path, int]]:
    with contextlib.ExitStack() as stack:
        yield {path: stack.enter_context(path.open("rb", buffering=0)).fileno() for path in paths}


def _forget_pages(path: Path) -> None:
    """Let the page cache go that holds a skeleton's zeros: as much as the weights, and of no further use."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _memory(address: int, n_bytes: int) -> memoryview:
    return memoryview((ctypes.c_uint8 * n_bytes).from_address(address)).cast("B")


def _read(spans: Sequence[Span], files: dict[Path, int], target: memoryview) -> None:
    """Read spans one after the other into memory. Raises SourceChangedError where a file ends too early."""
    if len(spans) == 1:
        _read_one(files[spans[0].path], spans[0].offset, target, spans[0].path)
        return
    first, last = min(span.offset for span in spans), max(span.offset + span.n_bytes for span in spans)
    one_file = all(span.path == spans[0].path for span in spans)
    if one_file and last - first <= _GATHER_BYTES:
        around = np.empty(last - first, np.uint8)
        _read_one(files[spans[0].path], first, around.data, spans[0].path)
        at = 0
        for span in spans:
            target[at : at + span.n_bytes] = around.data[span.offset - first :][: span.n_bytes]
            at += span.n_bytes
        return
    at = 0
    for span in spans:
        _read_one(files[span.path], span.offset, target[at : at + span.n_bytes], span.path)
        at += span.n_bytes


def _read_one(file: int, offset: int, target: memoryview, path: Path) -> None:
    while target:
        count = os.preadv(file, [target], offset)
        if not count:
            raise SourceChangedError(f"{path} ended before byte {offset + len(target):,}.", "Fetch it again.")
        target = target[count:]
        offset += count


def _filled(pieces: Sequence[tuple[_Write, int]], capacity: int) -> Iterator[list[tuple[_Write, int]]]:
    """Pieces in groups of at most `capacity` bytes (one that is larger alone), each with its offset in the group."""
    group: list[tuple[_Write, int]] = []
    used = 0
    for piece, size in pieces:
        if group and used + size > capacity:
            yield group
            group, used = [], 0
        group.append((piece, used))
        used += size
    if group:
        yield group

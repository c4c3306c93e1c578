"""What lies already where a specialist is to be cut to: the same cut, one that can be cut again, or a user's file."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError
from coe.engine.files import open_regular
from coe.engine.gguf.reader import read_header
from coe.engine.gguf.records import Records, parse_records, read_records, text
from coe.surgery.cut.cut import KEY, OnStage, mask_sha256
from coe.surgery.cut.gguf_writer import padded
from coe.surgery.mask import Mask
from coe.surgery.parent import Identity, Parent
from coe.surgery.verify.verify import verify

from .values import ExportError

_COMPARED: Final = 2**30  # bytes of a file that is held against its parent each time: some seconds
_ALIGNMENT: Final = 32  # ggml's, where a file names none
_WAY_OUT: Final = "Give another folder, or remove it."


@dataclass(frozen=True)
class There:
    """Whether a file that is there is the one that is wanted; else it is cut again. told: what is known of it."""

    wanted: bool
    told: str


def look_at(out: Path, parent: Parent, identity: Identity, mask: Mask, progress: OnStage) -> There:
    """What to do with a file that is there. Raises ExportError for one that no cut would give again: it stays."""
    fault = None
    try:
        records = read_records(out)
        fault = _wrong_length(out)
    except EngineError as error:
        fault = error.message
        if (found := _records_of_damaged(out)) is None:
            raise ExportError(f"{out} is there, and nothing says that it was cut here: {fault} {_WAY_OUT}") from error
        records = found
    if KEY + "mask_sha256" not in records:
        damaged = f" It is damaged, too: {fault}" if fault else ""
        raise ExportError(f"{out} is there, and was not cut out of a parent.{damaged} {_WAY_OUT}")
    if KEY + "quantized" in records or KEY + "shared_scale" in records:
        damaged = f" It is damaged, too: {fault}" if fault else ""
        raise ExportError(
            f"{out} is there, and was scaled or brought to another file type when it was cut, which an export does "
            f"not do again.{damaged} {_WAY_OUT}"
        )
    if fault:
        return There(False, f"It was damaged, and is cut again: {fault}")
    made_by = text(records.get(KEY + "parent_sha256")), text(records[KEY + "mask_sha256"])
    if made_by != (identity.sha256, mask_sha256(mask)):
        return There(False, f"{out} was cut by another mask, or out of another parent, and is cut again.")
    if out.stat().st_size > _COMPARED:
        return There(True, f"{out} is there already, by its header and length; coe verify proves its bytes.")
    compared = verify(parent.path, out, mask, run=False, progress=progress)
    if compared.ok:
        return There(True, f"{out} is there already, with the parent's bytes.")
    return There(False, f"It was damaged, and is cut again: {compared.problems[0]}")


def _wrong_length(path: Path) -> str | None:
    """Why a file with a sound header is longer than that asks for. Raises ModelFileError."""
    header = read_header(path)
    end = max((tensor.offset + tensor.n_bytes for tensor in header.tensors), default=header.data_offset)
    size = path.stat().st_size
    if size <= padded(end, header.whole_number("general.alignment", _ALIGNMENT)):
        return None
    return f"{path} has {size:,} bytes and its tensors need {end:,}."


def _records_of_damaged(path: Path) -> Records | None:
    """The metadata of a GGUF that does not hold together, where they are whole; None where they are not."""
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:4] != b"GGUF":
                return None
            (n_keys,) = struct.unpack_from("<Q", content, 16)
            return parse_records(content, n_keys)[0]
    except (OSError, ValueError, struct.error, IndexError, OverflowError, RecursionError):
        return None

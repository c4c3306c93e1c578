"""A cache of sentence embeddings between runs of training, by hashes of what the encoder reads."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..encoder import DIMENSIONS, Encodes
from ..errors import RouterError
from ..files import written_beside
from ..head import Floats

EMBEDDED_AT_ONCE = 256
WRITTEN_AFTER = 500  # new embeddings, or a tenth of those in the file if that is more: each is written some 11 times
KEY_BYTES = 20  # of a text's SHA-1


class KeptEmbeddings:
    """Embeds texts, and keeps the embeddings in a file between runs: an hour of one core saved where a run is repeated.

    The file holds hashes of texts and their embeddings, no texts. It is written as the embeddings grow, so that a run
    that is killed loses 500 or a tenth of them at most.
    """

    def __init__(self, encoder: Encodes, path: Path | None = None) -> None:
        """Raises RouterError when there is a file and it holds no embeddings of this encoder's size."""
        self._encoder, self._path = encoder, path
        self._rows = _read_kept(path) if path is not None and path.exists() else {}
        self._n_written = len(self._rows)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Embeddings (n, DIMENSIONS) of the texts; new ones are written to the file."""
        self._encoder.load()
        # By what the encoder reads of a text: one with other weights, or that reads otherwise, finds nothing stale.
        read = (f"{self._encoder.weights}\0{self._encoder.read(text)}" for text in texts)
        keys = [hashlib.sha1(text.encode(), usedforsecurity=False).digest() for text in read]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        order = list(new)
        try:
            for start in range(0, len(order), EMBEDDED_AT_ONCE):
                some = order[start : start + EMBEDDED_AT_ONCE]
                self._rows.update(zip(some, self._encoder.encode([new[key] for key in some]), strict=True))
                if len(self._rows) - self._n_written >= max(WRITTEN_AFTER, self._n_written / 10):
                    self._write()
        finally:  # Ctrl-C, too, keeps what there is
            self._write()
        return np.stack([self._rows[key] for key in keys]) if keys else np.zeros((0, DIMENSIONS), np.float32)

    def _write(self) -> None:
        if self._path is None or len(self._rows) == self._n_written:
            return
        with written_beside(self._path) as (beside,), beside.open("wb") as file:
            keys = np.frombuffer(b"".join(self._rows), np.uint8).reshape(-1, KEY_BYTES)
            np.savez(file, keys=keys, rows=np.stack(list(self._rows.values())))
        self._n_written = len(self._rows)


def _read_kept(path: Path) -> dict[bytes, Floats]:
    """Embeddings by the hashes of their texts. Raises RouterError for a file that KeptEmbeddings did not write."""
    remedy = "remove it, or name another file for embeddings"
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # of which numpy says that it could be loaded unsafely
                raise ValueError("it is no whole .npz archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                keys, rows = arrays["keys"], arrays["rows"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise RouterError(f"{path} cannot be read as kept embeddings ({error}): {remedy}") from error
    if rows.ndim != 2 or rows.dtype != np.float32 or (keys.dtype, keys.shape) != (np.uint8, (len(rows), KEY_BYTES)):
        raise RouterError(f"{path} holds something else than kept embeddings: {remedy}")
    if rows.shape[1] != DIMENSIONS:
        raise RouterError(f"{path} keeps embeddings of {rows.shape[1]} numbers, here they have {DIMENSIONS}: {remedy}")
    return {key.tobytes(): row for key, row in zip(keys, rows, strict=True)}

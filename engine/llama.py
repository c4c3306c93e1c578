"""llama.cpp as this project sees it: a log, devices, a vocabulary, a model, a context.

Thin on purpose: every call is one of llama.cpp's own, reached through llama-cpp-python's low-level module, which is
pinned because structs are passed by value. Nothing here may be used by the server's process: llama.cpp aborts when it
meets what it does not expect, so these calls live in workers and probes (processes of their own).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import llama_cpp.llama_cpp as lib
from llama_cpp._ggml import libggml

from .errors import LoadError, ModelFileError
from .spec import Device, LoadSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_MMAP: Final = lib.LLAMA_LOAD_MODE_NONE
MMAP: Final = lib.LLAMA_LOAD_MODE_MMAP
BATCH_TOKENS: Final = 512  # tokens in one decode; also the compute buffer's size

_KV_TYPES: Final = {"f16": 1, "q8_0": 8, "q4_0": 2, "bf16": 30, "f32": 0}  # ggml.h, enum ggml_type


class Log:
    """Keeps what llama.cpp logs: the last lines for error messages, all of them while `keep_all` is set.

    llama.cpp calls it from its own threads; appending to a list is atomic.
    """

    LEVELS: Final = {0: "", 1: "debug", 2: "info", 3: "warn", 4: "error", 5: ""}

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._callback = lib.llama_log_callback(self._receive)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").rstrip("\n")
        if not line or line == ".":
            return
        self.lines.append(line)
        if level >= 4:
            self.errors.append(line)
        if len(self.lines) > 4000:
            del self.lines[:2000]

    def reason(self, default: str) -> str:
        """The most telling error line so far, without the name of the C function it came from."""
        for line in self.errors:
            if "error loading model" in line or "unknown model architecture" in line:
                return line.split(": ", 1)[-1]
        return self.errors[-1].split(": ", 1)[-1] if self.errors else default


_log: Log | None = None


def start() -> Log:
    """Initialise llama.cpp once for this process, with its log captured."""
    global _log
    if _log is None:
        _log = Log()
        lib.llama_backend_init()
    return _log


def devices() -> list[Device]:
    """What ggml can compute on, in its own order. Source: ggml-backend.h, ggml_backend_dev_*."""
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        function = getattr(libggml, name)
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size_p = ctypes.POINTER(ctypes.c_size_t)
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_p, size_p]
    libggml.ggml_backend_dev_memory.restype = None
    found = []
    for index in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(ctypes.c_size_t(index))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        libggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        kind = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}.get(libggml.ggml_backend_dev_type(device), "other")
        found.append(
            Device(
                libggml.ggml_backend_dev_name(device).decode(),
                libggml.ggml_backend_dev_description(device).decode(),
                kind,
                free.value,
                total.value,
            )
        )
    return found


def gpu_free_bytes() -> int | None:
    """Free memory of all GPUs together, None where there is none."""
    gpus = [device for device in devices() if device.kind == "gpu"]
    return sum(device.free_bytes for device in gpus) if gpus else None


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once. Source: /proc/cpuinfo, core id within physical id."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return allowed
    cores = set(re.findall(r"physical id\s*: (\d+).*?core id\s*: (\d+)", text, re.DOTALL))
    return min(allowed, len(cores)) if cores else allowed


class Vocab:
    """A model's vocabulary: text to tokens and back."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        if not self._vocab:
            raise LoadError("The model has no vocabulary.")
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        self.bos: int = lib.llama_vocab_bos(self._vocab)
        self.eos: int = lib.llama_vocab_eos(self._vocab)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self._vocab)
        self._pieces: dict[tuple[int, bool], bytes] = {}

    @functools.cached_property
    def longest_piece_bytes(self) -> int:
        """Bytes of the longest token: no text of n bytes has fewer than n / this many tokens."""
        return max(map(len, self.pieces()), default=1) or 1

    @functools.cached_property
    def end(self) -> int:
        """A token that ends an answer."""
        if self.ends_generation(self.eos):
            return self.eos
        return next((token for token in range(self.n_tokens) if self.ends_generation(token)), self.eos)

    @property
    def handle(self) -> Any:
        """llama_vocab pointer."""
        return self._vocab

    def tokenize(self, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
        """Tokens of text. special: control tokens written in the text are recognised as such."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        buffer = (lib.llama_token * size)()
        count = lib.llama_tokenize(self._vocab, data, len(data), buffer, size, bos, special)
        if count < 0:
            buffer = (lib.llama_token * -count)()
            count = lib.llama_tokenize(self._vocab, data, len(data), buffer, -count, bos, special)
        return list(buffer[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; control tokens give nothing unless special."""
        key = (token, special)
        known = self._pieces.get(key)
        if known is None:
            known = self._pieces[key] = self._read_piece(token, special)
        return known

    def pieces(self) -> list[bytes]:
        """The bytes of all tokens, those of control tokens too; not kept."""
        return [self._read_piece(token, special=True) for token in range(self.n_tokens)]

    def _read_piece(self, token: int, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:length]

    def text(self, token: int) -> str:
        """How the vocabulary file writes a token; for special tokens, its name."""
        if not 0 <= token < self.n_tokens:  # a vocabulary without this special token says -1; llama.cpp would abort
            return ""
        return (lib.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        """Whether the token ends a turn or the text."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token, without text of its own."""
        return bool(lib.llama_vocab_is_control(self._vocab, token))


class Model:
    """A loaded GGUF. Close it (or leave the process) to give the memory back."""

    def __init__(
        self, spec: LoadSpec, *, dry_run: bool = False, progress: Callable[[float], bool] | None = None
    ) -> None:
        """dry_run: header, vocabulary and sizes only, no weights. progress: called with 0..1, False stops the load.

        Raises ModelFileError when llama.cpp refuses the file, with llama.cpp's own reason.
        """
        log = start()
        log.errors.clear()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = spec.gpu_layers
        params.load_mode = MMAP if spec.mmap and not dry_run and not spec.keeps_layout else NO_MMAP
        params.use_extra_bufts = not spec.keeps_layout
        params.no_alloc = dry_run
        self._keep: list[Any] = []  # ctypes objects that llama.cpp points into while loading
        if progress is not None:
            callback = lib.llama_progress_callback(lambda fraction, _: progress(fraction))
            params.progress_callback = callback
            self._keep.append(callback)
        if spec.cpu_expert_layers:
            params.tensor_buft_overrides = self._experts_on_cpu(spec.cpu_expert_layers)
        self.handle = lib.llama_model_load_from_file(os.fsencode(spec.path), params)
        if not self.handle:
            raise ModelFileError(
                f"llama.cpp cannot load {spec.path.name}: {log.reason('no reason given')}.",
                "Check that the file is whole, or that this version of llama.cpp knows its architecture.",
            )
        self.vocab = Vocab(self.handle)

    def _experts_on_cpu(self, layers: int) -> ctypes.c_void_p:
        """llama_model_tensor_buft_override[]: expert tensors of the first `layers` layers stay in host memory."""

        class Override(ctypes.Structure):
            _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))

        libggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
        host = libggml.ggml_backend_cpu_buffer_type()
        patterns = [r"_(ch|)exps\."] if layers < 0 else [rf"blk\.{i}\.ffn_.*_(ch|)exps\." for i in range(layers)]
        overrides = (Override * (len(patterns) + 1))(*[Override(p.encode(), host) for p in patterns])
        self._keep.append(overrides)
        return ctypes.c_void_p(ctypes.addressof(overrides))

    def metadata(self, key: str) -> str | None:
        """One metadata value as text, None when the file has no such key."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, size)
            if length < 0:
                return None
            if length < size:
                return buffer.value.decode("utf-8", "replace")
            size = length + 1

    def chat_template(self) -> str | None:
        """The model's own chat template, a Jinja source."""
        template = lib.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else None

    @property
    def trained_context_tokens(self) -> int:
        """The context length the model was trained for."""
        return int(lib.llama_model_n_ctx_train(self.handle))

    @functools.cached_property
    def sliding_window(self) -> int:
        """Positions a sliding-window layer sees; 0 for a model without such layers."""
        return int(lib.llama_model_n_swa(self.handle))

    @functools.cached_property
    def forgets(self) -> bool:
        """Whether the cache cannot go back freely: sliding windows, recurrent or hybrid models."""
        return self.recurrent or self.sliding_window > 0

    @functools.cached_property
    def recurrent(self) -> bool:
        """Whether some layers keep a state instead of cells: a decode of several sequences is cut into several."""
        return bool(lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle))

    def close(self) -> None:
        """Free the model."""
        if self.handle:
            lib.llama_model_free(self.handle)
            self.handle = None


class Context:
    """A model's KV cache and compute buffers, and one decode at a time over several sequences."""

    def __init__(
        self,
        model: Model,
        spec: LoadSpec,
        *,
        on_node: Any = None,
        all_logits: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """on_node: a lib.ggml_backend_sched_eval_callback that is asked about every node of the graph.
        all_logits: every entry of a batch may want logits; else one a sequence.

        Raises LoadError when the buffers cannot be had.
        """
        log = start()
        log.errors.clear()
        self.model = model
        self.n_seq = spec.parallel
        params = lib.llama_context_default_params()
        params.n_ctx = spec.cells
        params.n_batch = params.n_ubatch = min(batch_tokens, spec.cells)
        params.n_seq_max = spec.parallel
        # Only the last token of a prompt and each newly generated one is looked at: with llama.cpp's default the
        # logits of a whole batch are reserved, half a GiB for a vocabulary of 262,144.
        params.n_outputs_max = params.n_batch if all_logits else spec.parallel
        params.n_threads = params.n_threads_batch = spec.threads or physical_cores()
        params.type_k = params.type_v = _KV_TYPES[spec.kv_type]
        params.swa_full = False  # the binding's default keeps 3,520 MiB where 620 do (16k, Gemma 4 26B)
        params.kv_unified = True  # sequences share the cells, so that one long conversation may use them all
        params.no_perf = True
        if on_node is not None:
            params.cb_eval = on_node
            self._on_node = on_node  # llama.cpp keeps the pointer alone
        self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise LoadError(
                f"No memory for a context of {spec.cells} tokens: {log.reason('llama.cpp gives no reason')}.",
                "Lower context_tokens or parallel in the roster, or free memory.",
            )
        self.memory = lib.llama_get_memory(self.handle)
        self.n_batch: int = lib.llama_n_batch(self.handle)
        self._batch = lib.llama_batch_init(self.n_batch, 0, 1)

    def decode(self, entries: Iterable[tuple[int, int, int, bool]]) -> int:
        """Evaluate (token, position, sequence, wants_logits) entries, at most n_batch of them, in one call.

        Returns llama_decode's result: 0 done, 1 no room in the cache (nothing changed), 2 aborted, below 0 an error.
        """
        batch = self._batch
        count = 0
        for token, position, sequence, wanted in entries:
            batch.token[count] = token
            batch.pos[count] = position
            batch.n_seq_id[count] = 1
            batch.seq_id[count][0] = sequence
            batch.logits[count] = wanted
            count += 1
        batch.n_tokens = count
        return int(lib.llama_decode(self.handle, batch))

    def logits(self, index: int) -> Any:
        """float32 array (n_vocab,) of the batch entry `index`: a view, valid until the next decode."""
        import numpy as np

        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.handle, index), (self.model.vocab.n_tokens,))

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop a sequence's cells from position `start`; False when this kind of cache cannot drop a part."""
        return bool(lib.llama_memory_seq_rm(self.memory, sequence, start, -1))

    def copy_sequence(self, source: int, target: int, end: int) -> None:
        """Let `target` share the cells of `source` before position `end`."""
        lib.llama_memory_seq_cp(self.memory, source, target, 0, end)

    def first_position(self, sequence: int) -> int:
        """The lowest position the whole cache still holds for a sequence, -1 for none."""
        return int(lib.llama_memory_seq_pos_min(self.memory, sequence))

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        lib.llama_synchronize(self.handle)

    def state_bytes(self, sequence: int) -> int:
        """Bytes of a sequence's whole state, as `save` would give it now."""
        return int(lib.llama_state_seq_get_size_ext(self.handle, sequence, 0))

    def save(self, sequence: int, *, partial: bool) -> NDArray[Any] | None:
        """A sequence's state in host memory, None when llama.cpp cannot give it.

        partial: only what cannot be rolled back (sliding window, recurrent state).
        """
        import numpy as np

        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        state = np.empty(lib.llama_state_seq_get_size_ext(self.handle, sequence, flags), np.uint8)
        target = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = lib.llama_state_seq_get_data_ext(self.handle, target, state.nbytes, sequence, flags)
        return state if written == state.nbytes else None

    def restore(self, sequence: int, state: NDArray[Any], *, partial: bool) -> bool:
        """Put a saved state back; after a partial one the caller drops the later cells of the other layers."""
        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        source = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(lib.llama_state_seq_set_data_ext(self.handle, source, state.nbytes, sequence, flags))

    def close(self) -> None:
        """Free the cache and the buffers."""
        if self.handle:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self.handle)
            self.handle = None


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two lists share from the start."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    low, high = 0, size  # left[:low] is shared, left[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low

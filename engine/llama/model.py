"""A GGUF model loaded by llama.cpp."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import llama_cpp.llama_cpp as lib
from llama_cpp._ggml import libggml

from ..errors import LoadError, ModelFileError
from ..shortage import find_shortage
from ..spec import LoadSpec
from .devices import card_handles
from .log import start
from .memory import out_of_memory
from .vocab import Vocab

NO_MMAP: Final = lib.LLAMA_LOAD_MODE_NONE
MMAP: Final = lib.LLAMA_LOAD_MODE_MMAP


class Model:
    """A loaded GGUF. Close it (or leave the process) to give the memory back."""

    def __init__(
        self, spec: LoadSpec, *, dry_run: bool = False, progress: Callable[[float], bool] | None = None
    ) -> None:
        """dry_run: header, vocabulary and sizes only, no weights. progress: called with 0..1, False stops the load.

        Raises ModelFileError when llama.cpp refuses the file, with llama.cpp's own reason, OutOfMemoryError when there
        is too little memory for it, and LoadError when a card of the spec is not there.
        """
        log = start()
        log.errors.clear()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = spec.gpu_layers
        params.load_mode = MMAP if spec.mmap and not dry_run and not spec.keeps_layout else NO_MMAP
        params.use_extra_bufts = not spec.keeps_layout
        params.no_alloc = dry_run
        self._keep: list[Any] = []  # ctypes objects that llama.cpp points into while loading
        if not spec.gpu_layers or spec.devices:
            # Without a list llama.cpp takes every card: its contexts open on them, and long prompts are computed there,
            # though no layer lies on any. Source: llama.cpp, llama_prepare_model_devices.
            params.devices = self._devices(spec.devices if spec.gpu_layers else ())
        if spec.tensor_split:
            params.tensor_split = self._split(spec.tensor_split)
        if progress is not None:
            callback = lib.llama_progress_callback(lambda fraction, _: progress(fraction))
            params.progress_callback = callback
            self._keep.append(callback)
        if spec.cpu_expert_layers:
            params.tensor_buft_overrides = self._experts_on_cpu(spec.cpu_expert_layers)
        self.handle = lib.llama_model_load_from_file(os.fsencode(spec.path), params)
        if not self.handle:
            if (shortage := find_shortage(log.errors)) is not None:
                raise out_of_memory(f"{spec.path.name} cannot be loaded", shortage, spec.devices)
            raise ModelFileError(
                f"llama.cpp cannot load {spec.path.name}: {log.reason('no reason given')}.",
                "Check that the file is whole, or that this version of llama.cpp knows its architecture.",
            )
        self.vocab = Vocab(self.handle)

    def _devices(self, names: Sequence[str]) -> ctypes.c_void_p:
        """ggml_backend_dev_t[]: the cards of these names, which NULL ends. Raises LoadError where one is not there."""
        handles = card_handles(names) if names else []
        if len(handles) < len(names):
            raise LoadError(f"llama.cpp does not see all of the cards {', '.join(names)}.", "See: coe doctor")
        listed = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
        self._keep.append(listed)
        return ctypes.c_void_p(ctypes.addressof(listed))

    def _split(self, parts: Sequence[float]) -> Any:
        """float[llama_max_devices()]: each card's part of the layers."""
        listed = (ctypes.c_float * lib.llama_max_devices())(*parts)
        self._keep.append(listed)
        return ctypes.cast(listed, ctypes.POINTER(ctypes.c_float))

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

    @property
    def n_embedding(self) -> int:
        """Numbers of an embedding."""
        return int(getattr(lib, "llama_model_n_embd_out", lib.llama_model_n_embd)(self.handle))

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

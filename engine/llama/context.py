"""A model's KV cache and compute buffers: decoding, logits, and saving and restoring sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import llama_cpp.llama_cpp as lib

from ..errors import LoadError
from ..shortage import find_shortage
from ..spec import LoadSpec
from .devices import physical_cores
from .log import start
from .memory import out_of_memory
from .model import Model
from .pooling import pooled_reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_TOKENS: Final = 512  # tokens in one decode; also the compute buffer's size

# Logits of one decode where prompts are scored. llama.cpp keeps them twice, in the compute and in the output buffer:
# 32 rows of a vocabulary of 262,144 are 64 MiB together; a whole batch of 512 would be a GiB.
_LOGITS_BYTES: Final = 32 * 2**20
_MOST_OUTPUTS: Final = 64

_KV_TYPES: Final = {"f16": 1, "q8_0": 8, "q4_0": 2, "bf16": 30, "f32": 0}  # ggml.h, enum ggml_type


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

        Raises OutOfMemoryError when there is too little memory for the buffers, LoadError for any other reason.
        """
        self._log = log = start()
        log.errors.clear()
        self.model = model
        self.n_seq = spec.parallel
        params = lib.llama_context_default_params()
        reading = pooled_reading(model, spec) if spec.embeddings else None
        self.n_cells = reading.input_tokens if reading is not None else spec.cells
        if reading is not None:
            batch_tokens = reading.batch_tokens
        params.n_ctx = self.n_cells
        params.n_batch = params.n_ubatch = min(batch_tokens, self.n_cells)
        params.n_seq_max = spec.parallel
        # Of most prompts the last token alone is looked at, and those that are scored are read in small pieces: with
        # llama.cpp's default the logits of a whole batch are reserved, half a GiB for a vocabulary of 262,144.
        whole = all_logits or spec.embeddings
        params.n_outputs_max = params.n_batch if whole else _outputs(model.vocab.n_tokens, spec.parallel)
        params.embeddings = spec.embeddings  # pooled as the file says
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
            if (shortage := find_shortage(log.errors)) is not None:
                raise out_of_memory(f"{spec.path.name} has no context of {self.n_cells} tokens", shortage, spec.devices)
            raise LoadError(
                f"No memory for a context of {self.n_cells} tokens: {log.reason('llama.cpp gives no reason')}.",
                "Lower context_tokens or parallel in the roster, or free memory.",
            )
        self.memory = lib.llama_get_memory(self.handle)
        if not self.memory and not spec.embeddings:
            lib.llama_free(self.handle)
            raise LoadError(
                f"{spec.path.name} reads texts and writes none (an encoder).",
                "Write embeddings: true in its entry, and ask it at /v1/embeddings.",
            )
        self._devices = spec.devices
        self.n_batch: int = lib.llama_n_batch(self.handle)
        self.n_outputs = int(params.n_outputs_max)  # entries of one decode that may want logits
        self._batch = lib.llama_batch_init(self.n_batch, 0, 1)

    @property
    def unreserved_bytes(self) -> int:
        """What the output buffer may still grow by: llama.cpp reserves logits for one output a sequence, and more when
        a decode first wants them. Source: llama-context.cpp, llama_context::output_reserve."""
        return 4 * self.model.vocab.n_tokens * max(0, self.n_outputs - self.n_seq)

    def decode(self, entries: Iterable[tuple[int, int, int, bool]]) -> int:
        """Evaluate (token, position, sequence, wants_logits) entries, at most n_batch of them, in one call.

        Returns llama_decode's result: 0 done, 1 no room in the cache (nothing changed), 2 aborted, below 0 an error.
        Raises OutOfMemoryError where that is want of memory: the context is not to be used any more.
        """
        self._log.errors.clear()
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
        result = int(lib.llama_decode(self.handle, batch))
        if result < 0 and (shortage := find_shortage(self._log.errors)) is not None:
            raise out_of_memory(f"A batch of {count} tokens could not be computed", shortage, self._devices)
        return result

    def logits(self, index: int) -> Any:
        """float32 array (n_vocab,) of the batch entry `index`: a view, valid until the next decode."""
        import numpy as np

        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.handle, index), (self.model.vocab.n_tokens,))

    def embedding(self, sequence: int) -> Any:
        """float32 array (n_embd,) of a sequence that the last decode ended, pooled: a view, valid until the next."""
        import numpy as np

        return np.ctypeslib.as_array(lib.llama_get_embeddings_seq(self.handle, sequence), (self.model.n_embedding,))

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop a sequence's cells from position `start`; False when this kind of cache cannot drop a part."""
        if not self.memory:  # an encoder has no cache
            return True
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


def _outputs(n_vocab: int, parallel: int) -> int:
    """Entries of one decode that may want logits: each sequence's newest, and as many more as scoring is worth."""
    return max(parallel, min(_MOST_OUTPUTS, _LOGITS_BYTES // (4 * n_vocab)))

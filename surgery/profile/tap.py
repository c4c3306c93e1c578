"""The router tap: reading and forbidding expert choices through llama.cpp's graph callback (`cb_eval`).

A node that is asked for ends a run of the graph's nodes and waits for the device, so as few as possible are: one a
layer for choices and weights, one more for norms, one more where scores are read or experts are forbidden.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from coe.engine.errors import EngineError
from coe.engine.llama.context import BATCH_TOKENS, Context
from coe.engine.llama.ggml import (
    F32,
    I32,
    NAME_OFFSET,
    GgmlTensor,
    buffer_is_host,
    require_layout,
    tensor_get,
    tensor_set,
)
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec

from ..architectures import Experts
from ..errors import SurgeryError

_LOGITS_BYTES: Final = 256 * 2**20  # of one decode; the device and the host have as much each


class TapError(SurgeryError):
    """The router cannot be watched: the graph is not what the table of architectures says."""


@dataclass(frozen=True)
class Observation:
    """What the router did with the tokens of one decode.

    Axes: L watched layers (ascending), T tokens in the order of the batch, R ranks (0: the first choice), E experts.

    chosen:  [L, T, R] int32, -1 where a layer uses fewer experts than another.
    weights: [L, T, R] float32, as the graph uses them but for a constant scale; 0 where chosen is -1.
    scores:  [L, T, E] float32, what the choice was made by (forbidden experts: -inf); None when not asked for.
    norms:   [L, T, R] float32, L2 norm of weight x expert output; None when not asked for.
    peaks:   [L, T, R] float32, largest |value| of the expert's own output; None with norms.
    """

    chosen: NDArray[np.int32]
    weights: NDArray[np.float32]
    scores: NDArray[np.float32] | None = None
    norms: NDArray[np.float32] | None = None
    peaks: NDArray[np.float32] | None = None


class RouterTap:
    """Is called by llama.cpp around graph nodes, keeps what they hold, and writes -inf for forbidden experts.

    `callback` goes to the context; `begin`, then one llama_decode of a single ubatch, then `end`.
    blocked: [L, E] bool, experts that must not be chosen; may be changed between decodes, None for none.
    """

    def __init__(self, experts: Experts, *, scores: bool = False, norms: bool = False) -> None:
        """Raises LayoutError when this build of llama.cpp cannot be read."""
        require_layout()
        self.layers = experts.layers
        self.blocked: NDArray[np.bool_] | None = None
        self.last_row: int | None = None  # after this layer's nodes the rest of the graph is left out; None: never
        self._n_expert, self._n_used = experts.n_expert, experts.n_used
        self._want_scores, self._want_norms = scores, norms
        names = experts.architecture
        kinds: dict[str, Callable[[int, int, bool], bool]] = {
            names.selects_by: self._on_selection,
            "ffn_moe_topk": self._on_choice,
            names.weights: self._on_weights,
            "ffn_moe_weighted": self._on_weighted,
        }
        # Whole names: "ffn_moe_weights_norm-0 (reshaped)" is another node.
        self._nodes = {
            f"{name}-{layer}".encode(): (handler, row)
            for name, handler in kinds.items()
            for row, layer in enumerate(self.layers)
        }
        self._choices: dict[int, int] = {}
        self._failure: BaseException | None = None
        self._done = False
        self._scratch = np.empty(0, np.uint8)
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)
        self.begin(0)

    def begin(self, n_tokens: int) -> None:
        """Make ready for a decode of this many tokens."""
        shape = (len(self.layers), n_tokens, self._n_used)
        self._n_tokens = n_tokens
        self._chosen = np.full(shape, -1, np.int32)
        self._weights = np.zeros(shape, np.float32)
        self._scores = np.zeros((*shape[:2], self._n_expert), np.float32) if self._want_scores else None
        self._norms = np.zeros(shape, np.float32) if self._want_norms else None
        self._peaks = np.zeros(shape, np.float32) if self._want_norms else None
        self.rows_seen = np.zeros(len(self.layers), np.int64)  # tokens a layer's router saw
        self._choices.clear()
        self._failure = None
        self._done = False

    def end(self) -> Observation:
        """What was seen. Raises what went wrong in the hook, where it could not be raised."""
        self._done = True
        if self._failure is not None:
            raise self._failure
        return Observation(self._chosen, self._weights, self._scores, self._norms, self._peaks)

    # --- called by llama.cpp ------------------------------------------------------------------------------------

    def _on_node(self, address: int, asked: bool, _: Any) -> bool:
        """asked: whether the node is wanted; else its values are there, and False leaves out the rest of its split.

        Source: ggml-backend.cpp, ggml_backend_sched_compute_splits.
        """
        if self._done:
            return asked  # in every split that is still to come, one node and no more
        try:
            found = self._nodes.get(ctypes.string_at(address + NAME_OFFSET))
            if found is None:
                return not asked
            return found[0](found[1], address, asked)
        except BaseException as error:  # ctypes would print and forget it
            self._failure = error
            self._done = True
            return asked

    def _on_selection(self, row: int, address: int, asked: bool) -> bool:
        if asked:
            return self._want_scores or (self.blocked is not None and bool(self.blocked[row].any()))
        node = GgmlTensor.from_address(address)
        if not node.ne[1]:
            return True
        scores = self._read(node, address, F32, (node.ne[1], self._n_expert), (node.nb[1], 4))
        if self.blocked is not None and self.blocked[row].any():
            if node.nb[1] != 4 * self._n_expert:
                raise TapError(f"{node.name.decode()} has gaps between its rows and cannot be written.")
            scores = scores.copy()
            scores[:, self.blocked[row]] = -np.inf
            tensor_set(address, scores.ctypes.data, 0, scores.nbytes)
        if self._scores is not None:
            self._scores[row, : len(scores)] = scores
        return True

    def _on_choice(self, row: int, address: int, asked: bool) -> bool:
        # The experts' matrices are still to read it when the weights are there, so one wait serves for both.
        self._choices[row] = address
        return not asked

    def _on_weights(self, row: int, address: int, asked: bool) -> bool:
        if asked:
            return True
        choice = self._choices[row]
        node = GgmlTensor.from_address(choice)
        n_used, n_tokens = node.ne[0], node.ne[1]
        if n_tokens > self._n_tokens or n_used > self._n_used or self.rows_seen[row]:
            raise TapError(
                f"Layer {self.layers[row]} chose {n_used} experts for {n_tokens} tokens, of {self._n_tokens} given, "
                "or more than once in a decode.",
                "Give one ubatch at a time.",
            )
        self.rows_seen[row] = n_tokens
        if n_tokens:
            # A view of the sorted experts: a row is as long as all of them.
            self._chosen[row, :n_tokens, :n_used] = self._read(
                node, choice, I32, (n_tokens, n_used), (node.nb[1], node.nb[0])
            )
            weights = GgmlTensor.from_address(address)
            self._weights[row, :n_tokens, :n_used] = self._read(
                weights, address, F32, (n_tokens, n_used), (4 * n_used, 4)
            )
        return not self._is_last(row, before_norms=True)

    def _on_weighted(self, row: int, address: int, asked: bool) -> bool:
        if asked or self._norms is None or self._peaks is None:
            return self._want_norms if asked else True
        node = GgmlTensor.from_address(address)
        n_embd, n_used, n_tokens = node.ne[0], node.ne[1], node.ne[2]
        if n_tokens:
            outputs = self._read(node, address, F32, (n_tokens * n_used, n_embd), (node.nb[1], 4))
            norms = np.sqrt(np.einsum("ij,ij->i", outputs, outputs))
            peaks = np.maximum(outputs.max(1), -outputs.min(1)).astype(np.float64)
            # What it was multiplied with is intact: no later node has run. It carries the constant scale.
            used = GgmlTensor.from_address(node.src[1])
            factor = self._read(used, node.src[1], F32, (n_tokens * n_used,), (4,)).astype(np.float64)
            peaks = np.divide(peaks, np.abs(factor), out=np.zeros_like(peaks), where=factor != 0)
            self._norms[row, :n_tokens, :n_used] = norms.reshape(n_tokens, n_used)
            self._peaks[row, :n_tokens, :n_used] = peaks.reshape(n_tokens, n_used)
        return not self._is_last(row, before_norms=False)

    def _is_last(self, row: int, *, before_norms: bool) -> bool:
        self._done = row == self.last_row and before_norms is not self._want_norms
        return self._done

    def _read(
        self, node: GgmlTensor, address: int, kind: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> NDArray[Any]:
        """The node's values, valid until the next are read."""
        if node.type != kind:
            raise TapError(f"{node.name.decode()} is of ggml's type {node.type}, not {kind}.")
        dtype: Any = np.int32 if kind == I32 else np.float32
        n_bytes = 4 + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
        memory: Any
        if buffer_is_host(node.buffer):
            memory = (ctypes.c_uint8 * n_bytes).from_address(node.data)
        else:
            if self._scratch.nbytes < n_bytes:
                self._scratch = np.empty(n_bytes, np.uint8)
            memory = self._scratch.data
            tensor_get(address, self._scratch.ctypes.data, 0, n_bytes)
        return np.ndarray(shape, dtype, memory, 0, strides)


@dataclass(frozen=True)
class Evaluated:
    """A chunk of a document: its first position, its logits [T, n_vocab] (a view until the next decode) or None."""

    start: int
    logits: NDArray[np.float32] | None
    observed: Observation


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let the handlers of signals that come meanwhile run at the end.

    What a handler raises (Ctrl-C) would else be raised at the very beginning of the hook, where ctypes loses it.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler runs in another
        yield
        return
    came: list[int] = []
    held = {
        number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))
    }
    for number in held:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for came_in in came:
        signal.raise_signal(came_in)


class TappedContext:
    """A loaded parent or specialist with its router watched.

    Every layer's router sees every token, the last layer's too, which llama.cpp would otherwise spare those tokens
    whose logits are not asked for.
    """

    def __init__(
        self,
        model: Model,
        spec: LoadSpec,
        experts: Experts,
        *,
        logits: bool = False,
        scores: bool = False,
        norms: bool = False,
        blocked: NDArray[np.bool_] | None = None,
    ) -> None:
        """logits: keep the output layer. Without it the graph ends at the last router, and logits cannot be had.
        scores, norms: what an Observation is to hold beside choices and weights.
        blocked: [L, E], experts that must not be chosen.

        Raises TapError when the router's nodes are not found, LoadError when there is no memory.
        """
        self.model = model
        self.tap = RouterTap(experts, scores=scores, norms=norms)
        self.tap.blocked = blocked
        self._logits = logits
        self._all_outputs = logits
        self._context = self._open(spec)
        # Whether this architecture's last layer keeps all tokens is seen rather than tabled.
        if not logits and not self._complete():
            self._context.close()
            self._all_outputs = True
            self._context = self._open(spec)
        if not self._complete():
            unseen = [layer for layer, count in zip(self.tap.layers, self.tap.rows_seen, strict=True) if count < 2]
            self.close()
            raise TapError(
                f"The routers of the layers {unseen} were not seen at work.",
                "This build of llama.cpp names its nodes in another way: install the pinned llama-cpp-python.",
            )
        self.tap.last_row = None if logits else len(experts.layers) - 1

    def _open(self, spec: LoadSpec) -> Context:
        batch = BATCH_TOKENS
        while self._logits and batch > 32 and 4 * batch * self.model.vocab.n_tokens > _LOGITS_BYTES:
            batch //= 2
        return Context(self.model, spec, on_node=self.tap.callback, all_logits=self._all_outputs, batch_tokens=batch)

    def _complete(self) -> bool:
        """Whether every layer's router sees every token of a decode of two."""
        token = max(self.model.vocab.bos, 0)
        self._evaluate([(token, 0, 0), (token, 1, 0)])
        self._context.forget(0)
        return bool((self.tap.rows_seen == 2).all())

    def _evaluate(self, entries: Sequence[tuple[int, int, int]]) -> Observation:
        self.tap.begin(len(entries))
        with _signals_held():
            result = self._context.decode((*entry, self._all_outputs) for entry in entries)
        observed = self.tap.end()
        if result:
            raise EngineError(f"llama_decode failed with {result}.", "Give the context more cells.")
        return observed

    @property
    def n_batch(self) -> int:
        """Tokens in one decode, at most."""
        return self._context.n_batch

    def observe(self, entries: Sequence[tuple[int, int, int]]) -> Observation:
        """Evaluate (token, position, sequence) entries, at most n_batch, in one decode.

        Raises TapError when a layer did not see all of them, EngineError when llama.cpp refuses, and whatever was
        raised meanwhile, Ctrl-C included; the cache then holds nothing of use.
        """
        observed = self._evaluate(entries)
        if (self.tap.rows_seen != len(entries)).any():
            raise TapError(
                f"The routers saw {self.tap.rows_seen.tolist()} of {len(entries)} tokens.",
                "Give one sequence at a time.",
            )
        return observed

    def forget(self, sequence: int) -> None:
        """Drop a sequence's cells."""
        self._context.forget(sequence)

    def forget_all(self) -> None:
        """Drop all sequences' cells."""
        for sequence in range(self._context.n_seq):
            self._context.forget(sequence)

    def chunks(self, tokens: Sequence[int]) -> Iterator[Evaluated]:
        """Evaluate one document from position 0, chunk by chunk. Raises what `observe` raises."""
        self.forget(0)
        for start in range(0, len(tokens), self.n_batch):
            part = tokens[start : start + self.n_batch]
            observed = self.observe([(token, start + at, 0) for at, token in enumerate(part)])
            yield Evaluated(start, self._rows(len(part)) if self._logits else None, observed)

    def _rows(self, count: int) -> NDArray[np.float32]:
        rows = lib.llama_get_logits(self._context.handle)
        return np.ctypeslib.as_array(rows, (count, self.model.vocab.n_tokens))

    def evaluate(self, tokens: Sequence[int]) -> tuple[NDArray[np.float32] | None, Observation]:
        """Evaluate one document from position 0: logits [T, n_vocab], or None, and all that was observed.

        The logits of a long document take n_vocab x T x 4 bytes: `chunks` gives them piece by piece.
        """
        logits: list[NDArray[np.float32]] = []
        seen: list[Observation] = []
        for chunk in self.chunks(tokens):
            seen.append(chunk.observed)
            if chunk.logits is not None:
                logits.append(chunk.logits.copy())
        return (np.concatenate(logits) if self._logits else None), _joined(seen)

    def close(self) -> None:
        """Free the context; the model stays."""
        self._context.close()


def _joined(parts: Sequence[Observation]) -> Observation:
    """Observations of one document's chunks as one."""

    def whole(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays, axis=1)

    return Observation(*(whole(field.name) for field in fields(Observation)))

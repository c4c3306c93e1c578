"""A dry run in a process of its own: what a load would take, and whether it would work, without loading anything.

llama.cpp brings a model up with `no_alloc` in some milliseconds and logs every buffer it would make. A file that makes
it abort takes this process down, not the server. Run by engine.child.
"""

from __future__ import annotations

import functools
import math
import platform
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from ..cards import is_on_host
from ..child import Report
from ..errors import (
    EngineError,
    LoadError,
    ModelFileError,
    ModelTemplateError,
    NoRoomToTryError,
    PromptTooLongError,
)
from ..generate.prompt import PromptReader
from ..generate.renderer import Limits, RenderProcess
from ..gguf.header import Header, TensorInfo, expert_bytes
from ..gguf.reader import read_split
from ..last_words import is_no_device_memory
from ..llama.context import BATCH_TOKENS, Context
from ..llama.devices import devices, free_memory, has_card, system_info
from ..llama.ggml import require_layout
from ..llama.log import start
from ..llama.matrices import is_refused
from ..llama.model import Model
from ..process import rss_bytes
from ..request import GenerateRequest
from ..spec import (
    EmbeddingForm,
    Footprint,
    LoadSpec,
    ModelFacts,
    Thinking,
    ThinkingMode,
    ToolForm,
    untrained_note,
)
from .batch import BatchLoop
from .gpu_runtime import runtime_bytes

# Types that ggml keeps a copy of in another order for this kind of processor.
# Source: ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type.
_REPACKED = {Type.Q4_0, Type.Q4_K, Type.IQ4_NL, Type.MXFP4, Type.Q2_K}
if platform.machine().lower() in ("arm64", "aarch64"):
    _REPACKED = {Type.Q4_0, Type.Q4_K, Type.IQ4_NL, Type.MXFP4, Type.Q5_K, Type.Q6_K, Type.Q8_0}

# Architectures for which llama.cpp makes a tied output before the token embeddings that it is a copy of. Elsewhere it
# finds those in the same buffer, and takes them. Source: load_arch_tensors in llama.cpp's src/models/*.cpp.
_OUTPUT_FIRST = {"gemma3n", "gemma4"}

# llama.h, llama_token_data: one a token of the vocabulary in every thread that samples, and one more in each request's
# sampler where top-p sorts the whole vocabulary (llama-sampler.cpp, llama_sampler_top_p's buf_sort).
_CANDIDATE_BYTES = 12

# A dry run holds the start up: all of a template's renderings together have a few seconds.
_TRIAL = Limits(total_cpu_s=4)

_MIB = 2**20
_BUFFER = re.compile(r"(?P<where>\S+) +(?P<kind>compute|output) buffer size = +(?P<mib>[\d.]+) MiB")
# A cache logs where each of its layers lies (at level debug), and then its size. A model may have several: for windows,
# for the whole context, for recurrent states. Source: the constructors of llama_kv_cache and llama_memory_recurrent.
# Where a layer's weights go, the output counted as one more. Source: llama-model.cpp, load_tensors.
_ASSIGNED = re.compile(r"layer +(?P<layer>\d+) assigned to device (?P<where>[^,]+),")
_LAYER = re.compile(r"llama_(?:kv_cache|memory_recurrent)[:,] layer +(?P<layer>\d+): dev = (?P<where>\S+)")
_CACHE = re.compile(r"llama_(?P<kind>kv_cache|memory_recurrent): size = +(?P<mib>[\d.]+) MiB \((?P<rest>.*)")

# For a batch of prompt tokens Vulkan brings a layer's keys and values of this type to F16, of all cells in use, into a
# buffer that grows with them and is kept; not where the GPU's driver has matrix cores of NVIDIA's second kind. A block
# of 32 numbers has 34 bytes in the cache. Source: ggml-vulkan.cpp, ggml_vk_flash_attn, use_dequant_kv.
_WIDENED = re.compile(r"K \(q8_0\): .*V \(q8_0\): ")
_WIDER = 32 * 2 / 34
_READS_NARROW = "matrix cores: NV_coopmat2"


def on_device(tensor: TensorInfo, *, n_layers: int, gpu_layers: int, cpu_expert_layers: int) -> bool:
    """Whether llama.cpp puts a tensor on the GPU.

    Source: llama-model.cpp, load_tensors: the last `gpu_layers` layers, the output counted as one more; token
    embeddings always stay on the host.
    """
    offloaded = n_layers + 1 if gpu_layers < 0 else gpu_layers
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    if match is None:
        return offloaded > 0 and not tensor.name.startswith(("token_embd", "per_layer_token_embd"))
    layer = int(match[1])
    if "_exps." in tensor.name and (cpu_expert_layers < 0 or layer < cpu_expert_layers):
        return False
    return layer >= n_layers + 1 - offloaded


def card_weights(headers: Sequence[Header], spec: LoadSpec, layers: Mapping[int, str]) -> Counter[str]:
    """Bytes of weights on each of several GPUs, by name. layers: where llama.cpp has put each, the output as one more.

    What lies on them in all is what `weights` says.
    """
    n_layers = headers[0].count("block_count")
    layout = {"n_layers": n_layers, "gpu_layers": spec.gpu_layers, "cpu_expert_layers": spec.cpu_expert_layers}
    names = {tensor.name: tensor for header in headers for tensor in header.tensors}
    found: Counter[str] = Counter()
    for tensor in names.values():
        if on_device(tensor, **layout):
            match = re.match(r"blk\.(\d+)\.", tensor.name)
            found[layers[int(match[1]) if match is not None else n_layers]] += tensor.n_bytes
    if "output.weight" not in names and "token_embd.weight" in names and spec.gpu_layers:
        found[layers[n_layers]] += names["token_embd.weight"].n_bytes
    return found


def weights(headers: Sequence[Header], spec: LoadSpec, on_gpu: bool, refused: Collection[str] = ()) -> tuple[int, int]:
    """Bytes of weights on the GPU, and beside it in host memory; all in one where they do not go to a GPU.

    refused: tensors that the GPU does not take, see `refused_by_cards`.
    """
    tensors = [tensor for header in headers for tensor in header.tensors]
    total = sum(tensor.n_bytes for tensor in tensors)
    if not on_gpu:
        return total + _second_embeddings(headers, spec), 0
    n_layers = headers[0].count("block_count")
    layout = {"n_layers": n_layers, "gpu_layers": spec.gpu_layers, "cpu_expert_layers": spec.cpu_expert_layers}
    device = sum(t.n_bytes for t in tensors if on_device(t, **layout) and t.name not in refused)
    names = {tensor.name: tensor for tensor in tensors}
    if "output.weight" not in names and "token_embd.weight" in names and spec.gpu_layers:
        if "token_embd.weight" in refused:
            return device, total + _second_embeddings(headers, spec) - device
        # Tied: the output layer on the GPU has a copy of its own.
        device += names["token_embd.weight"].n_bytes
        total += names["token_embd.weight"].n_bytes
    return device, total - device


def _second_embeddings(headers: Sequence[Header], spec: LoadSpec) -> int:
    """Bytes of the copy of the token embeddings that is a tied output on the processor, where there is one in memory of
    the worker's own. In a mapped file both are the same bytes."""
    names = {tensor.name: tensor for header in headers for tensor in header.tensors}
    tied = "output.weight" not in names and "token_embd.weight" in names
    mapped = spec.mmap and not spec.keeps_layout
    if not tied or mapped or headers[0].architecture not in _OUTPUT_FIRST:
        return 0
    return names["token_embd.weight"].n_bytes


def refused_by_cards(headers: Sequence[Header], spec: LoadSpec) -> frozenset[str]:
    """Names of the tensors that would go to the GPU, and that it does not take: they stay in host memory."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    layout = {"n_layers": headers[0].count("block_count"), "gpu_layers": spec.gpu_layers, "cpu_expert_layers": 0}
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    going = [t for t in tensors if on_device(t, **layout) or (tied and t.name == "token_embd.weight")]
    used = headers[0].count("expert_used_count")
    return frozenset(t.name for t in going if is_refused(int(t.type), t.shape, t.n_bytes, used, spec.devices))


def without(headers: Sequence[Header], refused: Collection[str]) -> list[Header]:
    """The headers without some of their tensors."""
    return [replace(one, tensors=tuple(t for t in one.tensors if t.name not in refused)) for one in headers]


def movable_experts(headers: Sequence[Header], spec: LoadSpec) -> list[int]:
    """Bytes of each layer's experts that lie on the GPU where cpu_expert_layers leaves none in host memory."""
    n_layers = headers[0].count("block_count")
    first = max(0, n_layers + 1 - spec.gpu_layers) if spec.gpu_layers >= 0 else 0
    return [size if layer >= first else 0 for layer, size in enumerate(expert_bytes(headers))]


def layer_weights(headers: Sequence[Header], spec: LoadSpec) -> list[int]:
    """Bytes of weights of each layer on the GPU, in order, the output as one more: what several GPUs share out."""
    n_layers = headers[0].count("block_count")
    found = card_weights(headers, spec, {layer: str(layer) for layer in range(n_layers + 1)})
    first = max(0, n_layers + 1 - spec.gpu_layers) if spec.gpu_layers >= 0 else 0
    return [found[str(layer)] for layer in range(first, n_layers + 1)]


def copies(headers: Sequence[Header], spec: LoadSpec) -> int:
    """Bytes that weights take a second time on a processor whose ggml repacks them.

    The repacked matrices are memory of the worker's own. With mmap the file stays mapped beside them; without, only an
    embedding that serves as the output too is there twice: its rows are looked up in the file's order.
    """
    names = {tensor.name for header in headers for tensor in header.tensors}
    twice = [t for header in headers for t in header.tensors if t.type in _REPACKED and len(t.shape) > 1]
    if not spec.mmap or spec.keeps_layout:
        counted = _second_embeddings(headers, spec)  # among the weights
        twice = [t for t in twice if t.name == "token_embd.weight" and "output.weight" not in names and not counted]
    return sum(tensor.n_bytes for tensor in twice)


@dataclass(frozen=True)
class Buffers:
    """Bytes of a context's buffers: what lies on GPUs, and what in host memory.

    widened_device: a layer's cells in F16, as Vulkan makes them of others when the cache is full.
    card_bytes:     of cache and compute buffers, what lies on each GPU, by name.
    """

    kv_device: int = 0
    kv_host: int = 0
    compute_device: int = 0
    compute_host: int = 0
    widened_device: int = 0
    card_bytes: Mapping[str, int] = field(default_factory=dict)


def buffers(log: Iterable[str], key_widths: Mapping[int, int] | None = None) -> Buffers:
    """What llama.cpp logged of a context's buffers.

    key_widths: of layers, how wide the keys are that a cell keeps; layers that are not named are taken to be alike.
    """
    bytes_at: Counter[tuple[str, bool]] = Counter()  # kv or compute, and whether on a GPU
    layers: dict[int, str] = {}  # of the cache that is being made: where each lies
    card_bytes: Counter[str] = Counter()
    widened = 0
    for line in log:
        if match := _BUFFER.search(line):
            size, where = round(float(match["mib"]) * _MIB), match["where"]
            bytes_at["compute", not is_on_host(where)] += size
            if not is_on_host(where):
                card_bytes[where] += size
        elif match := _LAYER.search(line):
            layers[int(match["layer"])] = match["where"]
        elif match := _CACHE.search(line):
            size = round(float(match["mib"]) * _MIB)
            parts = _parts(layers, (key_widths or {}) if match["kind"] == "kv_cache" else {})
            on_device = round(size * sum(part for layer, part in parts.items() if not is_on_host(layers[layer])))
            bytes_at["kv", True] += on_device
            bytes_at["kv", False] += size - on_device
            for layer, part in parts.items():
                if not is_on_host(layers[layer]):
                    card_bytes[layers[layer]] += round(size * part)
            if _WIDENED.search(match["rest"]):
                by_vulkan = [part for layer, part in parts.items() if layers[layer].startswith("Vulkan")]
                widened = max(widened, round(size * _WIDER * max(by_vulkan, default=0.0)))
            layers = {}
    return Buffers(
        bytes_at["kv", True],
        bytes_at["kv", False],
        bytes_at["compute", True],
        bytes_at["compute", False],
        widened,
        card_bytes,
    )


def _parts(layers: Iterable[int], widths: Mapping[int, int]) -> dict[int, float]:
    """The part of a cache that each of its layers has, 0..1; all alike where one's width is not known."""
    found = {layer: widths.get(layer, 0) for layer in layers}
    if not all(found.values()):
        found = dict.fromkeys(found, 1)
    total = sum(found.values())
    return {layer: width / total for layer, width in found.items()}


def key_widths(headers: Sequence[Header]) -> dict[int, int]:
    """How wide the keys of each layer are that has a matrix for them alone: layer -> numbers a cell."""
    found = {}
    for tensor in (tensor for header in headers for tensor in header.tensors):
        if (match := re.fullmatch(r"blk\.(\d+)\.attn_k\.weight", tensor.name)) and len(tensor.shape) == 2:
            found[int(match[1])] = tensor.shape[1]
    return found


@dataclass(frozen=True)
class DryRun:
    """What loading a spec would come to.

    refused:    specialists whose thinking policy or system prompt the model cannot carry out: name -> why.
    chat_fault: why the model cannot answer chats; None when it can.
    tools:      how its chat template writes calls of tools.
    embedding:  what it gives, where it is loaded for embeddings.
    infill:     whether its vocabulary has the tokens of fill in the middle.
    """

    footprint: Footprint
    refused: dict[str, str]
    chat_fault: EngineError | None
    tools: ToolForm
    embedding: EmbeddingForm | None = None
    infill: bool = False


def dry_run(spec: LoadSpec, has_gpu: bool, policies: dict[str, Any], chats: Sequence[GenerateRequest] = ()) -> DryRun:
    """Bring the model up without memory, add up, and try its chat template. Raises EngineError when it would not load.

    What sharing needs of llama.cpp is looked at too: LayoutError says that specialists have to be loaded apart.
    """
    headers = read_split(spec.path)
    if spec.sharing is not None:
        require_layout()
    budgeted = Budgeted.HOST if not has_gpu else Budgeted.GPU if spec.gpu_layers else Budgeted.BESIDE_GPU
    log = start()
    reads_narrow = any(_READS_NARROW in line for line in log.lines)  # said once, when ggml looked for GPUs
    log.lines.clear()
    model = Model(spec, dry_run=True)
    repacks = any("CPU_REPACK model buffer size" in line for line in log.lines)
    layers = {int(match["layer"]): match["where"] for line in log.lines if (match := _ASSIGNED.search(line))}
    log.lines.clear()
    sizes_with = functools.partial(_footprint, model, spec, headers, budgeted, repacks=repacks, layers=layers)
    context = Context(model, spec)
    found = buffers(log.lines, key_widths(headers))
    if reads_narrow:
        found = replace(found, widened_device=0)
    if spec.embeddings:
        form = EmbeddingForm(model.n_embedding, context.n_cells)
        overhead = rss_bytes()
        context.close()
        sizes = sizes_with(found=found, overhead=overhead)
        return DryRun(sizes, {}, None, ToolForm(), form)
    found = replace(found, compute_host=found.compute_host + context.unreserved_bytes)
    # All that a worker holds beside buffers and weights is here now: libraries, vocabulary, chat template.
    prompts = PromptReader(model, spec, renderer=functools.partial(RenderProcess, limits=_TRIAL))
    loop = BatchLoop(model, context, spec, lambda event: None, prompts=prompts)
    overhead = (
        rss_bytes()
        + prompts.renderer_bytes
        + _CANDIDATE_BYTES * model.vocab.n_tokens * (min(spec.parallel, spec.threads or 4) + spec.parallel)
    )
    overhead += spec.ram_budget_bytes
    refused, chat_fault = try_policies(prompts, policies)
    if chat_fault is None and prompts.template is not None:
        refused = {**too_long(prompts, chats), **refused}
    infill = model.vocab.infill is not None
    loop.close()
    context.close()
    sizes = sizes_with(found=found, overhead=overhead)
    support = prompts.tool_support
    tools = ToolForm(support.family.name if support.family is not None else None, support.fault)
    return DryRun(sizes, refused, chat_fault, tools, infill=infill)


class Budgeted(Enum):
    """What a load takes of the memory that the budget counts."""

    GPU = auto()  # what lies on GPUs; the rest is host memory beside it
    HOST = auto()  # all of it: there is no GPU, and the budget is of host memory
    BESIDE_GPU = auto()  # nothing: the budget is of a GPU, which it keeps off


def _footprint(
    model: Model,
    spec: LoadSpec,
    headers: Sequence[Header],
    budgeted: Budgeted,
    *,
    repacks: bool,
    layers: Mapping[int, str],
    found: Buffers,
    overhead: int,
) -> Footprint:
    """The sum of a load: what llama.cpp logged, the file's weights, and the process itself. layers: see
    `card_weights`."""
    refused = refused_by_cards(headers, spec) if budgeted is Budgeted.GPU else frozenset()
    device_weights, host_weights = weights(headers, spec, budgeted is Budgeted.GPU, refused)
    notes = []
    if refused:
        first, others = min(refused), len(refused) - 1
        which = f"{first} and {others} more stay" if others else f"{first} stays"
        notes.append(f"{which} in host memory: the GPU multiplies by no matrix of that size")
    if repacks and budgeted is not Budgeted.GPU and (extra := copies(headers, spec)):
        device_weights += extra
        if spec.mmap:
            notes.append(f"the processor's own copies of weights take {extra / _MIB:.0f} MiB; mmap: false avoids most")
    untrained = untrained_note(spec.context_tokens, model.trained_context_tokens)
    if untrained and not spec.embeddings:  # which reads no more than that
        notes.append(untrained)
    if budgeted is not Budgeted.GPU:
        kv, compute = found.kv_device + found.kv_host, found.compute_device + found.compute_host
        if budgeted is Budgeted.BESIDE_GPU:
            return Footprint(0, 0, 0, 0, device_weights + kv + compute + overhead, tuple(notes))
        return Footprint(device_weights, kv, compute, overhead, 0, tuple(notes))
    runtime = runtime_bytes(spec.devices)
    by_card: dict[str, int] = {}
    widened = found.widened_device
    if len(spec.devices) > 1:
        placed = card_weights(without(headers, refused), spec, layers)
        # Each card may be the one that widens the largest of the layers; and where one takes over from another, a real
        # load keeps a batch's states in a buffer of the graph, of which a dry run, without memory, knows nothing.
        each = widened + 4 * model.n_embedding * min(BATCH_TOKENS, spec.cells)
        by_card = {
            card: placed[card] + found.card_bytes.get(card, 0) + each + runtime // len(spec.devices)
            for card in spec.devices
        }
        widened = each * len(spec.devices)
    return Footprint(
        device_weights,
        found.kv_device,
        found.compute_device + widened,
        runtime,
        host_weights + found.kv_host + found.compute_host + overhead,
        tuple(notes),
        tuple(by_card.items()),
    )


def try_policies(prompts: PromptReader, policies: dict[str, Any]) -> tuple[dict[str, str], EngineError | None]:
    """Thinking policies that the model's template cannot carry out, name -> why; and why it cannot answer chats, None
    when it can. A template that costs too much is not asked again."""
    refused: dict[str, str] = {}
    if prompts.template is None:
        return refused, prompts.chat_fault
    for name, policy in policies.items():
        try:
            prompts.template.check(Thinking(**{**policy, "mode": ThinkingMode(policy["mode"])}))
        except ModelTemplateError as error:
            return {}, error
        except EngineError as error:
            refused[name] = str(error)
    return refused, None


def too_long(prompts: PromptReader, chats: Iterable[GenerateRequest]) -> dict[str, str]:
    """Specialists whose shortest chat leaves no room for an answer, name -> why: every longer one would be refused."""
    found: dict[str, str] = {}
    for chat in chats:
        try:
            prompts.read(chat, None, 0)
        except PromptTooLongError as error:
            key = "server.max_prompt_tokens" if error.by_roster else "context_tokens"
            found[chat.specialist] = (
                f"Its shortest prompt has {'at least ' if error.at_least else ''}{error.prompt_tokens} tokens, system "
                f"prompt and chat template, and {key} is {error.limit_tokens}: every chat would be refused. "
                f"Shorten its system_prompt, or raise {key}."
            )
        except EngineError:
            continue  # what else is wrong is said elsewhere
    return found


def facts_of(headers: Sequence[Header]) -> ModelFacts:
    """What a file says of itself. headers: of all its parts."""
    first = headers[0]
    number = first.metadata.get("general.file_type")
    number = number if isinstance(number, int) and number in set(LlamaFileType) else None
    return ModelFacts(
        architecture=first.architecture,
        parameters=sum(math.prod(tensor.shape) for header in headers for tensor in header.tensors),
        layers=first.count("block_count"),
        embedding_length=first.count("embedding_length"),
        file_type=LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_") if number is not None else "",
        file_type_number=number,
    )


def main(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """What the child answers: what loading a job's spec would take, or without a spec this machine's devices."""
    start()
    if "spec" not in job:
        return {"devices": [vars(device) for device in devices()], "system_info": system_info()}
    spec = LoadSpec.from_json(job["spec"])
    chats = [GenerateRequest.from_json(chat) for chat in job.get("chats", ())]
    on_gpu = has_card(spec.devices)
    try:
        tried = dry_run(spec, on_gpu, job.get("policies", {}), chats)
    except (ModelFileError, LoadError) as error:
        if spec.gpu_layers and on_gpu and any(map(is_no_device_memory, [error.message, *start().errors])):
            raise NoRoomToTryError(f"dry run of {spec.path.name}", sum(free_memory(spec.devices).values())) from None
        raise
    headers = read_split(spec.path)
    taken = without(headers, refused_by_cards(headers, spec)) if on_gpu and spec.gpu_layers else headers
    answer: dict[str, Any] = {
        "on_gpu": on_gpu and spec.gpu_layers != 0,
        "facts": vars(facts_of(headers)),
        "expert_bytes": movable_experts(taken, spec) if on_gpu and spec.gpu_layers else [],
        "layer_bytes": layer_weights(taken, spec) if on_gpu and spec.gpu_layers else [],
        "footprint": vars(tried.footprint),
        "refused": tried.refused,
        "tools": vars(tried.tools),
        "embedding": vars(tried.embedding) if tried.embedding is not None else None,
        "infill": tried.infill,
    }
    if (fault := tried.chat_fault) is not None:
        answer["chat_fault"] = {"message": fault.message, "remedy": fault.remedy}
    return answer

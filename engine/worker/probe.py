"""A dry run in a process of its own: what a load would take, and whether it would work, without loading anything.

llama.cpp brings a model up with `no_alloc` in some milliseconds and logs every buffer it would make. A file that makes
it abort takes this process down, not the server. Run by engine.child.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from ..child import Report
from ..errors import EngineError, ModelTemplateError, PromptTooLongError
from ..generate.prompt import PromptReader
from ..generate.renderer import Limits
from ..gguf.header import Header, TensorInfo
from ..gguf.reader import read_split
from ..llama.context import Context
from ..llama.devices import devices, system_info
from ..llama.ggml import require_layout
from ..llama.log import start
from ..llama.model import Model
from ..process import rss_bytes
from ..request import GenerateRequest
from ..spec import Device, EmbeddingForm, Footprint, LoadSpec, ModelFacts, Thinking, ThinkingMode, ToolForm
from .batch import BatchLoop

# What a GPU's runtime takes of the card for a process, before any model: context, modules, library workspaces.
# An estimate; the pool measures the true figure with the first load.
GPU_RUNTIME_BYTES = 420 * 2**20

# Types that ggml keeps a copy of in another order for this kind of processor.
# Source: ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type.
_REPACKED = {Type.Q4_0, Type.Q4_K, Type.IQ4_NL, Type.MXFP4, Type.Q2_K}
if platform.machine().lower() in ("arm64", "aarch64"):
    _REPACKED = {Type.Q4_0, Type.Q4_K, Type.IQ4_NL, Type.MXFP4, Type.Q5_K, Type.Q6_K, Type.Q8_0}

_CANDIDATE_BYTES = 12  # llama.h, llama_token_data: one a token of the vocabulary in every thread that samples

# A dry run holds the start up: all of a template's renderings together have a few seconds.
_TRIAL = Limits(total_cpu_s=4)

_MIB = 2**20
_SIZE = re.compile(r"(?P<where>\S+) +(?P<kind>compute|output) buffer size = +(?P<mib>[\d.]+) MiB")
_CACHE = re.compile(r"(?:size|memory_recurrent: size) = +(?P<mib>[\d.]+) MiB \(")


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


def weights(headers: Sequence[Header], spec: LoadSpec, has_gpu: bool) -> tuple[int, int]:
    """Bytes of weights on the budgeted device and beside it in host memory."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    total = sum(tensor.n_bytes for tensor in tensors)
    if not has_gpu:
        return total, 0
    n_layers = headers[0].count("block_count")
    layout = {"n_layers": n_layers, "gpu_layers": spec.gpu_layers, "cpu_expert_layers": spec.cpu_expert_layers}
    device = sum(tensor.n_bytes for tensor in tensors if on_device(tensor, **layout))
    names = {tensor.name: tensor for tensor in tensors}
    if "output.weight" not in names and "token_embd.weight" in names and spec.gpu_layers:
        # Tied: the output layer on the GPU has a copy of its own.
        device += names["token_embd.weight"].n_bytes
        total += names["token_embd.weight"].n_bytes
    return device, total - device


def copies(headers: Sequence[Header], spec: LoadSpec) -> int:
    """Bytes that weights take a second time on a processor whose ggml repacks them.

    The repacked matrices are memory of the worker's own. With mmap the file stays mapped beside them; without, only an
    embedding that serves as the output too is there twice: its rows are looked up in the file's order.
    """
    names = {tensor.name for header in headers for tensor in header.tensors}
    twice = [t for header in headers for t in header.tensors if t.type in _REPACKED and len(t.shape) > 1]
    if not spec.mmap or spec.keeps_layout:
        twice = [t for t in twice if t.name == "token_embd.weight" and "output.weight" not in names]
    return sum(tensor.n_bytes for tensor in twice)


def buffers(log: Iterable[str]) -> tuple[int, int, int]:
    """KV bytes, compute bytes on GPUs (or on the host where there is none), and compute bytes on the host, logged."""
    kv = compute = host = 0.0
    for line in log:
        if match := _SIZE.search(line):
            if match["where"].startswith("CPU") or match["where"].endswith("_Host"):
                host += float(match["mib"])
            else:
                compute += float(match["mib"])
        elif ("kv_cache" in line or "memory_recurrent" in line) and (match := _CACHE.search(line)):
            kv += float(match["mib"])
    return int(kv * _MIB), int(compute * _MIB), int(host * _MIB)


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


def dry_run(
    spec: LoadSpec, found: Sequence[Device], policies: dict[str, Any], chats: Sequence[GenerateRequest] = ()
) -> DryRun:
    """Bring the model up without memory, add up, and try its chat template. Raises EngineError when it would not load.

    What sharing needs of llama.cpp is looked at too: LayoutError says that specialists have to be loaded apart.
    """
    headers = read_split(spec.path)
    if spec.sharing is not None:
        require_layout()
    has_gpu = any(device.kind == "gpu" for device in found) and spec.gpu_layers != 0
    log = start()
    log.lines.clear()
    model = Model(spec, dry_run=True)
    repacks = any("CPU_REPACK model buffer size" in line for line in log.lines)
    log.lines.clear()
    context = Context(model, spec)
    kv, compute, host = buffers(log.lines)
    if spec.embeddings:
        form = EmbeddingForm(model.n_embedding, context.n_cells)
        overhead = rss_bytes()
        context.close()
        sizes = _footprint(
            model, spec, headers, has_gpu=has_gpu, repacks=repacks, buffers=(kv, compute, host), overhead=overhead
        )
        return DryRun(sizes, {}, None, ToolForm(), form)
    host += context.unreserved_bytes
    # All that a worker holds beside buffers and weights is here now: libraries, vocabulary, chat template.
    prompts = PromptReader(model, spec, limits=_TRIAL)
    loop = BatchLoop(model, context, spec, lambda event: None, prompts=prompts)
    overhead = (
        rss_bytes()
        + prompts.renderer_bytes
        + _CANDIDATE_BYTES * model.vocab.n_tokens * min(spec.parallel, spec.threads or 4)
    )
    overhead += spec.ram_budget_bytes
    refused, chat_fault = try_policies(prompts, policies)
    if chat_fault is None and prompts.template is not None:
        refused = {**too_long(prompts, chats), **refused}
    infill = model.vocab.infill is not None
    loop.close()
    context.close()
    sizes = _footprint(
        model, spec, headers, has_gpu=has_gpu, repacks=repacks, buffers=(kv, compute, host), overhead=overhead
    )
    support = prompts.tool_support
    tools = ToolForm(support.family.name if support.family is not None else None, support.fault)
    return DryRun(sizes, refused, chat_fault, tools, infill=infill)


def _footprint(
    model: Model,
    spec: LoadSpec,
    headers: Sequence[Header],
    *,
    has_gpu: bool,
    repacks: bool,
    buffers: tuple[int, int, int],
    overhead: int,
) -> Footprint:
    """The sum of a load: what llama.cpp logged, the file's weights, and the process itself."""
    kv, compute, host = buffers
    device_weights, host_weights = weights(headers, spec, has_gpu)
    notes = []
    if repacks and not has_gpu and (extra := copies(headers, spec)):
        device_weights += extra
        if spec.mmap:
            notes.append(f"the processor's own copies of weights take {extra / _MIB:.0f} MiB; mmap: false avoids most")
    trained = model.trained_context_tokens
    if trained and spec.context_tokens > trained and not spec.embeddings:  # which reads no more than that
        notes.append(f"context_tokens {spec.context_tokens} is more than the {trained} the model was trained for")
    if not has_gpu:
        return Footprint(device_weights, kv, compute + host, overhead, 0, tuple(notes))
    n_layers = headers[0].count("block_count", 1)
    share = 1.0 if spec.gpu_layers < 0 else min(1.0, spec.gpu_layers / n_layers)
    kv_device = int(kv * share)
    return Footprint(
        device_weights,
        kv_device,
        compute,
        GPU_RUNTIME_BYTES,
        host_weights + kv - kv_device + host + overhead,
        tuple(notes),
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
    """What the child answers: this machine's devices and, for a job with a spec, what loading it would take."""
    start()
    found = devices()
    answer: dict[str, Any] = {"devices": [vars(device) for device in found], "system_info": system_info()}
    if "spec" in job:
        spec = LoadSpec.from_json(job["spec"])
        chats = [GenerateRequest.from_json(chat) for chat in job.get("chats", ())]
        tried = dry_run(spec, found, job.get("policies", {}), chats)
        answer["facts"] = vars(facts_of(read_split(spec.path)))
        answer["footprint"] = vars(tried.footprint)
        answer["refused"] = tried.refused
        answer["tools"] = vars(tried.tools)
        answer["embedding"] = vars(tried.embedding) if tried.embedding is not None else None
        answer["infill"] = tried.infill
        if (fault := tried.chat_fault) is not None:
            answer["chat_fault"] = {"message": fault.message, "remedy": fault.remedy}
    return answer

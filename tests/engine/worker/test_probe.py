"""Dry runs: what a load would take, told without loading, and files that bring llama.cpp down."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from random_model import Shape, write_random_model

from coe.engine.errors import EngineError, LoadError, ModelFileError, NoRoomToTryError, WorkerDiedError
from coe.engine.gguf.header import Header, TensorInfo
from coe.engine.gguf.reader import read_header, read_split
from coe.engine.llama import matrices
from coe.engine.llama.context import BATCH_TOKENS, Context
from coe.engine.llama.ggml import F16, GgmlTensor, ggml_function, n_bytes
from coe.engine.llama.log import start
from coe.engine.llama.model import Model
from coe.engine.pool import memory
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import GenerateRequest
from coe.engine.spec import LoadSpec, Sharing, Thinking, ThinkingMode
from coe.engine.worker import probe
from fakes.device import log_of_load, logged_buffers


def cells_of(log: list[str]) -> tuple[int, int]:
    """Cells of the full and of the sliding-window part, as llama.cpp logs them."""
    text = "\n".join(log)
    full = re.search(r"creating non-SWA KV cache, size = (\d+) cells", text)
    window = re.search(r"creating +SWA KV cache, size = (\d+) cells", text)
    assert full
    assert window
    return int(full[1]), int(window[1])


def real_load(spec: LoadSpec) -> list[str]:
    """What llama.cpp logs while it makes a context for real."""
    model = Model(spec)
    log = start()
    log.lines.clear()
    context = Context(model, spec)
    lines = list(log.lines)
    context.close()
    model.close()
    return lines


class TestPrediction:
    @pytest.mark.model
    @pytest.mark.host("compute and host buffers are one figure there; tests/device/test_memory.py has them by place")
    @pytest.mark.parametrize("model", ["smollm2", "random_gemma4"])
    async def test_kv_and_compute_are_what_a_real_load_logs(self, model: str, request: pytest.FixtureRequest) -> None:
        spec = LoadSpec(request.getfixturevalue(model), context_tokens=1024, parallel=2, threads=1, mmap=False)
        predicted = (await memory.predict(spec)).footprint
        found = probe.buffers(real_load(spec))
        kv, compute, host = found.kv_device + found.kv_host, found.compute_device, found.compute_host
        assert kv > 0
        assert predicted.kv_bytes == kv
        # llama.cpp logs the logits of one output a sequence; scoring a prompt makes it keep those of 64.
        scored = 4 * {"smollm2": 49_152, "random_gemma4": 512}[model] * (64 - spec.parallel)
        assert predicted.compute_bytes == compute + host + scored
        header = read_header(spec.path)
        embeddings = next(tensor.n_bytes for tensor in header.tensors if tensor.name == "token_embd.weight")
        copied = {"smollm2": 0, "random_gemma4": embeddings}[model]  # both are tied
        assert predicted.weights_bytes == header.weights_bytes + copied
        assert predicted.total_bytes > kv + compute + predicted.weights_bytes

    @pytest.mark.model
    @pytest.mark.host("a tied output is a copy on every GPU")
    @pytest.mark.parametrize("model", ["smollm2", "random_gemma4"])
    async def test_a_tied_output_is_counted_where_llama_cpp_copies_it(
        self, model: str, request: pytest.FixtureRequest
    ) -> None:
        spec = LoadSpec(request.getfixturevalue(model), context_tokens=512, parallel=1, threads=1, sharing=Sharing(()))
        real = logged_buffers(log_of_load(spec))["CPU", "model"]
        predicted = (await memory.predict(spec)).footprint.weights_bytes
        assert predicted / 2**20 == pytest.approx(real, abs=0.01)  # hundredths are logged

    @pytest.mark.model
    async def test_more_context_takes_more(self, random_gemma4: Path) -> None:
        small, large = [
            (await memory.predict(LoadSpec(random_gemma4, context_tokens=n, parallel=1))).footprint
            for n in (1024, 4096)
        ]
        assert large.kv_bytes > small.kv_bytes

    @pytest.mark.model
    @pytest.mark.parametrize(("context_tokens", "parallel", "window"), [(4096, 4, 128), (4096, 1, 512), (512, 2, 512)])
    def test_the_cells_of_a_sliding_window_follow_the_formula(
        self, tmp_path: Path, context_tokens: int, parallel: int, window: int
    ) -> None:
        path = write_random_model(tmp_path / "m.gguf", Shape(window=window))
        log = real_load(LoadSpec(path, context_tokens=context_tokens, parallel=parallel, threads=1))
        cells = min(context_tokens, window * parallel + min(BATCH_TOKENS, context_tokens))
        assert cells_of(log) == (context_tokens, -(-cells // 256) * 256)

    @pytest.mark.model
    async def test_a_context_beyond_the_trained_one_is_noted(self, random_gemma4: Path) -> None:
        predicted = await memory.predict(LoadSpec(random_gemma4, context_tokens=16384, parallel=1))
        assert any("16384 is more than the 8192" in note for note in predicted.footprint.notes)

    async def test_a_policy_that_the_template_cannot_carry_out_is_reported(
        self, smollm2_spec: LoadSpec, random_gemma4: Path
    ) -> None:
        policies = {"plain": Thinking(), "deep": Thinking(ThinkingMode.BUDGET, 100)}
        refused = (await memory.predict(smollm2_spec, policies)).refused
        assert list(refused) == ["deep"]
        assert "needs a model that thinks" in refused["deep"]
        assert not (await memory.predict(LoadSpec(random_gemma4, context_tokens=512), policies)).refused


def write_llama_moe(path: Path, *, experts: int, used: int) -> Path:
    """A llama-architecture mixture of experts; llama.cpp sizes its graph for fewer experts than some of these use."""
    layers, width, ff, vocabulary = 32, 32, 8, 300
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // 2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(used)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(vocabulary - 3))])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([2, 3, 3] + [1] * (vocabulary - 3))

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, np.ones(shape, np.float32))

    add("token_embd.weight", vocabulary, width)
    add("output_norm.weight", width)
    add("output.weight", vocabulary, width)
    for block in (f"blk.{layer}." for layer in range(layers)):
        for name in ("attn_norm", "ffn_norm"):
            add(f"{block}{name}.weight", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}{name}.weight", width, width)
        add(block + "ffn_gate_inp.weight", experts, width)
        add(block + "ffn_gate_exps.weight", experts, ff, width)
        add(block + "ffn_up_exps.weight", experts, ff, width)
        add(block + "ffn_down_exps.weight", experts, width, ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.model
class TestBadFiles:
    async def test_a_file_that_makes_llama_cpp_abort_is_an_error_and_we_live(self, tmp_path: Path) -> None:
        path = write_llama_moe(tmp_path / "abort.gguf", experts=48, used=32)
        with pytest.raises(ModelFileError, match=r"crashed on a dry run of abort\.gguf") as caught:
            await memory.predict(LoadSpec(path, context_tokens=256))
        assert "damaged" in caught.value.remedy

    async def test_a_worker_that_aborts_says_why_where_a_debugger_is_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # ggml would run it on the worker, and its lines come after the assertion's: more than anybody keeps.
        called = tmp_path / "called"
        (debugger := tmp_path / "gdb").write_text(f"#!/bin/sh\ntouch {called}\nseq 1000\n")
        debugger.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv("GGML_NO_BACKTRACE", raising=False)
        path = write_llama_moe(tmp_path / "abort.gguf", experts=48, used=32)
        with pytest.raises(WorkerDiedError, match=r"SIGABRT\): ggml.c:\d+: GGML_ASSERT\(obj_new\)"):
            await WorkerResident.start(LoadSpec(path, context_tokens=256), {})
        assert not called.exists()

    async def test_its_smaller_sibling_works(self, tmp_path: Path) -> None:
        path = write_llama_moe(tmp_path / "fine.gguf", experts=24, used=16)
        assert (await memory.predict(LoadSpec(path, context_tokens=256))).footprint.kv_bytes > 0

    @pytest.fixture
    def renamed(self, random_gemma4: Path, tmp_path: Path) -> Path:
        path = tmp_path / "renamed.gguf"
        path.write_bytes(random_gemma4.read_bytes().replace(b"blk.1.ffn_gate.weight", b"blk.1.ffn_gaze.weight"))
        return path

    async def test_a_missing_tensor_is_named(self, renamed: Path) -> None:
        with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_gate\.weight"):
            await memory.predict(LoadSpec(renamed, context_tokens=256))

    async def test_an_absent_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match=r"absent\.gguf cannot be read"):
            await memory.predict(LoadSpec(tmp_path / "absent.gguf"))

    async def test_an_error_keeps_its_kind_across_the_process(self, random_gemma4: Path) -> None:
        with pytest.raises((LoadError, ModelFileError)):
            await memory.predict(LoadSpec(random_gemma4, context_tokens=256, parallel=100_000))


class TestPlacement:
    """Which bytes go where when there is a GPU."""

    def tensor(self, name: str) -> TensorInfo:
        return TensorInfo(name, gguf.GGMLQuantizationType.F32, (1,), 4, 0)

    def on(self, name: str, gpu_layers: int = -1, cpu_expert_layers: int = 0) -> bool:
        return probe.on_device(
            self.tensor(name), n_layers=4, gpu_layers=gpu_layers, cpu_expert_layers=cpu_expert_layers
        )

    def test_everything_but_the_embeddings_goes_to_the_gpu(self) -> None:
        assert self.on("blk.0.attn_q.weight")
        assert self.on("output.weight")
        assert not self.on("token_embd.weight")

    def test_the_last_layers_go_first(self) -> None:
        assert not self.on("blk.2.attn_q.weight", gpu_layers=2)
        assert self.on("blk.3.attn_q.weight", gpu_layers=2)

    def test_experts_may_stay_on_the_cpu(self) -> None:
        assert not self.on("blk.1.ffn_up_exps.weight", cpu_expert_layers=2)
        assert self.on("blk.2.ffn_up_exps.weight", cpu_expert_layers=2)
        assert not self.on("blk.3.ffn_up_exps.weight", cpu_expert_layers=-1)
        assert self.on("blk.1.ffn_gate_inp.weight", cpu_expert_layers=-1)

    def test_a_copy_of_the_embeddings_is_counted_once_where_the_processor_repacks_it(self) -> None:
        kind = gguf.GGMLQuantizationType.Q4_K
        embeddings = TensorInfo("token_embd.weight", kind, (256, 8), 1152, 0)
        header = Header(Path("m.gguf"), {"general.architecture": "gemma4"}, {}, (embeddings,), 0)
        spec = LoadSpec(header.path, mmap=False)
        assert probe.weights([header], spec, on_gpu=False)[0] + probe.copies([header], spec) == 2 * 1152

    def test_all_bytes_are_somewhere_and_a_tied_output_counts_twice(self, random_gemma4: Path) -> None:
        headers = read_split(random_gemma4)
        embeddings = next(t.n_bytes for t in headers[0].tensors if t.name == "token_embd.weight")
        spec = LoadSpec(random_gemma4)
        for layers in (0, 1, 2, -1):
            device, host = probe.weights(headers, replace(spec, gpu_layers=layers), on_gpu=layers != 0)
            copies = embeddings if layers else 0
            assert device + host == headers[0].weights_bytes + copies


class Limited:
    """In place of a card that takes no tensor of more bytes than `most`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most = most
        self.asked: list[tuple[tuple[int, ...], ...]] = []  # shapes of an operation's sources and of its result
        monkeypatch.setattr(matrices, "card_handles", lambda named: ["Vulkan0"])
        monkeypatch.setattr(matrices, "_supports", self.supports)

    def supports(self, handle: object, operation: int) -> bool:
        tensors = [*filter(None, GgmlTensor.from_address(operation).src), operation]
        self.asked.append(tuple(tuple(GgmlTensor.from_address(one).ne) for one in tensors))
        return all(n_bytes(one) <= self.most for one in tensors)


class TestTooLargeForTheCard:
    """Matrices beyond what a device takes: llama.cpp leaves them in host memory without a word."""

    MB = 10**6

    def matrix(self, name: str, *shape: int) -> TensorInfo:
        return TensorInfo(name, gguf.GGMLQuantizationType.F16, shape, 2 * math.prod(shape), 0)

    def refused(self, *tensors: TensorInfo) -> set[str]:
        return {t.name for t in tensors if matrices.is_refused(int(t.type), t.shape, t.n_bytes, 8)}

    def test_a_matrix_or_what_a_batch_comes_to_may_be_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        card = Limited(monkeypatch, 200 * self.MB)
        output = self.matrix("output.weight", 2048, 50_000)  # 205 MB
        words = self.matrix("token_embd.weight", 64, 100_000)  # 13 MB, and 205 MB for a batch of 512
        experts = self.matrix("blk.0.ffn_up_exps.weight", 1024, 1024, 128)  # 268 MB
        fine = self.matrix("blk.0.ffn_down_exps.weight", 1024, 1024, 80)  # 168 MB
        assert self.refused(output, words, experts, fine) == {output.name, words.name, experts.name}
        assert card.asked[0] == ((2048, 50_000, 1, 1), (2048, 512, 1, 1), (50_000, 512, 1, 1))
        assert card.asked[2] == ((1024, 1024, 128, 1), (1024, 8, 512, 1), (8, 512, 1, 1), (1024, 8, 512, 1))

    def test_what_every_device_takes_is_not_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        card = Limited(monkeypatch, 1)
        small = self.matrix("blk.0.ffn_up_exps.weight", 1024, 1024, 63)
        assert self.refused(small, self.matrix("blk.0.attn_norm.weight", 10**9)) == set()
        assert card.asked == []

    def test_ggml_understands_what_it_is_asked(self) -> None:
        processor = ggml_function("ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)(0)
        for shape in ((64, 100), (64, 64, 8)):
            assert matrices.takes(processor, F16, shape, 2)

    def test_they_are_counted_in_host_memory_and_a_tied_output_has_no_copy(self, random_gemma4: Path) -> None:
        headers, spec = read_split(random_gemma4), LoadSpec(random_gemma4)
        sizes = {tensor.name: tensor.n_bytes for tensor in headers[0].tensors}
        device, host = probe.weights(headers, spec, on_gpu=True)
        name = "blk.0.ffn_gate_up_exps.weight"
        without = probe.weights(headers, spec, on_gpu=True, refused={name})
        assert without == (device - sizes[name], host + sizes[name])
        embeddings = "token_embd.weight"
        for mmap, copies in ((True, 1), (False, 2)):
            found = probe.weights(headers, replace(spec, mmap=mmap), on_gpu=True, refused={embeddings})
            assert found == (device - sizes[embeddings], host + (copies - 1) * sizes[embeddings])
        movable, taken = probe.movable_experts(headers, spec), probe.without(headers, {name, embeddings})
        assert probe.movable_experts(taken, spec)[0] == movable[0] - sizes[name]
        assert sum(probe.layer_weights(headers, spec)) == device
        assert sum(probe.layer_weights(taken, spec)) == device - sizes[name] - sizes[embeddings]

    def test_only_what_would_go_to_the_card_is_asked_for(
        self, random_gemma4: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Limited(monkeypatch, 0)
        monkeypatch.setattr(matrices, "_ALWAYS_BYTES", 0)
        headers, spec = read_split(random_gemma4), LoadSpec(random_gemma4, gpu_layers=1)
        assert probe.refused_by_cards(headers, spec) == {"token_embd.weight"}, "the output, which is tied"
        experts = {t.name for t in headers[0].tensors if "_exps.weight" in t.name}
        assert experts < probe.refused_by_cards(headers, replace(spec, gpu_layers=-1))

    @pytest.mark.model
    @pytest.mark.host("it plays a card")
    def test_a_dry_run_says_what_stays_in_host_memory(
        self, random_gemma4: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [f"blk.{layer}.ffn_gate_up_exps.weight" for layer in (0, 1)]
        spec = LoadSpec(random_gemma4, context_tokens=256, parallel=1, threads=1)
        monkeypatch.setattr(probe, "runtime_bytes", lambda devices: 0)
        whole = probe.dry_run(spec, True, {}).footprint
        monkeypatch.setattr(probe, "refused_by_cards", lambda headers, spec: frozenset(names))
        found = probe.dry_run(spec, True, {}).footprint
        assert whole.weights_bytes - found.weights_bytes == sum(
            tensor.n_bytes for tensor in read_header(random_gemma4).tensors if tensor.name in names
        )
        (note,) = set(found.notes) - set(whole.notes)
        assert note.startswith(f"{names[0]} and 1 more stay in host memory")


def cache_log(where: Mapping[int, str], mib: float, kind: str = "kv_cache", type_: str = "f16") -> list[str]:
    """What llama.cpp logs of a cache whose layers lie in these places. kind: kv_cache or memory_recurrent. type_: of
    its keys and values."""
    mark = ":" if kind == "kv_cache" else ","
    return [
        *(f"llama_{kind}{mark} layer {layer:3d}: dev = {place}" for layer, place in where.items()),
        f"llama_{kind}: size = {mib:7.2f} MiB (  1024 cells, {len(where):3d} layers,  2/1 seqs), K ({type_}): 1 MiB, "
        f"V ({type_}): 1 MiB",
    ]


class TestBuffers:
    """What llama.cpp's lines say of a context's buffers."""

    MIB = 2**20

    def test_layers_of_a_cache_lie_where_its_lines_say(self) -> None:
        # Of six layers three are asked for, and the output is one of them: 45 MiB would be too much by half.
        log = cache_log({0: "CPU", 1: "CPU", 2: "CPU", 3: "CPU", 4: "Vulkan0", 5: "Vulkan0"}, 90)
        found = probe.buffers(log)
        assert (found.kv_device, found.kv_host) == (30 * self.MIB, 60 * self.MIB)

    def test_each_cache_has_layers_of_its_own(self) -> None:
        whole = cache_log({1: "CPU", 3: "CUDA0"}, 32)
        window = cache_log({0: "CPU", 2: "CUDA0", 4: "CUDA0"}, 12)
        states = cache_log({5: "CPU", 6: "CUDA1"}, 2, "memory_recurrent")
        found = probe.buffers([*whole, *window, *states])
        assert (found.kv_device, found.kv_host) == (25 * self.MIB, 21 * self.MIB)

    def test_layers_with_wider_keys_keep_more(self) -> None:
        log = cache_log({0: "CPU", 1: "Metal"}, 10)
        assert probe.buffers(log, {0: 64, 1: 256}).kv_device == 8 * self.MIB
        assert probe.buffers(log, {1: 256}).kv_device == 5 * self.MIB  # it is not known how wide the other is

    def test_a_cache_that_says_nothing_of_its_layers_is_of_the_host(self) -> None:
        assert probe.buffers(cache_log({}, 8)) == probe.Buffers(kv_host=8 * self.MIB)

    def test_vulkan_widens_the_largest_layer_of_a_q8_0_cache(self) -> None:
        whole = cache_log({1: "CPU", 3: "Vulkan0"}, 34, type_="q8_0")
        window = cache_log({0: "Vulkan0", 2: "Vulkan0"}, 17, type_="q8_0")
        assert probe.buffers([*whole, *window]).widened_device == 32 * self.MIB  # 17 MiB of a layer, as F16
        assert probe.buffers(window).widened_device == 16 * self.MIB
        assert probe.buffers(whole, {1: 3, 3: 1}).widened_device == 16 * self.MIB

    def test_others_are_read_as_they_are(self) -> None:
        for log in (
            cache_log({0: "Vulkan0"}, 34),
            cache_log({0: "CUDA0"}, 34, type_="q8_0"),
            cache_log({0: "CPU"}, 34, type_="q8_0"),
        ):
            assert probe.buffers(log).widened_device == 0

    def test_pinned_memory_is_of_the_host(self) -> None:
        log = [
            "sched_reserve:    Vulkan0 compute buffer size =   100.00 MiB",
            "sched_reserve: Vulkan_Host compute buffer size =    10.00 MiB",
            "llama_context: Vulkan_Host  output buffer size =     0.50 MiB",
            "sched_reserve:        CPU compute buffer size =     1.00 MiB",
        ]
        assert probe.buffers(log) == probe.Buffers(
            compute_device=100 * self.MIB, compute_host=23 * self.MIB // 2, card_bytes={"Vulkan0": 100 * self.MIB}
        )

    def test_the_width_of_keys_is_that_of_the_matrix_that_makes_them(self, random_gemma4: Path) -> None:
        widths = probe.key_widths(read_split(random_gemma4))
        assert set(widths) == set(range(read_split(random_gemma4)[0].count("block_count")))
        assert all(widths.values())


@pytest.mark.model
async def test_what_keeps_off_a_gpu_that_is_there_takes_host_memory_alone(
    random_gemma4: Path,
) -> None:
    spec = LoadSpec(random_gemma4, context_tokens=512, parallel=1, threads=1, gpu_layers=0)
    beside = probe.dry_run(spec, True, {}).footprint
    without = probe.dry_run(spec, False, {}).footprint
    assert beside.total_bytes == 0
    assert without.host_bytes == 0
    parts = without.weights_bytes + without.kv_bytes + without.compute_bytes
    assert parts < beside.host_bytes
    assert beside.host_bytes - parts == pytest.approx(without.overhead_bytes, rel=0.2)  # of this process, which grows


@pytest.mark.model
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("error loading model: unable to allocate Vulkan0 buffer", NoRoomToTryError),
        ("error loading model: vk::PhysicalDevice::createDevice: ErrorOutOfDeviceMemory", NoRoomToTryError),
        ("failed to initialize the context: failed to allocate buffer for rs cache", NoRoomToTryError),
        ("error loading model: unable to allocate CPU buffer", ModelFileError),
        ("error loading model: missing tensor", ModelFileError),
    ],
)
@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_load_that_a_gpu_refuses_is_told_from_a_damaged_file(
    words: str, error: type[EngineError], on_gpu: bool, random_gemma4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelFileError(f"llama.cpp cannot load it: {words}.", "Check that the file is whole.")

    monkeypatch.setattr(probe, "dry_run", refuse)
    monkeypatch.setattr(probe, "has_card", lambda named: on_gpu)
    monkeypatch.setattr(probe, "free_memory", lambda named: {"CUDA0": 7 * 2**20})
    with pytest.raises(error if on_gpu else ModelFileError) as caught:
        probe.main({"spec": LoadSpec(random_gemma4).to_json()}, lambda progress: None)
    assert type(caught.value) is (error if on_gpu else ModelFileError)
    assert ("7.0 MiB of its memory were free" in str(caught.value)) == (type(caught.value) is NoRoomToTryError)


async def test_a_budget_of_the_roster_is_taken_as_it_is() -> None:
    assert await memory.budget_bytes(123, 5) == (123, "set in the roster")


@pytest.mark.model
async def test_who_has_the_tokens_fills_the_middle(tmp_path: Path, random_gemma4: Path) -> None:
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    filling = write_random_model(tmp_path / "code.gguf", more_control=marks)
    assert (await memory.predict(LoadSpec(filling, context_tokens=512, parallel=1))).infill is True
    assert (await memory.predict(LoadSpec(random_gemma4, context_tokens=512, parallel=1))).infill is False


@pytest.mark.model
class TestChats:
    """What a dry run finds out about a model's chat template."""

    async def predicted(self, path: Path, source: str | None) -> memory.Prediction:
        write_random_model(path, chat_template=source)
        return await memory.predict(LoadSpec(path, context_tokens=512, parallel=1), {"plain": Thinking()})

    async def test_a_model_with_a_template_answers_chats(self, random_gemma4: Path) -> None:
        assert (await memory.predict(LoadSpec(random_gemma4, context_tokens=512))).chat_fault is None

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            (None, "carries no chat template"),
            ("{% if %}", "broken: line 1: Expected an expression"),
            ("{{ raise_exception('not\n\x1b[2J today') }}", r"not\\n\\x1b\[2J today"),
            ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
            (
                "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
                "memory",
            ),
            ("{{ 'a' * (10**9) * 3 }}", "needs more than 512 MiB of memory"),
            ("{% for i in range(10**12) %}x{% endfor %}", "Range too big"),
        ],
    )
    async def test_one_whose_template_is_missing_or_hurts_is_served_without_chats(
        self, tmp_path: Path, source: str | None, why: str
    ) -> None:
        predicted = await self.predicted(tmp_path / "m.gguf", source)
        assert predicted.footprint.total_bytes > 0
        assert not predicted.refused
        assert predicted.chat_fault is not None
        assert re.search(why, predicted.chat_fault.message)
        assert predicted.chat_fault.remedy

    async def test_a_system_prompt_that_leaves_no_room_is_refused_with_its_specialist(
        self, random_gemma4: Path
    ) -> None:
        def chat(name: str, words: int, most: int | None = None) -> GenerateRequest:
            system = {"role": "system", "content": "brief " * words}
            return GenerateRequest("", name, [system, {"role": "user", "content": "?"}], max_prompt_tokens=most)

        chats = [chat("short", 10), chat("long", 600), chat("capped", 10, 5), chat("longest", 60_000)]
        found = await memory.predict(LoadSpec(random_gemma4, context_tokens=512), None, chats)
        assert found.chat_fault is None
        assert found.refused.keys() == {"long", "capped", "longest"}
        assert re.search(r"shortest prompt has \d+ tokens.*context_tokens is 512.*system_prompt", found.refused["long"])
        assert "server.max_prompt_tokens is 5" in found.refused["capped"]
        assert "at least" in found.refused["longest"]

    async def test_the_process_that_renders_is_counted(self, tmp_path: Path) -> None:
        bare = await self.predicted(tmp_path / "bare.gguf", None)
        whole = await self.predicted(tmp_path / "whole.gguf", "{{ messages[0].content }}")
        host = [
            one.footprint.overhead_bytes + one.footprint.host_bytes for one in (bare, whole)
        ]  # whether apart or not
        assert host[1] - host[0] > 5 * 2**20

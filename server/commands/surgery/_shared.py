"""What the surgery commands share: consoles, progress, options, NAME=FILE arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._lines import console, print_line

if TYPE_CHECKING:
    from coe.engine.spec import LoadSpec
    from coe.surgery.mask import Mask

    from .._bars import Bars

out_console = console()
err_console = console(stderr=True)

GpuLayers = Annotated[int, typer.Option(help="Layers on the GPU; -1 for all, 0 for none.")]
CpuExperts = Annotated[
    int, typer.Option(help="Layers, from the first, whose experts stay in host memory; -1 for all of them.")
]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 for one a physical core.")]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="What experts are scored by: gate-mass, frequency, rank-weighted, reap, mass-norm or random. "
        "Left out: the recipe's own."
    ),
]
Experts = Annotated[
    str | None,
    typer.Option(
        help="Experts that each layer keeps: 64, or 0.75 for three quarters of them. The mask's own when left out; "
        "more or fewer are taken by its ranking."
    ),
]
MaskKind = Annotated[str, typer.Option(help="What the numbers in another tool's mask mean: auto, keep or drop.")]


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Progress bars on the error stream, while the block lasts."""
    from .._bars import Bars

    with Bars(err_console) as bars:
        yield bars


def say(text: str) -> None:
    """Print a line as it is: no markup, wrapped by the terminal."""
    print_line(out_console, text)


def load_spec(path: Path, gpu_layers: int, cpu_expert_layers: int, threads: int) -> LoadSpec:
    """How llama.cpp loads a model that these options describe."""
    from coe.engine.spec import LoadSpec

    return LoadSpec(path, gpu_layers=gpu_layers, cpu_expert_layers=cpu_expert_layers, threads=threads)


def tried(load: LoadSpec, models: Sequence[Path]) -> LoadSpec:
    """The load with as many layers' experts in host memory as the largest of the models needs to fit a GPU.

    Each model goes through a dry run in a child first: llama.cpp takes a process down over a file that it did not
    expect, and the child's end leaves a reason. Raises ModelFileError with it.
    """
    from coe.engine.pool.memory import predict
    from coe.surgery.errors import ArchitectureError
    from coe.surgery.parent import Parent
    from coe.surgery.profile.fitting import fit_spec

    layers = 0
    for model in models:
        spec = replace(load, path=model)
        asyncio.run(predict(spec))
        with suppress(ArchitectureError):  # a dense model, or one that surgery does not know: it can be asked as well
            layers = max(layers, fit_spec(spec, Parent.open(model), None).cpu_expert_layers)
    return replace(load, cpu_expert_layers=load.cpu_expert_layers or layers)


def with_experts(mask: Mask, experts: str | None) -> Mask:
    """The mask with as many experts as `--experts` asks for. Raises MaskError for what is no number of them, or cannot
    be."""
    from coe.surgery.errors import MaskError

    if experts is None:
        return mask
    try:
        wanted = int(experts) if experts.isdecimal() else float(experts)
    except ValueError:
        raise MaskError(f"{experts!r} is no number of experts.", "Write --experts 64, or --experts 0.75.") from None
    return mask.resized(wanted)


def prefixed_path(text: str) -> tuple[str, Path]:
    """NAME=FILE, or FILE with "" for a name; a file whose own name has a "=" is that file."""
    name, found, path = text.partition("=")
    return (name, Path(path)) if found and name and not Path(text).exists() else ("", Path(text))


def named_path(text: str) -> tuple[str, Path]:
    """NAME=FILE, or FILE under its own name."""
    name, path = prefixed_path(text)
    return name or path.name.removesuffix(".gguf").removesuffix(".json").removesuffix(".npy"), path


def ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` of 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

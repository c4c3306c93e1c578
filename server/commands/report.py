"""`coe doctor --report FILE`: what a user with a GPU sends, so that others see what is so on a card that they lack.

The build, the devices, what is predicted of the demo's models beside what is taken for each placement, how fast a
specialist becomes another in place, and `coe bench`'s figures. `collect` runs the parts: one that fails is in the
report as such, and ends nothing. Models are loaded in processes of their own. Names, paths and keys are left out
(`_anonymous.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coe.engine import child
from coe.engine.cards import cards, is_on_host
from coe.engine.errors import EngineError
from coe.engine.files import written_beside
from coe.engine.pool.memory import hardware, predict
from coe.engine.spec import LoadSpec, Member, Sharing
from coe.engine.units import size_text

from ..roster.builtin import demo_roster
from ..roster.load import load_roster
from ..runtime.mask_models import MaskSource, prepare_masks
from . import bench
from ._anonymous import anonymous, personal_words
from ._lines import print_line
from ._server import own_server
from .demo import with_own_models
from .doctor import Facts, examine, judge

FORMAT: Final = 1  # of the file: raised where a key changes its meaning
_TRIAL: Final = "coe.engine.worker.trial"
_TRIAL_S: Final = 1800.0  # a software device compiles its shaders first, for minutes
_BENCH_ROUNDS: Final = 3
_BENCH_TOKENS: Final = 48
# Settings of drivers and of llama.cpp that change what is measured; their values are numbers, lists of devices, words.
_SETTINGS: Final = re.compile(
    r"(GGML|CUDA|HIP|ROCR|HSA|NVIDIA|GPU|RADV|AMD|MESA|LP|GALLIVM|VK|OMP|GOMP|ZE|SYCL|METAL)_[A-Z0-9_]+"
)

_MIB: Final = 2**20
_LEGEND: Final = (
    "weights, KV, compute: MiB predicted / taken where memory is budgeted: on the device, or the host without one.",
    "swap, moves: one specialist becomes another in place; load:swap: how many times as long a load takes.\n",
)

Told = Callable[[str], None]
Part = Callable[[Told], Any]  # says what it is at, and gives JSON types


class ReportError(Exception):
    """A part of the report cannot be made; says why."""


# Deciding ------------------------------------------------------------------------------------------------------------


def placements(*, has_card: bool, layers: int, has_experts: bool) -> dict[str, dict[str, Any]]:
    """The ways to load a model that make sense on this machine: a name for each, and the fields of its spec.

    layers: of the model, without the output.
    """
    if not has_card:
        return {"host": {}, "host, q8_0 cache": {"kv_type": "q8_0"}}
    found: dict[str, dict[str, Any]] = {"all layers": {}}
    if layers > 1:
        found["half of the layers"] = {"gpu_layers": max(1, layers // 2)}
    if has_experts:
        found["experts on the CPU"] = {"cpu_expert_layers": -1}
    return {**found, "q8_0 cache": {"kv_type": "q8_0"}, "host": {"gpu_layers": 0}}


def compared(
    footprint: Mapping[str, Any], buffers: Mapping[str, Mapping[str, int]], *, has_card: bool
) -> dict[str, dict[str, int]]:
    """What was predicted where memory is budgeted beside what llama.cpp made there, in bytes: weights, KV, compute.

    buffers: place -> what for -> bytes. Without a card it is the host's memory that is budgeted.
    """
    places = [place for place in buffers if not (has_card and is_on_host(place))]

    def real(*kinds: str) -> int:
        return sum(buffers[place].get(kind, 0) for place in places for kind in kinds)

    pairs = {
        "weights": (footprint["weights_bytes"], real("model")),
        "kv": (footprint["kv_bytes"], real("KV", "RS")),
        "compute": (footprint["compute_bytes"], real("compute", "output")),
    }
    return {name: {"predicted_bytes": said, "real_bytes": made} for name, (said, made) in pairs.items()}


def swap_figures(changes: Sequence[Mapping[str, float]], load_s: float) -> dict[str, float] | None:
    """Medians of changes in place, and how many times as long a load takes; None where there was none."""
    if not changes:
        return None
    seconds = median(change["seconds"] for change in changes)
    moved = median(change["moved_bytes"] for change in changes)
    return {
        "changes": len(changes),
        "changed_bytes": median(change["changed_bytes"] for change in changes),
        "moved_bytes": moved,
        "seconds": seconds,
        "bytes_per_s": moved / max(seconds, 1e-9),
        "load_s": load_s,
        "load_to_swap": load_s / max(seconds, 1e-9),
    }


def settings_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What is set of drivers and llama.cpp."""
    return {name: value for name, value in sorted(environment.items()) if _SETTINGS.fullmatch(name)}


# Measuring -----------------------------------------------------------------------------------------------------------


def collect(
    parts: Mapping[str, Part],
    told: Told,
    words: Mapping[str, str],
    keep: Callable[[Mapping[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """The report: each part's answer, or why it failed. Texts are freed of `words`, paths and secrets.

    keep: is given what there is after each part, for a later one takes minutes and may be interrupted.
    """
    found: dict[str, Any] = {"report": FORMAT}
    cleaned: dict[str, Any] = anonymous(found, words)
    for name, part in parts.items():
        told(name)
        try:
            found[name] = part(lambda text, name=name: told(f"{name}: {text}"))  # type: ignore[misc]
        except Exception as error:  # whatever it is: the other parts are worth having
            found[name] = {"failed": _why(error)}
        cleaned = anonymous(found, words)
        keep(cleaned)
    return cleaned


def _why(error: Exception) -> str:
    remedy = getattr(error, "remedy", "")
    return f"{type(error).__name__}: {' '.join(filter(None, (str(error), str(remedy))))}"


def failures(report: Any, at: str = "") -> list[str]:
    """What failed of a report, a line each: where, and why."""
    if isinstance(report, Mapping):
        if "failed" in report:
            return [f"{at}: {report['failed']}"]
        return [line for key, one in report.items() for line in failures(one, f"{at}, {key}" if at else str(key))]
    if isinstance(report, list):
        return [line for one in report for line in failures(one, f"{at}, {_title(one)}")]
    return []


def _title(entry: Any) -> str:
    return f"{entry.get('model', '')} {entry.get('placement', '')}".strip() if isinstance(entry, Mapping) else ""


def build(facts: Facts) -> dict[str, Any]:
    """What is installed, and what it was built with."""
    try:
        recorded: dict[str, Any] = json.loads(Path(sys.prefix, "coe-build.json").read_text())
    except (OSError, ValueError):
        recorded = {}
    machine = recorded.get("machine", {})
    wheel = facts.built_from.rstrip("/").rpartition("/")[2]
    return {
        "versions": dict(facts.versions),
        "python": facts.python,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "llama.cpp": facts.system_info,
        "backends": list(facts.backends),
        "built_from": wheel if facts.built_from != "source" else "source",
        "cmake_args": recorded.get("cmake_args", []),
        "toolkit": {key: machine.get(key) for key in ("cuda_driver", "cuda_toolkit", "vulkan_headers")},
        "gpu_makers": list(facts.gpus),
        "cores": facts.cores,
        "memory_bytes": facts.memory_bytes,
        "available_bytes": facts.available_bytes,
        "container": facts.container,
        "settings": settings_of(os.environ),
        "findings": [asdict(finding) for finding in judge(facts) if finding.level != "ok"],
        **({"failed": facts.llama_error} if facts.llama_error else {}),
    }


async def _college(folder: Path) -> LoadSpec:
    """The demo's masks as one resident that becomes each of them."""
    roster = load_roster(with_own_models(demo_roster(), folder))
    sources = await prepare_masks(roster, folder)
    members, first = [], None
    for specialist in roster.specialists:
        source = sources.get(specialist.name)
        if isinstance(source, MaskSource):
            members.append(Member(specialist.name, source.skeleton, source.parent, kept=source.kept))
            first = first or specialist
        elif source is not None:
            raise ReportError(" ".join(source))
    if first is None:
        raise ReportError("the demo has no masks")
    return first.load_spec(members[0].path, Sharing(tuple(members), check=True)).loaded_as(members[0].name)


async def _measured(spec: LoadSpec, *, has_card: bool) -> dict[str, Any]:
    """A placement of a model: predicted, and loaded for real."""
    footprint = asdict((await predict(spec)).footprint)
    trial = await child.run(_TRIAL, {"spec": spec.to_json()}, title="A trial load", within_s=_TRIAL_S)
    return {
        "predicted": footprint,
        "buffers": trial["buffers"],
        "compared": compared(footprint, trial["buffers"], has_card=has_card),
        "taken_bytes": trial["taken_bytes"],
        "first_load_s": trial["first_load_s"],
        "load_s": trial["load_s"],
        "swap": swap_figures(trial["changes"], trial["load_s"]),
    }


async def _placements(facts: Facts, told: Told) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    has_card = bool(cards((await hardware()).devices))
    with tempfile.TemporaryDirectory(prefix="coe-report-") as folder:
        models: dict[str, LoadSpec] = {"the demo's college": await _college(Path(folder))}
        if facts.demo_model is not None:
            models["SmolLM2"] = LoadSpec(facts.demo_model, context_tokens=4096)
        for model, spec in models.items():
            known = (await predict(spec)).facts
            ways = placements(
                has_card=has_card, layers=known.layers if known else 0, has_experts=spec.sharing is not None
            )
            for name, fields in ways.items():
                told(f"{model}, {name}")
                entry: dict[str, Any] = {"model": model, "placement": name, "settings": fields}
                try:
                    entry |= await _measured(replace(spec, **fields), has_card=has_card)
                except EngineError as error:
                    entry["failed"] = _why(error)
                found.append(entry)
    return found


def _bench(told: Told) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="coe-report-") as folder:
        roster = with_own_models(demo_roster(), Path(folder))
        with own_server(roster) as url:
            server = bench.Server(url)
            try:
                cards = [card for card in server.cards() if not card.trouble]
                found = bench.run(server, cards, rounds=_BENCH_ROUNDS, n_tokens=_BENCH_TOKENS, told=told)
            finally:
                server.close()
    return {name: _figures(figures) for name, figures in found.items()}


def _figures(figures: bench.Figures) -> dict[str, Any]:
    written = asdict(figures)
    trouble = written.pop("trouble")
    return {**written, "failed": trouble} if trouble else written


def all_parts(models_dir: Path) -> dict[str, Part]:
    """The parts of the report, in their order."""
    facts = examine(models_dir)
    return {
        "build": lambda told: build(facts),
        "devices": lambda told: [asdict(device) for device in facts.devices],
        "placements": lambda told: asyncio.run(_placements(facts, told)),
        "bench": _bench,
    }


# The command ---------------------------------------------------------------------------------------------------------


def write_report(
    file: Path, out: Console, err: Console, models_dir: Path = Path("models"), parts: Mapping[str, Part] | None = None
) -> int:
    """Measure, write the report as JSON, and print its summary. Returns the exit status: 1 where a part failed.

    parts: others than all, for tests.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        print_line(err, f"{file} cannot be written: name a file in a folder that is there.", "red")
        return 1

    def keep(so_far: Mapping[str, Any]) -> None:
        with written_beside(file) as beside:
            beside.write_text(json.dumps(so_far, indent=1) + "\n", encoding="utf-8")

    try:
        with err.status("Looking at this machine ...") as status:
            chosen = all_parts(models_dir) if parts is None else parts
            # A line each: some take minutes, and what was done is still to be seen when something is reported of it.
            told = partial(_tell, err, status.update)
            report = collect(chosen, told, personal_words(), keep)
    except OSError as error:
        print_line(err, f"{file} cannot be written: {error.strerror}", "red")
        return 1
    show(report, out)
    failed = failures(report)
    for line in failed:
        print_line(err, f"Failed: {line}", "red")
    print_line(out, f"Written to {file}: no paths, names or keys are in it. Look through it before you send it.")
    return 1 if failed else 0


def _tell(err: Console, update: Told, text: str) -> None:
    if err.is_terminal:
        update(escape(text))
    elif not text.startswith("bench: "):  # a line for each of its many requests would be too much in a file
        print_line(err, text)


def show(report: Mapping[str, Any], out: Console) -> None:
    """The report's summary."""
    built = report.get("build", {})
    if "failed" not in built:
        out.print(f"llama.cpp for {', '.join(built.get('backends', ())) or 'the CPU'}", markup=False)
    devices = report.get("devices", [])
    for device in devices if isinstance(devices, list) else []:
        memory = f"{size_text(device['free_bytes'])} free of {size_text(device['total_bytes'])}"
        out.print(f"{device['name']} ({device['kind']}): {device['description']}, {memory}", markup=False)
    measured = report.get("placements", [])
    if isinstance(measured, list) and measured:
        for table in _tables(measured):
            out.print(table)
            out.print()
        for line in _LEGEND:
            out.print(line, markup=False)
    speeds = report.get("bench", {})
    if speeds and "failed" not in speeds:
        bench.show({name: _read_figures(one) for name, one in speeds.items() if "first_ms" in one}, out)


def _read_figures(told: Mapping[str, Any]) -> bench.Figures:
    speeds = {int(n): speed for n, speed in told["tokens_per_s"].items()}  # numbers are no keys in JSON
    return bench.Figures(told["first_ms"], told["times"], told["prompt_tokens_per_s"], speeds, told.get("failed", ""))


def _tables(measured: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Memory, then speeds: a line a placement, each narrow enough for a terminal of 80 columns."""
    yield _table(measured, ("weights", "KV", "compute"), _sizes)
    loaded = [entry for entry in measured if "failed" not in entry]
    yield _table(loaded, ("load", "swap", "moves", "load:swap"), _speeds)


def _table(
    measured: Sequence[Mapping[str, Any]], titles: Sequence[str], cells: Callable[[Mapping[str, Any]], list[str]]
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for number, entry in enumerate(measured):
        if number == 0 or entry["model"] != measured[number - 1]["model"]:
            table.add_row(f"[bold]{escape(entry['model'])}[/]")
        table.add_row(f"  {escape(entry['placement'])}", *cells(entry))
    return table


def _sizes(entry: Mapping[str, Any]) -> list[str]:
    if "failed" in entry:
        return ["failed"]
    sizes = [entry["compared"][what] for what in ("weights", "kv", "compute")]
    return [f"{one['predicted_bytes'] / _MIB:.2f} / {one['real_bytes'] / _MIB:.2f}" for one in sizes]


def _speeds(entry: Mapping[str, Any]) -> list[str]:
    load = f"{1e3 * entry['load_s']:.0f} ms"
    if (swap := entry["swap"]) is None:
        return [load, "-", "-", "-"]
    return [load, f"{1e3 * swap['seconds']:.1f} ms", size_text(int(swap["moved_bytes"])), f"{swap['load_to_swap']:.0f}"]

"""The surgery commands of `coe`: profile, plan, cut, verify, compare, inspect, eval, build.

Each is one function of coe.surgery with its arguments read, its progress shown and its result printed. llama.cpp runs
in this process or in workers of it, never in the server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from coe.engine.spec import LoadSpec
    from coe.surgery.profile.corpus import CorpusFile
    from coe.surgery.profile.profile import Profile
    from coe.surgery.study.inspect import Inspection

    from ._bars import Bars

_out = Console(highlight=False, emoji=False)
_err = Console(stderr=True, highlight=False, emoji=False)

_STOPPED_EXIT = 130  # what shells give for a Ctrl-C

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
Kind = Annotated[str, typer.Option(help="What the numbers in another tool's mask mean: auto, keep or drop.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `coe`."""
    for command in (profile, plan, cut, verify, compare, inspect):
        app.command()(command)
    app.command("eval")(evaluate)
    app.command()(build)


@contextmanager
def clear_errors(resumes: str = "") -> Iterator[None]:
    """What is wrong as one line with its remedy, and exit code 1. resumes: what a person is told after a Ctrl-C."""
    from coe.engine.errors import EngineError
    from coe.surgery.errors import SurgeryError

    try:
        yield
    except (SurgeryError, EngineError) as error:
        _err.print(f"{error.message} {error.remedy}".strip(), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _err.print(f"{where}{error.strerror or error}.", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _err.print(f"Stopped. {resumes}".strip(), markup=False)
        raise typer.Exit(_STOPPED_EXIT) from None


@contextmanager
def _bars() -> Iterator[Bars]:
    from ._bars import Bars

    with Bars(_err) as bars:
        yield bars


def _say(text: str) -> None:
    _out.print(text, markup=False, soft_wrap=True)


def _load(path: Path, gpu_layers: int, cpu_expert_layers: int, threads: int) -> LoadSpec:
    from coe.engine.spec import LoadSpec

    return LoadSpec(path, gpu_layers=gpu_layers, cpu_expert_layers=cpu_expert_layers, threads=threads)


def _fitting(load: LoadSpec, models: Sequence[Path]) -> LoadSpec:
    """The load with as many layers' experts in host memory as the largest of the models needs to fit a GPU."""
    from coe.surgery.errors import ArchitectureError
    from coe.surgery.parent import Parent
    from coe.surgery.profile.run import fitted

    if load.cpu_expert_layers:
        return load
    layers = 0
    for model in models:
        try:
            layers = max(layers, fitted(replace(load, path=model), Parent.open(model), None).cpu_expert_layers)
        except ArchitectureError:  # a dense model, or one that surgery does not know: it can be asked all the same
            continue
    return replace(load, cpu_expert_layers=layers)


# --- profile --------------------------------------------------------------------------------------------------


def profile(
    parent: Annotated[Path, typer.Argument(help="The parent's GGUF; of a split one, its first part.")],
    more: Annotated[list[str] | None, typer.Argument(help="Further files of the corpus.", show_default=False)] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Text or JSON lines to read, FILE or CLASS=FILE; several may follow.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the profile is written.")] = Path("profile.npz"),
    category: Annotated[str | None, typer.Option("--class", help="The class of files that name none.")] = None,
    norms: Annotated[bool, typer.Option("--norms", help="Collect what REAP and super experts need; slower.")] = False,
    answer: Annotated[
        bool, typer.Option("--answer", help="The corpus holds questions: let the parent answer them first.")
    ] = False,
    until_stable: Annotated[
        bool, typer.Option("--until-stable", help="Stop when neither mask nor scores move any more (see --experts).")
    ] = False,
    per_document: Annotated[
        bool, typer.Option("--per-document", help="Say whether the corpus is one domain, and keep the documents apart.")
    ] = False,
    experts: Annotated[
        int | None,
        typer.Option(min=1, help="Experts a layer of the mask that is looked at; half of them when left out."),
    ] = None,
    criterion: Annotated[str, typer.Option(help="What --until-stable scores experts by.")] = "gate-mass",
    context: Annotated[int, typer.Option(min=16, help="Tokens of a document; longer ones are read in pieces.")] = 4096,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer with --answer.")] = 2048,
    gpu_layers: GpuLayers = -1,
    cpu_expert_layers: CpuExperts = 0,
    threads: Threads = 0,
) -> None:
    """Watch which experts the parent's router chooses over a corpus."""
    with clear_errors("The same command goes on from there."):
        from coe.surgery.errors import CorpusError
        from coe.surgery.files import require_output
        from coe.surgery.parent import Parent
        from coe.surgery.profile.corpus import CorpusFile, read_corpus

        given = [*(corpus or []), *(more or [])]
        if not given:
            raise CorpusError("There is no corpus.", "Add --corpus FILE.")
        files = [CorpusFile.parse(text) for text in given]
        require_output(out, [file.path for file in files])
        files = [replace(file, category=file.category or category) for file in files]
        n_keep = experts or max(Parent.open(parent).experts.n_expert // 2, 1)
        load = replace(_load(parent, gpu_layers, cpu_expert_layers, threads), context_tokens=context)
        if answer:
            files = _answered(parent, files, out, _fitting(load, [parent]), max_tokens)
        _profile(
            parent, read_corpus(files), out, load, norms, n_keep, criterion if until_stable else None, per_document
        )


def _answered(
    parent: Path, files: Sequence[CorpusFile], out: Path, load: LoadSpec, max_tokens: int
) -> list[CorpusFile]:
    """The corpus of the parent's own answers to each file's questions, beside the profile."""
    from coe.surgery.judge.answers import answer_questions
    from coe.surgery.judge.generation import Settings
    from coe.surgery.profile.corpus import CorpusFile

    corpora = []
    for file in files:
        target = out.with_name(f"{out.stem}.{file.path.stem}.answers.jsonl")
        with _bars() as bars:
            done = answer_questions(
                parent,
                [file.path],
                target,
                settings=Settings(max_tokens=max_tokens),
                load=load,
                progress=bars.generating,
            )
        _say(
            f"{target}: {done.written} of {done.questions} answered ({done.truncated} cut at {max_tokens} tokens, "
            f"{done.looped} looped, {done.empty + done.failed} empty or failed), {done.tokens:,} tokens."
        )
        corpora.append(CorpusFile(target, file.category))
    return corpora


def _profile(
    parent: Path,
    corpus: Any,
    out: Path,
    load: LoadSpec,
    norms: bool,
    experts: int,
    criterion: str | None,
    per_document: bool,
) -> None:
    from coe.surgery.profile.run import profile_corpus, summary_line
    from coe.surgery.study.growth import profile_until_stable

    if per_document:
        _look_at_documents(parent, corpus, out, load, experts)
        return
    with _bars() as bars:
        if criterion is None:
            found, growth = profile_corpus(parent, corpus, out, norms=norms, load=load, progress=bars.profiling), None
        else:
            found, growth = profile_until_stable(
                parent, corpus, out, experts, criterion=criterion, norms=norms, load=load, progress=bars.profiling
            )
    _say(summary_line(found))
    if growth is not None:
        curve = out.with_name(f"{out.stem}.growth.png")
        if growth.settled:
            _say(f"The mask of {experts} experts has settled after {found.n_tokens:,} tokens; the curve: {curve}")
        else:
            _say(f"The corpus ended before the mask of {experts} experts settled: give more. The curve: {curve}")
    _out.print(_concentration(found))
    _say(f"{out}: next, coe plan {out} --experts {experts} -o mask.json")


def _concentration(found: Profile) -> Table:
    from coe.surgery.profile.run import summarize

    table = Table("layer", box=None, pad_edge=False)
    for column in ("entropy", "strongest half", "strongest quarter", "never used"):
        table.add_column(column, justify="right")
    for layer in summarize(found):
        table.add_row(
            str(layer.layer),
            f"{layer.entropy:.3f}",
            f"{layer.top_half:.1%}",
            f"{layer.top_quarter:.1%}",
            str(layer.never_used),
        )
    return table


def _look_at_documents(parent: Path, corpus: Any, out: Path, load: LoadSpec, experts: int) -> None:
    from coe.surgery.build.pipeline import documents_apart
    from coe.surgery.study.coherence import MAX_PIECES, coherence

    with _bars() as bars:
        counts = documents_apart(parent, corpus, out, limit=MAX_PIECES, load=load, tell=bars.tell)
    found = coherence(counts, experts)
    for note in found.notes:
        _say(note)
    if found.coherent:
        _say("Nothing speaks for more than one domain.")
        return
    _say(found.warning)
    for number, domain in enumerate(found.domains, 1):
        classes = ", ".join(f"{name} {count}" for name, count in domain.classes.items())
        _say(f"  part {number}: {len(domain.documents)} documents, {domain.tokens:,} tokens ({classes})")


# --- plan -----------------------------------------------------------------------------------------------------


def plan(
    profiles: Annotated[list[Path], typer.Argument(help="Profiles of one parent; several are added up.")],
    experts: Annotated[int, typer.Option(help="Experts that each layer keeps.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the mask is written.")] = Path("mask.json"),
    recipe: Annotated[
        str, typer.Option(help="top-k, three-pass, drop-map, or a published recipe: v6, v7, v7-coderx.")
    ] = "three-pass",
    criterion: Criterion = None,
    second: Annotated[
        Path | None, typer.Option(help="Profile of domain-neutral reasoning, for the third of the three passes.")
    ] = None,
    cap: Annotated[
        int | None, typer.Option(min=0, help="Most exchanges a layer of the third pass; 3 when left out.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="An expert to keep, LAYER:EXPERT; may be repeated.", show_default=False)
    ] = None,
    pin_super_experts: Annotated[
        bool, typer.Option("--pin-super-experts", help="Keep experts of extreme output (needs --norms).")
    ] = False,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="A class's weight in a drop map, CLASS=NUMBER; may be repeated.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="For the criterion random.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the mask as a PNG.")] = None,
) -> None:
    """Choose the experts of a specialist from what a profile saw."""
    with clear_errors():
        from coe.surgery.files import require_output
        from coe.surgery.plan import planning, super_experts
        from coe.surgery.plan.presets import PRESETS
        from coe.surgery.plan.recipes import Recipe
        from coe.surgery.profile.profile import Profile, combine
        from coe.surgery.study import plots

        require_output(out, [*profiles, *([second] if second else [])])
        whole = combine([Profile.load(path) for path in profiles])
        settings: dict[str, Any] = {"name": recipe}
        if cap is not None:
            settings["cap"] = cap
        if weight:
            settings["weights"] = dict(_weight(text) for text in weight)
        pins = [_pin(text) for text in pin or ()]
        if pin_super_experts:
            found = super_experts.find(whole)
            pins += found.pins
            _say(found.note)
        mask = planning.plan(
            whole,
            experts,
            Recipe.from_settings(settings).method,
            criterion=criterion,
            second=Profile.load(second) if second is not None else None,
            pins=pins,
            seed=seed,
        )
        mask.save(out)
        if picture is not None:
            plots.mask_map(picture, {out.stem: mask})
        if recipe in PRESETS:
            _say(f"Exact in this preset: {'; '.join(PRESETS[recipe].exact)}.")
            _say(f"Assumed: {'; '.join(PRESETS[recipe].assumed)}.")
        swaps = mask.provenance.swaps
        _say(
            f"{out}: {mask.n_keep} of {mask.parent.n_expert} experts in {len(mask.keep)} layers; exchanged after the "
            f"first pass: {len(swaps)}, pinned: {len(pins)}."
        )
        _say(f"Next: coe cut PARENT {out} -o SPECIALIST.gguf")


def _pin(text: str) -> Any:
    from coe.surgery.errors import MaskError
    from coe.surgery.mask import Pin

    layer, found, expert = text.partition(":")
    if not (found and layer.isdecimal() and expert.isdecimal()):
        raise MaskError(f"{text!r} is no expert.", "Write --pin LAYER:EXPERT, such as --pin 3:17.")
    return Pin(int(layer), int(expert), "asked for")


def _weight(text: str) -> tuple[str, float]:
    from coe.surgery.errors import MaskError

    name, found, number = text.rpartition("=")
    try:
        if not found or not name:
            raise ValueError
        return name, float(number)
    except ValueError:
        raise MaskError(f"{text!r} is no weight.", "Write --weight CLASS=NUMBER.") from None


# --- cut, verify, inspect -------------------------------------------------------------------------------------


def cut(
    parent: Annotated[Path, typer.Argument(help="The parent's GGUF; of a split one, its first part.")],
    mask: Annotated[Path, typer.Argument(help="The mask: ours, or another tool's drop map, matrix or list.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the specialist is written.")],
    shared_scale: Annotated[
        float | None, typer.Option(help="Multiply what the shared expert adds by this (1.2 in the 98-expert recipes).")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="Bring it to another file type, such as Q4_K_M.")] = None,
    provenance: Annotated[
        bool, typer.Option("--provenance/--no-provenance", help="Write into the file how it was made.")
    ] = True,
    kind: Kind = "auto",
) -> None:
    """Write the specialist that a mask makes of its parent, by copying bytes."""
    with clear_errors("The old file, if there was one, is as it was."):
        from coe.engine.units import size_text
        from coe.surgery.cut.cut import cut as run
        from coe.surgery.formats import read_mask
        from coe.surgery.parent import Parent

        whole = Parent.open(parent)
        with _bars() as bars:
            chosen = read_mask(mask, whole.identity(bars.hashing(whole.paths)), kind=kind)
            report = run(
                whole,
                chosen,
                out,
                shared_scale=shared_scale,
                provenance=provenance,
                quantize=quantize,
                progress=bars.staged,
            )
        for note in report.notes:
            _say(note)
        _say(
            f"{out}: {report.n_keep} of {report.n_expert} experts, {size_text(report.n_bytes)} of the parent's "
            f"{size_text(report.parent_bytes)}."
        )
        _say(f"Next: coe verify {parent} {out} {mask}")


def verify(
    parent: Annotated[Path, typer.Argument(help="The parent's GGUF.")],
    specialist: Annotated[Path, typer.Argument(help="The specialist's GGUF.")],
    mask: Annotated[Path, typer.Argument(help="The mask that it was cut with.")],
    kind: Kind = "auto",
) -> None:
    """Prove that a specialist is its parent without the dropped experts: bytes, numbers, and what it answers."""
    with clear_errors():
        from coe.surgery.formats import read_mask
        from coe.surgery.parent import Parent
        from coe.surgery.verify.verify import verify as run

        whole = Parent.open(parent)
        with _bars() as bars:
            chosen = read_mask(mask, whole.identity(bars.hashing(whole.paths)), kind=kind)
            found = run(parent, specialist, chosen, progress=bars.staged)
        for note in found.notes:
            _say(note)
        _say(f"{found.tensors} tensors were compared with the parent's.")
        if (agreement := found.agreement) is not None:
            _say(
                f"{agreement.equal} of {agreement.positions} positions have the masked parent's logits to the last "
                f"bit; {len(agreement.flips)} near-ties of the router fell the other way."
            )
        if not found.ok:
            for problem in found.problems:
                _err.print(problem, style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1)
        _say("Everything is as the mask says.")


def inspect(
    model: Annotated[Path, typer.Argument(help="A GGUF: a parent or a specialist.")],
    experts: Annotated[
        list[int] | None, typer.Option(help="Say what a mask of so many experts would save; may be repeated.")
    ] = None,
) -> None:
    """Show a model's experts, layers and bytes by kind, and what fewer experts would save."""
    with clear_errors():
        import asyncio

        from coe.engine.units import size_text
        from coe.surgery.study.inspect import inspect as run

        found = asyncio.run(run(model, experts or None))
        kind = f"{found.n_expert} experts, {found.n_used} a token" if found.n_expert else "dense"
        _say(f"{found.name}: {found.architecture}, {kind}, {size_text(found.file_bytes)}")
        if found.layers:
            grouped = f", in {found.n_groups} groups" if found.n_groups > 1 else ""
            _say(f"{len(found.layers)} layers with a router{grouped}: {_ranges(found.layers)}")
        _out.print(_bytes_table(found))
        if found.savings or found.vram_bytes:
            _out.print(_memory_table(found))
        for note in found.notes:
            _say(note)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` of 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _bytes_table(found: Inspection) -> Table:
    from coe.engine.units import size_text

    table = Table("tensors", box=None, pad_edge=False)
    for column in ("bytes", "share"):
        table.add_column(column, justify="right")
    total = sum(found.bytes_by_kind.values())
    for kind, size in found.bytes_by_kind.items():
        table.add_row(str(kind), size_text(size), f"{size / total:.1%}")
    return table


def _memory_table(found: Inspection) -> Table:
    """The file, and memory with one conversation, as it is and with fewer experts."""
    from coe.engine.units import size_text

    table = Table("experts a layer", box=None, pad_edge=False)
    where = "VRAM" if found.on_gpu else "memory"
    for column in ("file", "saved", *(f"{where} at {context // 1024}k" for context in found.vram_bytes)):
        table.add_column(column, justify="right")
    whole = [size_text(size) for size in found.vram_bytes.values()]
    table.add_row(str(found.n_expert or "-"), size_text(found.file_bytes), "-", *whole)
    for saving in found.savings:
        sizes = (saving.file_bytes, saving.saved_bytes, *saving.vram_bytes.values())
        table.add_row(str(saving.n_keep), *(size_text(size) for size in sizes))
    return table


# --- compare --------------------------------------------------------------------------------------------------


def compare(
    masks: Annotated[list[str], typer.Argument(help="Masks of one parent, FILE or NAME=FILE.")],
    parent: Annotated[Path | None, typer.Option(help="The parent's GGUF, for masks of other tools.")] = None,
    kind: Kind = "auto",
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="The profile a mask was planned from, NAME=FILE: for the weighted cosine.", show_default=False
        ),
    ] = None,
    accuracies: Annotated[
        Path | None,
        typer.Option(help="JSON of accuracies, {visitor: {target: share}} with a `parent`, or a matrix of coe eval."),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder for heat maps and matrices as PNG.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Write all figures as JSON.")] = None,
) -> None:
    """Compare masks, and say how their overlap foretells accuracy away from home."""
    with clear_errors():
        from coe.surgery.formats import read_mask
        from coe.surgery.mask import Mask
        from coe.surgery.parent import Parent
        from coe.surgery.profile.profile import Profile
        from coe.surgery.study.compare import compare as run

        named = dict(_named(text) for text in masks)
        identity = Parent.open(parent).identity() if parent is not None else None
        read = {
            name: Mask.load(path) if identity is None else read_mask(path, identity, kind=kind)
            for name, path in named.items()
        }
        seen = {name: Profile.load(path).gate_mass() for name, path in map(_named, profile or ())}
        comparison = run(read, seen or None)
        names = comparison.names
        for title, values in (
            ("Jaccard, mean of the layers", comparison.jaccard),
            ("F-score without common experts", comparison.f_score),
            ("cosine weighted by budget", comparison.cosine),
        ):
            if values is not None:
                _out.print(_square(title, names, values))
        found = _transfer(comparison, accuracies) if accuracies is not None else None
        if pictures is not None:
            _draw(pictures, read, comparison, found)
        if out is not None:
            from coe.engine.files import written_beside

            whole = {"comparison": comparison.to_json(), "transfer": found and found.to_json()}
            with written_beside(out) as beside:
                beside.write_text(json.dumps(whole, indent=1) + "\n")


def _prefixed(text: str) -> tuple[str, Path]:
    """NAME=FILE, or FILE with "" for a name; a file whose own name has a "=" is that file."""
    name, found, path = text.partition("=")
    return (name, Path(path)) if found and name and not Path(text).exists() else ("", Path(text))


def _named(text: str) -> tuple[str, Path]:
    """NAME=FILE, or FILE under its own name."""
    name, path = _prefixed(text)
    return name or path.name.removesuffix(".gguf").removesuffix(".json").removesuffix(".npy"), path


def _square(title: str, names: Sequence[str], values: Any) -> Table:
    table = Table(escape(f"{title}:"), box=None, pad_edge=False)
    for name in names:
        table.add_column(escape(name), justify="right")
    for row, name in enumerate(names):
        table.add_row(escape(name), *(f"{value:.3f}" for value in values[row]))
    return table


def _transfer(comparison: Any, path: Path) -> Any:
    from coe.surgery.errors import EvaluationError
    from coe.surgery.study.matrix import TransferMatrix
    from coe.surgery.study.transfer import transfer

    try:
        given = json.loads(path.read_text())
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON: {error}.", "Write {visitor: {target: share}}.") from error
    if isinstance(given, dict) and "cells" in given:
        given = TransferMatrix.from_json(given).accuracies()
    if not isinstance(given, dict) or not all(isinstance(row, dict) for row in given.values()):
        raise EvaluationError(f"{path} holds no accuracies.", "Write {visitor: {target: share}}, with a `parent`.")
    found = transfer(comparison, given)
    table = Table(box=None, pad_edge=False)
    for column in ("predictor", "n", "Pearson r", "p", "95 %"):
        table.add_column(column, justify="left" if column == "predictor" else "right")
    for one in found.correlations:
        figures = [f"{one.r:.3f}", f"{one.p:.3g}"] if one.r is not None and one.p is not None else ["-", "-"]
        bounds = f"{one.low:.2f} to {one.high:.2f}" if one.low is not None and one.high is not None else "-"
        table.add_row(one.predictor, str(one.n), *figures, bounds)
    _say("Transfer efficiency (accuracy of the visitor / the parent's), as foretold by:")
    _out.print(table)
    if (fit := found.fit) is not None:
        _say(f"Together ({', '.join(fit.predictors)}): R² {fit.r_squared:.3f}, adjusted {fit.adjusted_r_squared:.3f}, "
             f"p {fit.p:.3g}, n {fit.n}.")  # fmt: skip
    for note in found.notes:
        _say(note)
    return found


def _draw(folder: Path, masks: Mapping[str, Any], comparison: Any, found: Any) -> None:
    from coe.surgery.study import plots

    folder.mkdir(parents=True, exist_ok=True)
    drawn = [plots.mask_map(folder / "masks.png", masks), plots.overlap_map(folder / "overlap.png", masks)]
    for name, values, title in (
        ("jaccard", comparison.jaccard, "Jaccard, mean of the layers"),
        ("f-score", comparison.f_score, "F-score without the experts of all masks"),
        ("cosine", comparison.cosine, "Cosine of the utilities, weighted by budget"),
    ):
        if values is not None:
            drawn.append(plots.matrix(folder / f"{name}.png", comparison.names, values, title))
    for one in found.correlations if found is not None else ():
        if one.r is not None:
            name = "".join(letter if letter.isalnum() else "-" for letter in one.predictor.lower())
            drawn.append(plots.transfer_scatter(folder / f"transfer-{name}.png", found, one.predictor))
    _say(f"Drawn: {', '.join(str(path) for path in drawn)}")


# --- eval -----------------------------------------------------------------------------------------------------


def evaluate(
    models: Annotated[list[str], typer.Argument(help="GGUFs, FILE or NAME=FILE; several make a matrix.")],
    questions: Annotated[
        list[str], typer.Option(help="Questions as JSON lines, FILE or TARGET=FILE; may be repeated.")
    ],
    beside: Annotated[Path | None, typer.Option(help="The parent's GGUF, asked the same.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report as JSON.")] = None,
    system: Annotated[str, typer.Option(help="System prompt of questions that have none.")] = "",
    max_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 4096,
    context: Annotated[int, typer.Option(help="Tokens of a question and its answer.")] = 8192,
    parallel: Annotated[int, typer.Option(help="Questions asked at once.")] = 8,
    cache: Annotated[int, typer.Option(help="Tokens that they share; 0 for four full contexts.")] = 0,
    seed: Annotated[int, typer.Option(help="For answers that are tried again.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the matrix as a PNG.")] = None,
    gpu_layers: GpuLayers = -1,
    cpu_expert_layers: CpuExperts = 0,
    threads: Threads = 0,
) -> None:
    """Ask a specialist questions with known answers, and its parent the same."""
    with clear_errors("What was answered stays: the same command goes on from there."):
        from coe.surgery.errors import EvaluationError
        from coe.surgery.judge.evaluate import evaluate as run
        from coe.surgery.judge.evaluate import report_table
        from coe.surgery.judge.generation import Settings
        from coe.surgery.judge.questions import read_questions
        from coe.surgery.study.matrix import draw, evaluate_matrix, matrix_table

        named = dict(_named(text) for text in models)
        targets: dict[str, list[Path]] = {}
        for text in questions:
            name, path = _prefixed(text)
            targets.setdefault(name, []).append(path)
        load = replace(
            _load(next(iter(named.values())), gpu_layers, cpu_expert_layers, threads),
            context_tokens=context,
            cache_tokens=cache or 4 * context,
            parallel=parallel,
        )
        load = _fitting(load, [*named.values(), *([beside] if beside is not None else [])])
        settings = Settings(max_tokens=max_tokens, seed=seed)
        if len(named) == 1 and set(targets) == {""}:
            asked = read_questions(targets[""])
            with _bars() as bars:
                report = run(
                    next(iter(named.values())),
                    asked,
                    beside=beside,
                    settings=settings,
                    load=load,
                    system=system,
                    progress=bars.generating,
                )
            _out.print(report_table(report))
            if out is not None:
                report.save(out)
            return
        if beside is None:
            raise EvaluationError("A matrix compares with the parent.", "Add --beside PARENT.")
        sets = {name or "questions": read_questions(paths) for name, paths in targets.items()}
        with _bars() as bars:
            matrix = evaluate_matrix(
                named, sets, beside, settings=settings, load=load, system=system, progress=bars.generating
            )
        _out.print(matrix_table(matrix))
        if out is not None:
            matrix.save(out)
        if picture is not None:
            draw(matrix, picture)


# --- build ----------------------------------------------------------------------------------------------------


def build(
    name: Annotated[str | None, typer.Argument(help="An entry with `build:`; without it, how all builds are.")] = None,
    roster: Annotated[Path, typer.Option("--roster", "-r", help="The roster file.")] = Path("specialists.yaml"),
    accept: Annotated[
        bool, typer.Option("--accept", help="Release what was kept aside, whatever its evaluation says.")
    ] = False,
) -> None:
    """Make a specialist that the roster describes: profile, plan, cut, verify, judge, release.

    Ctrl-C stops it; the same command goes on from there, and tries a failed one again. A running server takes the
    specialist up by itself.
    """
    from ..roster.load import RosterError, load_roster
    from .build import build as run
    from .build import show_builds

    try:
        loaded = load_roster(roster)
    except RosterError as error:
        for problem in error.problems:
            _err.print(str(problem), markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    with clear_errors():
        if name is None:
            if accept:
                _err.print("Which one? Name it: coe build NAME.", markup=False)
                raise typer.Exit(2)
            show_builds(loaded, _out)
            return
        raise typer.Exit(run(loaded, name, accept=accept, out=_out, err=_err, live=sys.stderr.isatty()))

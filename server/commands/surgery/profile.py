"""`coe profile`: expert activation counts of the parent's router over a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .._errors import clear_errors
from .._extras import PLOTS, require
from ._shared import CpuExperts, GpuLayers, Threads, load_spec, out_console, progress_bars, say, tried

if TYPE_CHECKING:
    from coe.engine.spec import LoadSpec
    from coe.surgery.profile.corpus import CorpusFile
    from coe.surgery.profile.profile import Profile


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
    if until_stable:
        require(PLOTS, "--until-stable, which draws a curve,")
    with clear_errors("The same command goes on from there."):
        from coe.surgery.errors import CorpusError
        from coe.surgery.files import require_output
        from coe.surgery.parent import Parent
        from coe.surgery.profile import fitting
        from coe.surgery.profile.corpus import CorpusFile, read_corpus

        given = [*(corpus or []), *(more or [])]
        if not given:
            raise CorpusError("There is no corpus.", "Add --corpus FILE.")
        files = [CorpusFile.parse(text) for text in given]
        require_output(out, [file.path for file in files])
        files = [replace(file, category=file.category or category) for file in files]
        n_keep = experts or max(Parent.open(parent).experts.n_expert // 2, 1)
        load = replace(load_spec(parent, gpu_layers, cpu_expert_layers, threads), context_tokens=context)
        if answer:
            files = _answered(parent, files, out, tried(load, [parent]), max_tokens)
        read = read_corpus(files)
        watched = tried(fitting.load_spec(parent, load), [parent])
        load = replace(load, cpu_expert_layers=watched.cpu_expert_layers)
        _profile(parent, read, out, load, norms, n_keep, criterion if until_stable else None, per_document)


def _answered(
    parent: Path, files: Sequence[CorpusFile], out: Path, load: LoadSpec, max_tokens: int
) -> list[CorpusFile]:
    """The corpus of the parent's own answers to each file's questions, beside the profile."""
    from coe.surgery.judge.answers import answer_questions
    from coe.surgery.judge.generation import GenerationSettings
    from coe.surgery.profile.corpus import CorpusFile

    corpora = []
    for file in files:
        target = out.with_name(f"{out.stem}.{file.path.stem}.answers.jsonl")
        with progress_bars() as bars:
            done = answer_questions(
                parent,
                [file.path],
                target,
                settings=GenerationSettings(max_tokens=max_tokens),
                load=load,
                progress=bars.generating,
            )
        say(
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
    from coe.surgery.profile.run import profile_corpus
    from coe.surgery.profile.summary import summary_line
    from coe.surgery.study.growth import profile_until_stable

    if per_document:
        _look_at_documents(parent, corpus, out, load, experts)
        return
    with progress_bars() as bars:
        if criterion is None:
            found, growth = profile_corpus(parent, corpus, out, norms=norms, load=load, progress=bars.profiling), None
        else:
            found, growth = profile_until_stable(
                parent, corpus, out, experts, criterion=criterion, norms=norms, load=load, progress=bars.profiling
            )
    say(summary_line(found))
    if growth is not None:
        curve = out.with_name(f"{out.stem}.growth.png")
        if growth.settled:
            say(f"The mask of {experts} experts has settled after {found.n_tokens:,} tokens; the curve: {curve}")
        else:
            say(f"The corpus ended before the mask of {experts} experts settled: give more. The curve: {curve}")
    out_console.print(_concentration(found))
    say(f"{out}: next, coe plan {out} --experts {experts} -o mask.json")


def _concentration(found: Profile) -> Table:
    from coe.surgery.profile.summary import summarize

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
    from coe.surgery.study.coherence import MAX_PIECES, coherence
    from coe.surgery.study.document_counts import count_documents

    with progress_bars() as bars:
        counts = count_documents(parent, corpus, out, limit=MAX_PIECES, load=load, progress=bars.profiling)
    found = coherence(counts, experts)
    for note in found.notes:
        say(note)
    if found.coherent:
        say("Nothing speaks for more than one domain.")
        return
    say(found.warning)
    for number, domain in enumerate(found.domains, 1):
        classes = ", ".join(f"{name} {count}" for name, count in domain.classes.items())
        say(f"  part {number}: {len(domain.documents)} documents, {domain.tokens:,} tokens ({classes})")

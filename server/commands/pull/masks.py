"""Masks of published specialists for a roster (`mask_of`): what is fetched, what is there, and the one that fetches it.

Several repositories at a time, each with its own requests; what fails is told at the end, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from rich.console import Console
from rich.progress import Progress

from coe.engine.errors import EngineError
from coe.engine.files import shared_folder
from coe.engine.units import size_text
from coe.surgery.errors import MaskError, ParentMismatchError, SurgeryError
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.recover.recover import Quantisation, Recovered

from ...roster.models import Roster, Specialist
from .._lines import print_line
from .errors import HubUnreachableError, PullError, StoppedError
from .files import HUB, PlannedModel, WantedModel
from .lanes import completed
from .published import Fetched, Hub, fetch_mask, find_published, source_of
from .ranges import RangedModel

# Repositories at a time; a judgement. Eight requests each fill most lines; a second and third repository fill the
# pauses in which another one's header is read and its rows are looked up.
_AT_ONCE: Final = 3

Bars = Callable[[], Progress]
_Error = PullError | SurgeryError | EngineError | OSError


@dataclass(frozen=True)
class WantedMask:
    """A mask to be there: whose it is, of which model, and its place. pattern, revision: as the roster has them."""

    names: tuple[str, ...]
    model: WantedModel
    path: Path

    @property
    def title(self) -> str:
        """The specialists that it is for."""
        return ", ".join(self.names)

    @property
    def address(self) -> str:
        """The model as `coe mask-of` is told it."""
        revision = f"@{self.model.revision}" if self.model.revision else ""
        return f"{HUB}{self.model.repo}{revision}/{self.model.pattern}"


def wanted_masks(roster: Roster, specialists: Iterable[Specialist]) -> list[WantedMask]:
    """The masks of those that say `mask_of`; specialists of one model share one."""
    found: dict[Path, WantedMask] = {}
    for one in specialists:
        if (of := one.mask_of) is not None:
            path = of.path(roster.models_path)
            names = (*(found[path].names if path in found else ()), one.name)
            found[path] = WantedMask(names, WantedModel(", ".join(names), of.repo, of.pattern, of.revision), path)
    return list(found.values())


def is_current(path: Path, model: PlannedModel, parent: Parent) -> bool:
    """Whether a mask that is there was read off these very files, and is one of this parent.

    Files are known by their hashes, and where the hub tells none by the commit: one that changes another file only,
    such as the model's card, changes no mask.
    """
    try:
        mask = Mask.load(path)
    except MaskError:
        return False
    found, wanted = mask.provenance.recipe.get("source"), source_of(model)
    if not isinstance(found, dict) or found.get("repository") != wanted["repository"]:
        return False
    known = all(wanted["files"].values())
    if found.get("files") != wanted["files"] or not (known or found.get("revision") == wanted["revision"]):
        return False
    routers = parent.router_sha256()
    if routers and mask.parent.router_sha256:
        return routers == mask.parent.router_sha256
    return parent.identity().is_checkpoint_of(mask.parent)


def pull_masks(hub: Hub, parent_path: Path, wanted: Sequence[WantedMask], console: Console, bars: Bars) -> bool:
    """Fetch the masks that are not there, or are no longer what the hub lists. Prints what came of it.

    Gives whether all that are wanted are there now. A Ctrl-C ends all requests; what came is kept.
    """
    try:
        parent = Parent.open(parent_path)
        with bars() as progress:
            pulling = _Pulling(hub, parent, console, progress)
            pulling.run(wanted)
    except (SurgeryError, EngineError, OSError) as error:  # of a mask's own they are told beside it
        print_line(console, f"parent: {_said(error)}", "red")
        return False
    pulling.tell(wanted)
    return not pulling.failed


@dataclass(frozen=True)
class _Outcome:
    """What came of one mask."""

    wanted: WantedMask
    model: PlannedModel
    found: Fetched | _Error


@dataclass
class _Pulling:
    """The owner of one pull of masks. Threads fetch, and give what came of it; everything is printed here."""

    hub: Hub
    parent: Parent
    console: Console
    progress: Progress
    fetched: list[tuple[PlannedModel, Fetched]] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)  # what is said -> of which specialists
    _open: set[RangedModel] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)
    _stopped: bool = False

    def run(self, wanted: Sequence[WantedMask]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, "masks") as lanes:
            try:
                planned = self._plan(wanted)
                if planned:
                    self._hash_parent()
                    repositories: dict[str, list[tuple[WantedMask, PlannedModel]]] = {}
                    for one, model in planned:  # one after the other of one repository: they lie in one folder
                        repositories.setdefault(model.repo, []).append((one, model))
                    running = [lanes.submit(self._fetch_all, some) for some in repositories.values()]
                    for done in completed(running):
                        for outcome in done.result():
                            self._note(outcome)
            except BaseException:
                lanes.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise

    def tell(self, wanted: Sequence[WantedMask]) -> None:
        """Say what failed, and how much was fetched of how much."""
        if self.fetched:
            n_bytes = sum(fetched.n_bytes for _, fetched in self.fetched)
            total = sum(model.size_bytes for model, _ in self.fetched)
            what = "1 mask" if len(self.fetched) == 1 else f"{len(self.fetched)} masks"
            self._print(f"{what}: {size_text(n_bytes)} of {size_text(total)} were fetched.")
        for said, titles in self.failed.items():
            self._print(f"{', '.join(titles)}: {said}", "red")
        if self.failed and len(wanted) > 1:
            n_failed = sum(map(len, self.failed.values()))
            rest = "; the others are there" if n_failed < len(wanted) else ""
            self._print(f"{n_failed} of {len(wanted)} masks could not be fetched{rest}.", "red")

    def _plan(self, wanted: Sequence[WantedMask]) -> list[tuple[WantedMask, PlannedModel]]:
        """Ask the hub for all of them, here and not on a thread: a Ctrl-C ends a request that waits. Gives those that
        have to be fetched, in order."""
        planned = []
        unreachable: HubUnreachableError | None = None
        for one in wanted:
            try:
                if unreachable is not None:
                    raise unreachable
                model = find_published(self.hub, one.model)
                if is_current(one.path, model, self.parent):
                    self._print(f"{one.title}: already there, {one.path}")
                else:
                    planned.append((one, model))
            except (PullError, SurgeryError, EngineError, OSError) as error:
                self._fail(one, error)
                unreachable = error if isinstance(error, HubUnreachableError) else unreachable
        return planned

    def _hash_parent(self) -> None:
        """Once for all masks: each of them asks for the parent's identity, and finds it in the cache then."""
        total = sum(path.stat().st_size for path in self.parent.paths)
        bar = self.progress.add_task(f"hash {self.parent.path.name}", total=total, visible=False)
        self.parent.identity(lambda n_bytes: self.progress.update(bar, advance=n_bytes, visible=True))
        self.progress.update(bar, visible=False)

    def _fetch_all(self, some: Sequence[tuple[WantedMask, PlannedModel]]) -> list[_Outcome]:
        """Of one repository; runs on a thread."""
        outcomes = []
        for one, model in some:
            try:
                outcomes.append(_Outcome(one, model, self._fetch(one, model)))
            except StoppedError:
                break
            except (PullError, SurgeryError, EngineError, OSError) as error:
                outcomes.append(_Outcome(one, model, error))
        return outcomes

    def _fetch(self, one: WantedMask, model: PlannedModel) -> Fetched:
        bar = self.progress.add_task(one.title, total=None)
        opened: list[RangedModel] = []

        def begin(ranged: RangedModel) -> None:
            opened.append(ranged)
            with self._lock:
                self._open.add(ranged)
                stopped = self._stopped
            if stopped:
                ranged.stop()

        def save(found: Recovered) -> None:
            shared_folder(one.path.parent)
            found.mask.save(one.path)

        try:
            return fetch_mask(
                self.hub,
                model,
                self.parent,
                save,
                on_bytes=lambda done, total: self.progress.update(bar, completed=done, total=total),
                on_open=begin,
            )
        finally:
            self.progress.update(bar, visible=False)
            with self._lock:
                self._open.difference_update(opened)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._open)
        for ranged in running:
            ranged.stop()

    def _note(self, outcome: _Outcome) -> None:
        if not isinstance(outcome.found, Fetched):
            self._fail(outcome.wanted, outcome.found)
            return
        self.fetched.append((outcome.model, outcome.found))
        one, found = outcome.wanted, outcome.found.recovered
        mask = found.mask
        quantisation = {
            Quantisation.SAME: "the same bytes",
            Quantisation.OTHER: "the same experts, in your parent's quantisation",
            Quantisation.UNKNOWN: "of a type that cannot be compared here",
        }[found.quantisation]
        kept = f"{mask.n_keep} of {mask.parent.n_expert} experts, one compared: {quantisation}"
        self._print(f"{one.title}: {one.path} ({kept})")
        for note in found.notes:
            self._print(f"{one.title}: {note}")

    def _fail(self, one: WantedMask, error: _Error) -> None:
        said = _said(error)
        if isinstance(error, ParentMismatchError):
            # Of what it names, --nearest is an option of that command.
            said += f" (By hand: coe mask-of '{one.address}' --parent {self.parent.path} -o {one.path})"
        self.failed.setdefault(said, []).append(one.title)

    def _print(self, text: str, style: str | None = None) -> None:
        print_line(self.console, text, style)


def _said(error: _Error) -> str:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}."
    return f"{error.message} {error.remedy}".strip()

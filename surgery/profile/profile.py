"""A profile: expert activation counts and router weights over a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.files import unread, written_beside
from coe.engine.text import quoted

from ..errors import ParentMismatchError, ProfileError
from ..files import read_arrays
from ..parent import Identity

_VERSION: Final = 1


@dataclass(frozen=True)
class Profile:
    """Counts and sums over a corpus, class by class of its documents.

    Axes: C classes, L layers with a router (ascending, `parent.layers`), E experts, R ranks (0: the first choice).

    selections [C, L, E, R] int64:   how often an expert was chosen at a rank.
    weights    [C, L, E, R] float64: sum of the router's weights of those choices, as the graph uses them (normalised
                                     where the architecture normalises).
    tokens     [C] int64:            tokens evaluated.
    documents  [C] int64:            documents read.
    norms      [C, L, E] float64:    sum of ||weight x expert output||, the L2 norm over the embedding; None when not
                                     collected.
    peaks      [L, E] float64:       largest |value| of an expert's own output, before the weight; None with norms.
    """

    parent: Identity
    classes: tuple[str, ...]
    selections: NDArray[np.int64]
    weights: NDArray[np.float64]
    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    norms: NDArray[np.float64] | None = None
    peaks: NDArray[np.float64] | None = None
    corpus_sha256: str = ""

    @classmethod
    def empty(
        cls, parent: Identity, classes: Sequence[str], *, norms: bool = False, corpus_sha256: str = ""
    ) -> Profile:
        """A profile of nothing yet."""
        shape = (len(classes), len(parent.layers), parent.n_expert, parent.n_used)
        return cls(
            parent,
            tuple(classes),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float64),
            np.zeros(len(classes), np.int64),
            np.zeros(len(classes), np.int64),
            np.zeros(shape[:3], np.float64) if norms else None,
            np.zeros(shape[1:3], np.float64) if norms else None,
            corpus_sha256,
        )

    @property
    def n_tokens(self) -> int:
        """Tokens of all classes."""
        return int(self.tokens.sum())

    def of_class(self, name: str) -> Profile:
        """The profile of one class alone. Raises ProfileError, naming the known, for another."""
        if name not in self.classes:
            raise ProfileError(f"There is no class {name!r}.", f"The profile has: {', '.join(self.classes)}.")
        at = [self.classes.index(name)]
        return replace(
            self,
            classes=(name,),
            selections=self.selections[at],
            weights=self.weights[at],
            tokens=self.tokens[at],
            documents=self.documents[at],
            norms=None if self.norms is None else self.norms[at],
        )

    def merged(self) -> Profile:
        """All classes as one, called `all`."""
        return replace(
            self,
            classes=("all",),
            selections=self.selections.sum(0, keepdims=True),
            weights=self.weights.sum(0, keepdims=True),
            tokens=self.tokens.sum(keepdims=True),
            documents=self.documents.sum(keepdims=True),
            norms=None if self.norms is None else self.norms.sum(0, keepdims=True),
        )

    def gate_mass(self) -> NDArray[np.float64]:
        """[L, E]: mean router weight a token, over all classes; the cards' utility in its short form."""
        return np.asarray(self.weights.sum((0, 3)) / max(self.n_tokens, 1))

    def entropy(self) -> NDArray[np.float64]:
        """[L], 0..1: entropy of the gate mass over the experts beside that of an even spread. 1: no concentration."""
        mass = self.gate_mass()
        share = mass / np.maximum(mass.sum(1, keepdims=True), 1e-300)
        logs = np.log(share, out=np.zeros_like(share), where=share > 0)
        return np.asarray(-(share * logs).sum(1) / np.log(self.parent.n_expert))

    def save(self, path: Path, **extra: Any) -> None:
        """Write as .npz, beside and renamed. extra: JSON facts kept with it (`read_extra` gives them back)."""
        facts = {
            "version": _VERSION,
            "parent": asdict(self.parent),
            "classes": self.classes,
            "corpus_sha256": self.corpus_sha256,
            "extra": extra,
        }
        arrays: dict[str, NDArray[Any]] = {
            "selections": self.selections,
            "weights": self.weights,
            "tokens": self.tokens,
            "documents": self.documents,
        }
        if self.norms is not None and self.peaks is not None:
            arrays |= {"norms": self.norms, "peaks": self.peaks}
        with written_beside(path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read one. Raises ProfileError for a file that is none, or of another version."""
        facts, arrays = _read(path)
        try:
            parent = Identity.from_json(facts["parent"])
            classes, corpus = facts["classes"], facts["corpus_sha256"]
            if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
                raise ValueError("its classes must be names")
            if len(set(classes)) < len(classes) or not isinstance(corpus, str):
                raise ValueError("it has a class twice, or no hash of its corpus")
            shape = (len(classes), len(parent.layers), parent.n_expert, parent.n_used)
            shapes = {"selections": shape, "weights": shape, "tokens": shape[:1], "documents": shape[:1]}
            if "norms" in arrays or "peaks" in arrays:
                shapes |= {"norms": shape[:3], "peaks": shape[1:3]}
            counts = {name: _counts(arrays, name, shape) for name, shape in shapes.items()}
        except KeyError as error:
            raise ProfileError(f"{path} is no profile: it lacks {error}.", _AGAIN) from error
        except ValueError as error:
            raise ProfileError(f"{path} contradicts itself: {error}.", _AGAIN) from error
        return cls(parent, tuple(classes), **counts, corpus_sha256=corpus)


_AGAIN: Final = "Make it again with coe profile."
_MOST_FILE_BYTES: Final = 2**28
_MOST_BYTES: Final = 2**30  # 64 classes of 60 layers of 512 experts with 8 ranks take a quarter of it


def _counts(arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of a profile's file. Raises KeyError, ValueError for one that counts nothing or has another shape."""
    kind = np.int64 if name in ("selections", "tokens", "documents") else np.float64
    found = arrays[name]
    if found.shape != shape:
        raise ValueError(f"its {name} have another shape than its parent and classes")
    if found.dtype != kind or not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"its {name} are no counts")
    return found


def read_extra(path: Path) -> Mapping[str, Any]:
    """The facts that were saved beside a profile."""
    extra = _read(path)[0].get("extra")
    if not isinstance(extra, dict):
        raise ProfileError(f"{path} lacks the facts that are kept beside a profile.", _AGAIN)
    return extra


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        arrays = read_arrays(path, _MOST_FILE_BYTES, _MOST_BYTES)
        facts = json.loads(str(arrays.pop("facts")))
    except OSError as error:
        raise ProfileError(f"{unread(path, error)}.", _AGAIN) from error
    except (ValueError, KeyError, RecursionError) as error:
        raise ProfileError(f"{path} is no profile, or is damaged.", _AGAIN) from error
    if not isinstance(facts, dict):
        raise ProfileError(f"{path} is no profile.", _AGAIN)
    if facts.get("version") != _VERSION:
        raise ProfileError(
            f"{path} is of version {quoted(facts.get('version'))}; this program reads {_VERSION}.", _AGAIN
        )
    return facts, arrays


def combine(profiles: Sequence[Profile]) -> Profile:
    """One profile of several, classes of the same name added up.

    Raises ParentMismatchError when they are of different parents.
    """
    first = profiles[0]
    for other in profiles[1:]:
        if other.parent.sha256 != first.parent.sha256:
            raise ParentMismatchError(
                f"One profile is of {first.parent.name}, another of {other.parent.name}.",
                "Combine those of one parent.",
            )
    read = [(profile.corpus_sha256, profile.classes) for profile in profiles if profile.corpus_sha256]
    if len(set(read)) < len(read):
        raise ProfileError("Two of the profiles are of the same corpus, which would count twice.", "Give each once.")
    classes = tuple(dict.fromkeys(name for profile in profiles for name in profile.classes))
    with_norms = all(profile.norms is not None for profile in profiles)
    total = Profile.empty(first.parent, classes, norms=with_norms)
    for profile in profiles:
        at = [classes.index(name) for name in profile.classes]
        total.selections[at] += profile.selections
        total.weights[at] += profile.weights
        total.tokens[at] += profile.tokens
        total.documents[at] += profile.documents
        if total.norms is not None and total.peaks is not None:
            assert profile.norms is not None
            assert profile.peaks is not None
            total.norms[at] += profile.norms
            np.maximum(total.peaks, profile.peaks, out=total.peaks)
    hashes = sorted({profile.corpus_sha256 for profile in profiles})
    return replace(total, corpus_sha256="+".join(hashes))

"""A profile: expert activation counts and router weights over a corpus."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.files import written_beside

from ..errors import ParentMismatchError, ProfileError
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
        parent = facts["parent"] | {"layers": tuple(facts["parent"]["layers"])}
        profile = cls(
            Identity(**parent),
            tuple(facts["classes"]),
            arrays["selections"],
            arrays["weights"],
            arrays["tokens"],
            arrays["documents"],
            arrays.get("norms"),
            arrays.get("peaks"),
            facts["corpus_sha256"],
        )
        wanted = cls.empty(profile.parent, profile.classes).selections.shape
        if profile.selections.shape != wanted or profile.weights.shape != wanted:
            raise ProfileError(f"{path} contradicts itself: its counts have another shape than its parent.", _AGAIN)
        return profile


_AGAIN: Final = "Make it again with coe profile."


def read_extra(path: Path) -> Mapping[str, Any]:
    """The facts that were saved beside a profile."""
    extra: Mapping[str, Any] = _read(path)[0]["extra"]
    return extra


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        facts = json.loads(str(arrays.pop("facts")))
    except FileNotFoundError as error:
        raise ProfileError(f"{path} does not exist.", _AGAIN) from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ProfileError(f"{path} is no profile, or is damaged.", _AGAIN) from error
    if facts.get("version") != _VERSION:
        raise ProfileError(f"{path} is of version {facts.get('version')}; this program reads {_VERSION}.", _AGAIN)
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

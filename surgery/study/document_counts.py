"""Gate mass document by document: what `coherence` clusters, taken by one profiling run and kept in a file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.files import written_beside
from coe.engine.spec import LoadSpec

from ..errors import ProfileError
from ..parent import Identity
from ..profile.corpus import Corpus
from ..profile.run import ProfileProgress, profile_corpus

_VERSION: Final = 1
_AGAIN: Final = "Make it again: coe profile --per-document."


@dataclass(frozen=True)
class DocumentCounts:
    """What the router did with each document of a corpus: a profile a document.

    names [D], classes [D]:         of the documents, in the order of the corpus.
    tokens [D] int64:               tokens evaluated.
    document_mass [D, L, E] float32: sum of the router's weights over a document's tokens, all ranks together.
    """

    parent: Identity
    names: tuple[str, ...]
    classes: tuple[str, ...]
    tokens: NDArray[np.int64]
    document_mass: NDArray[np.float32]
    corpus_sha256: str = ""

    def __post_init__(self) -> None:
        """Raises ProfileError when the parts do not go together."""
        shape = (len(self.names), len(self.parent.layers), self.parent.n_expert)
        if self.document_mass.shape != shape or self.tokens.shape != shape[:1] or len(self.classes) != shape[0]:
            raise ProfileError("The counts of the documents contradict each other.", _AGAIN)

    def save(self, path: Path) -> None:
        """Write as .npz, beside and renamed."""
        facts = {
            "version": _VERSION,
            "kind": "documents",
            "parent": asdict(self.parent),
            "names": self.names,
            "classes": self.classes,
            "corpus_sha256": self.corpus_sha256,
        }
        arrays: dict[str, NDArray[Any]] = {"tokens": self.tokens, "document_mass": self.document_mass}
        with written_beside(path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)

    @classmethod
    def load(cls, path: Path) -> DocumentCounts:
        """Read them. Raises ProfileError for a file that holds none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            facts = json.loads(str(arrays["facts"]))
            known = facts["kind"] == "documents" and facts["version"] == _VERSION
            parent = Identity(**facts["parent"] | {"layers": tuple(facts["parent"]["layers"])}) if known else None
        except FileNotFoundError as error:
            raise ProfileError(f"{path} does not exist.", _AGAIN) from error
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
            raise ProfileError(f"{path} holds no counts of documents, or is damaged.", _AGAIN) from error
        if parent is None:
            raise ProfileError(f"{path} holds no counts of documents of version {_VERSION}.", _AGAIN)
        return cls(
            parent,
            tuple(facts["names"]),
            tuple(facts["classes"]),
            arrays["tokens"],
            arrays["document_mass"],
            facts["corpus_sha256"],
        )


def count_documents(
    parent: Path,
    corpus: Corpus,
    out: Path,
    *,
    limit: int,
    load: LoadSpec,
    progress: Callable[[ProfileProgress], None] = lambda progress: None,
) -> DocumentCounts:
    """What the router does with each of at most `limit` documents, evenly spread over the corpus.

    out: where the counts lie while they are taken, and afterwards; an interrupted run goes on from there.
    Raises SurgeryError or EngineError.
    """
    found = profile_corpus(parent, corpus.by_document(limit), out, load=load, progress=progress)
    places = [int(name.removeprefix("document ")) for name in found.classes]
    counts = DocumentCounts(
        found.parent,
        found.classes,
        tuple(corpus.documents[place].category for place in places),
        found.tokens,
        found.weights.sum(3).astype(np.float32),
        corpus.sha256,
    )
    counts.save(out)
    return counts

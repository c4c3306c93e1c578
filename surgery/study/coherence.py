"""Whether a corpus is one domain: hierarchical clustering of its documents' masks by their F-scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from ..errors import ProfileError
from ..mask import require_count
from ..plan.selection import Kept, top_k
from .compare import f_scores
from .document_counts import DocumentCounts

MIN_TOKENS: Final = 256
MAX_PIECES: Final = 200
_MAX_DOMAINS: Final = 6
_PERMUTATIONS: Final = 199
_CHANCE: Final = 0.01
_LEAST_SHARE: Final = 0.1
# Physics and chemistry, the two domains of the third model card whose masks have most in common.
_NEAREST_DOMAINS: Final = 0.855
_BELOW_RANDOM: Final = 0.05


@dataclass(frozen=True)
class Piece:
    """Documents that are looked at as one, because one alone is too short: indices into the counts."""

    documents: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Domain:
    """Pieces whose masks are alike.

    documents: names, in the order of the corpus. classes: class -> documents.
    alike:     mean F-score between its pieces; of single pieces, so noise is in it.
    """

    documents: tuple[str, ...]
    tokens: int
    classes: dict[str, int]
    alike: float


@dataclass(frozen=True)
class Coherence:
    """How one the corpus is.

    pieces, f_scores [P, P]: what was compared, without the experts that every piece's mask has.
    labels [P]:      domain of each piece, from 0; -1 for pieces in a cluster too small to be a domain.
    domains:         the proposed split, largest first; one entry when the corpus is coherent.
    between:         largest F-score between two domains' own masks; 1 when there is one.
    random:          the same for documents dealt out at random in as many parts of the same sizes.
    p:               chance that clusters found in half of the layers show as clearly in the other half by accident.
    warning:         a sentence for a person; empty when the corpus is coherent.
    notes:           what the figures do not say by themselves.
    """

    pieces: tuple[Piece, ...]
    f_scores: NDArray[np.float64]
    labels: tuple[int, ...]
    domains: tuple[Domain, ...]
    between: float
    random: float
    p: float
    warning: str
    notes: tuple[str, ...]

    @property
    def coherent(self) -> bool:
        """Whether nothing speaks for a split."""
        return not self.warning


def coherence(
    counts: DocumentCounts,
    n_keep: int,
    *,
    min_tokens: int = MIN_TOKENS,
    max_pieces: int = MAX_PIECES,
    seed: int = 0,
) -> Coherence:
    """Whether the documents ask for one specialist of n_keep experts a layer, or for several.

    Documents shorter than min_tokens are joined with their neighbours of the same class, since the mask of a few tokens
    is noise; of more than max_pieces such pieces a seeded sample is compared. The pieces' masks (highest gate mass) are
    clustered by 1 - F-score, average linkage. Clusters are believed when all of this holds:

    - found in the even layers they show in the odd ones, and the other way round, better than 99 % of permutations
      (mean silhouette): what is noise in one half is not repeated in the other;
    - at least two of them hold a tenth of the tokens each;
    - their own masks, each from all tokens of a cluster, share less than the two nearest domains of the third model
      card do (F-score 0.855), and by 0.05 less than random parts of the same sizes do.

    Pieces beyond the sample go to the domain whose mask theirs has most in common with. Topics that pass into each
    other without a gap are split as well when their ends overlap so little: a mask serves these no better than it would
    separate domains.

    Raises ProfileError when there are no documents with tokens, MaskError for an n_keep that cannot be.
    """
    require_count(counts.parent, n_keep)
    groups = counts.parent.n_groups
    every, notes = _pieces(counts, min_tokens)
    pieces, rest = _sampled(every, max_pieces, np.random.default_rng(seed))
    if rest:
        notes.append(f"{len(pieces)} of {len(every)} pieces were compared, drawn at random.")
    mass, kept = _masks(counts, pieces, n_keep)
    common: Kept = np.logical_and.reduce(kept)
    own = kept & ~common
    scores = f_scores(own)
    one = _one_domain(counts, pieces, rest, scores)
    if len(pieces) < 4:
        notes.append(f"{len(pieces)} pieces of at least {min_tokens} tokens are too few to look for domains.")
        return replace(one, notes=tuple(notes))
    halves = _halves(own)
    n_clusters = max(range(2, min(_MAX_DOMAINS, len(pieces) // 2) + 1), key=lambda k: _repeats(halves, k))
    p = _chance(halves, n_clusters, np.random.default_rng([seed, 1]))
    labels = _largest_first(_clusters(scores, n_clusters), pieces)
    if p > _CHANCE or max(labels) < 1:
        return replace(one, p=p, notes=tuple(notes))
    between = _alike(mass, labels, n_keep, groups, common)
    random = _random_parts(mass, labels, n_keep, groups, common, np.random.default_rng([seed, 2]))
    if between > _NEAREST_DOMAINS or between > random - _BELOW_RANDOM:
        notes.append(
            f"Documents fall into {max(labels) + 1} clusters, but a specialist of each would keep nearly the same "
            f"experts (F-score {between:.2f}; of random parts {random:.2f})."
        )
        return replace(one, p=p, notes=tuple(notes))
    domains = _domains(counts, pieces, scores, labels, rest, _nearest(counts, rest, mass, labels, n_keep))
    if outside := sum(label < 0 for label in labels):
        notes.append(f"{outside} of {len(pieces)} pieces are in no domain: too few of them are alike.")
    tokens = sum(piece.tokens for piece in every)
    shares = ", ".join(f"{domain.tokens / tokens:.0%}" for domain in domains)
    warning = (
        f"The corpus looks like {len(domains)} domains ({shares} of the tokens): their own masks have an F-score "
        f"of {between:.2f}, random parts of it {random:.2f}. One specialist for all is likely to be weak in each: "
        "build one for each of the parts."
    )
    return Coherence(pieces, scores, labels, domains, between, random, p, warning, tuple(notes))


def _pieces(counts: DocumentCounts, min_tokens: int) -> tuple[list[Piece], list[str]]:
    """Documents joined until they have min_tokens, class by class in corpus order, and notes on that."""
    pieces: list[Piece] = []
    too_short = 0
    for name in dict.fromkeys(counts.classes):
        own: list[Piece] = []
        waiting: list[int] = []
        for index in (i for i, one in enumerate(counts.classes) if one == name and counts.tokens[i] > 0):
            waiting.append(index)
            if (tokens := int(counts.tokens[waiting].sum())) >= min_tokens:
                own.append(Piece(tuple(waiting), tokens))
                waiting = []
        if waiting and own:
            last = (*own.pop().documents, *waiting)
            own.append(Piece(last, int(counts.tokens[list(last)].sum())))
        elif waiting:
            too_short += len(waiting)
        pieces += own
    if not pieces:
        raise ProfileError(
            f"No document, nor all of a class together, has {min_tokens} tokens.", "Give a larger corpus."
        )
    notes = []
    if any(len(piece.documents) > 1 for piece in pieces):
        notes.append(f"Short documents were joined with their neighbours, to {min_tokens} tokens or more.")
    if too_short:
        notes.append(f"{too_short} documents were left out: all of their class together are shorter than that.")
    return pieces, notes


def _sampled(
    pieces: Sequence[Piece], most: int, rng: np.random.Generator
) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """At most so many of the pieces, in order, and the others."""
    if len(pieces) <= most:
        return tuple(pieces), ()
    chosen = set(rng.choice(len(pieces), most, replace=False).tolist())
    return (
        tuple(piece for at, piece in enumerate(pieces) if at in chosen),
        tuple(piece for at, piece in enumerate(pieces) if at not in chosen),
    )


def _masks(counts: DocumentCounts, pieces: Sequence[Piece], n_keep: int) -> tuple[NDArray[np.float64], Kept]:
    """Gate mass and mask of each piece, [P, L, E] both."""
    mass = [counts.document_mass[list(piece.documents)].sum(0, dtype=np.float64) for piece in pieces]
    return np.stack(mass), np.stack([top_k(one, n_keep, counts.parent.n_groups) for one in mass])


def _nearest(
    counts: DocumentCounts, rest: Sequence[Piece], mass: NDArray[np.float64], labels: Sequence[int], n_keep: int
) -> tuple[int, ...]:
    """The domain of each piece that was not in the sample."""
    if not rest:
        return ()
    at = np.array(labels)
    own = np.stack([top_k(mass[at == one].sum(0), n_keep, counts.parent.n_groups) for one in range(max(labels) + 1)])
    theirs = _masks(counts, rest, n_keep)[1]
    return tuple(np.einsum("ple,dle->pd", theirs.astype(np.int64), own.astype(np.int64)).argmax(1).tolist())


def _halves(own: Kept) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F-scores by the even and by the odd layers; of a single layer by its even and odd experts."""
    axis = 1 if own.shape[1] > 1 else 2
    return f_scores(own.take(range(0, own.shape[axis], 2), axis)), f_scores(
        own.take(range(1, own.shape[axis], 2), axis)
    )


def _clusters(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    distances = squareform(1 - (scores + scores.T) / 2, checks=False)
    return np.asarray(fcluster(linkage(distances, "average"), count, "maxclust"), np.int64)


def _silhouette(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean over the pieces of (b - a) / max(a, b): a the mean distance to its own cluster, b to the nearest other.

    0 for a piece alone in its cluster. Source: P. Rousseeuw, "Silhouettes", 1987.
    """
    distances = 1 - scores
    np.fill_diagonal(distances, 0)
    members = labels[:, None] == np.unique(labels)[None, :]
    sizes = members.sum(0)
    if len(sizes) < 2:
        return 0.0
    sums = distances @ members
    own_size = sizes[members.argmax(1)]
    own = sums[members] / np.maximum(own_size - 1, 1)
    others = np.where(members, np.inf, sums / sizes).min(1)
    larger = np.maximum(own, others)
    return float(np.where((own_size > 1) & (larger > 0), (others - own) / np.where(larger > 0, larger, 1), 0).mean())


def _repeats(halves: tuple[NDArray[np.float64], NDArray[np.float64]], count: int) -> float:
    """How clearly clusters found in one half of the layers show in the other, both ways."""
    one, other = halves
    return (_silhouette(other, _clusters(one, count)) + _silhouette(one, _clusters(other, count))) / 2


def _chance(halves: tuple[NDArray[np.float64], NDArray[np.float64]], count: int, rng: np.random.Generator) -> float:
    """Share of permutations of the pieces that do as well as the clusters themselves, these counted as one."""
    one, other = halves
    first, second = _clusters(one, count), _clusters(other, count)
    found = (_silhouette(other, first) + _silhouette(one, second)) / 2
    as_good = sum(
        (_silhouette(other, rng.permutation(first)) + _silhouette(one, rng.permutation(second))) / 2 >= found
        for _ in range(_PERMUTATIONS)
    )
    return (as_good + 1) / (_PERMUTATIONS + 1)


def _largest_first(clusters: NDArray[np.int64], pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Clusters numbered from 0 by their tokens; -1 for those below a tenth of all, or of a single piece."""
    tokens = np.array([piece.tokens for piece in pieces])
    sizes = {int(one): int(tokens[clusters == one].sum()) for one in np.unique(clusters)}
    large = [
        one
        for one in sorted(sizes, key=lambda one: (-sizes[one], one))
        if sizes[one] >= _LEAST_SHARE * tokens.sum() and (clusters == one).sum() > 1
    ]
    return tuple(large.index(int(one)) if int(one) in large else -1 for one in clusters)


def _alike(mass: NDArray[np.float64], labels: Sequence[int], n_keep: int, groups: int, common: Kept) -> float:
    """Largest F-score between the masks of two domains, each from all of its pieces."""
    at = np.array(labels)
    masks = np.stack([top_k(mass[at == one].sum(0), n_keep, groups) for one in range(max(labels) + 1)]) & ~common
    scores = f_scores(masks)
    return float(scores[~np.eye(len(scores), dtype=bool)].max())


def _random_parts(
    mass: NDArray[np.float64],
    labels: Sequence[int],
    n_keep: int,
    groups: int,
    common: Kept,
    rng: np.random.Generator,
) -> float:
    """`_alike` of pieces dealt out at random, the mean of 20 deals."""
    deals = [_alike(mass, rng.permutation(labels).tolist(), n_keep, groups, common) for _ in range(20)]
    return float(np.mean(deals))


def _one_domain(
    counts: DocumentCounts, pieces: tuple[Piece, ...], rest: tuple[Piece, ...], scores: NDArray[np.float64]
) -> Coherence:
    labels = (0,) * len(pieces)
    domains = _domains(counts, pieces, scores, labels, rest, (0,) * len(rest))
    return Coherence(pieces, scores, labels, domains, 1.0, 1.0, 1.0, "", ())


def _domains(
    counts: DocumentCounts,
    pieces: Sequence[Piece],
    scores: NDArray[np.float64],
    labels: Sequence[int],
    rest: Sequence[Piece],
    rest_labels: Sequence[int],
) -> tuple[Domain, ...]:
    domains = []
    for label in range(max(labels) + 1):
        at = [index for index, one in enumerate(labels) if one == label]
        own = [pieces[index] for index in at]
        own += [piece for piece, one in zip(rest, rest_labels, strict=True) if one == label]
        documents = sorted(document for piece in own for document in piece.documents)
        inner = scores[np.ix_(at, at)]
        classes = [counts.classes[document] for document in documents]
        domains.append(
            Domain(
                tuple(counts.names[document] for document in documents),
                sum(piece.tokens for piece in own),
                {name: classes.count(name) for name in dict.fromkeys(classes)},
                float(inner[~np.eye(len(at), dtype=bool)].mean()) if len(at) > 1 else 1.0,
            )
        )
    return tuple(domains)

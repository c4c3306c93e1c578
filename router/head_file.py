"""The head's file format: quantised arrays (head.npz, loaded with pickle refused) and a description (head.json).

N-gram weights and the embeddings of the shipped prompts are int8 with a scale for each column, the rest is float16 or
float32. The description holds labels, temperatures, how the head was made, and the SHA-256 of the arrays' file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoder import DIMENSIONS
from .features import N_BUCKETS
from .files import parse_json, read_file, written_beside
from .head import Floats, Head, HeadError, Hidden, Linear
from .training_prompts import prompts_digest, shipped_prompts

# Bounds far above the shipped head: 4 MB, 15 unpacked.
_MOST_BYTES = 2**27
_MOST_UNPACKED_BYTES = 2**29
_MOST_ABOUT_BYTES = 2**20

SHIPPED = Path(__file__).parent / "head.npz"

# The arrays of a head's file. A size with a name is the same wherever the name stands.
SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "idf": (N_BUCKETS,),
    "ngram": (N_BUCKETS, "labels"),
    "ngram_scale": ("labels",),
    "ngram_bias": ("labels",),
    "joint": (N_BUCKETS, "labels"),
    "joint_scale": ("labels",),
    "joint_bias": ("labels",),
    "embedding": (DIMENSIONS, "labels"),
    "prompts": ("prompts", DIMENSIONS),
    "prompts_scale": (DIMENSIONS,),
}
HIDDEN_SHAPES: Mapping[str, tuple[int | str, ...]] = {  # a head may be without
    "inward": (DIMENSIONS, "units"),
    "inward_scale": ("units",),
    "inward_bias": ("units",),
    "outward": ("units", "labels"),
}


def save_head(head: Head, path: Path) -> None:
    """Write `path` (npz, n-gram weights as int8 with one scale a label) and its description beside it (json)."""
    if head.joint.embedding is None:
        raise HeadError("a head needs embedding weights")
    hidden = head.joint.hidden
    units: dict[str, Any] = {} if hidden is None else _hidden_arrays(hidden)
    prompts = head.prompts if head.prompts is not None else np.zeros((0, DIMENSIONS), np.float32)
    quantised_prompts, prompts_scale = _quantise(prompts)
    ngram, ngram_scale = _quantise(head.ngram.ngrams)
    joint, joint_scale = _quantise(head.joint.ngrams)
    # The head and its description change together: one without the other would be refused.
    with written_beside(path, path.with_suffix(".json")) as (beside, description):
        with beside.open("wb") as file:
            np.savez_compressed(
                file,
                idf=head.idf.astype(np.float16),
                ngram=ngram,
                ngram_scale=ngram_scale,
                ngram_bias=head.ngram.bias,
                joint=joint,
                joint_scale=joint_scale,
                joint_bias=head.joint.bias,
                embedding=head.joint.embedding.astype(np.float16),
                prompts=quantised_prompts,
                prompts_scale=prompts_scale,
                **units,
            )
        about = {
            **head.about,
            "labels": list(head.labels),
            "temperature": {"ngram": head.ngram.temperature, "joint": head.joint.temperature},
            "sha256": hashlib.sha256(beside.read_bytes()).hexdigest(),
            "prompts_sha256": prompts_digest(),
        }
        description.write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def load_head(path: Path = SHIPPED) -> Head:
    """Read a head that `save_head` wrote.

    Raises HeadError, with the remedy, when a file is missing or damaged, or is not what this version reads.
    """
    remedy = "reinstall the package"
    if path.resolve() != SHIPPED.resolve():
        remedy = f"make it again with `coe train-router QUESTIONS.jsonl -o {path}`"
    description = path.with_suffix(".json")
    try:
        about = parse_json(read_file(description, _MOST_ABOUT_BYTES))
        if not isinstance(about, dict):
            raise ValueError(f"its description {description.name} is no object")
        written = read_file(path, _MOST_BYTES)
        found = hashlib.sha256(written).hexdigest()
        if found != about["sha256"]:
            raise ValueError(f"it has SHA-256 {found}, its description {description.name} says {about['sha256']}")
        if not zipfile.is_zipfile(io.BytesIO(written)):  # of which numpy says that it could be loaded unsafely
            raise ValueError("it is no whole .npz archive")
        with zipfile.ZipFile(io.BytesIO(written)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _MOST_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to {unpacked:,} bytes")
        with np.load(io.BytesIO(written), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        labels = _labels(about)
        _check_shapes(arrays, len(labels))
        prompts = _dequantised(arrays, "prompts")
        same_prompts = len(prompts) == len(shipped_prompts()) and about.get("prompts_sha256") == prompts_digest()
        return Head(
            labels=labels,
            idf=arrays["idf"].astype(np.float32),
            ngram=Linear(
                _dequantised(arrays, "ngram"),
                None,
                arrays["ngram_bias"].astype(np.float32),
                _temperature(about, "ngram"),
            ),
            joint=Linear(
                _dequantised(arrays, "joint"),
                arrays["embedding"].astype(np.float32),
                arrays["joint_bias"].astype(np.float32),
                _temperature(about, "joint"),
                _hidden(arrays),
            ),
            about=about,
            prompts=prompts if same_prompts else None,
        )
    except KeyError as error:
        raise HeadError(f"the head {path} cannot be read: {description.name} lacks {error}; {remedy}") from error
    except OSError as error:
        raise HeadError(f"the head {error.filename or path} cannot be read: {error.strerror}; {remedy}") from error
    # numpy, zipfile and the decompressors raise what they like on a damaged archive; MemoryError for a shape of 10^15.
    except Exception as error:
        raise HeadError(f"the head {path} cannot be read: {error or type(error).__name__}; {remedy}") from error


def _labels(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels in a head's description. Raises KeyError or ValueError."""
    labels = about["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its labels should be a list of names, and are {labels!r}")
    return tuple(labels)


def _temperature(about: Mapping[str, Any], classifier: str) -> float:
    """A classifier's temperature in a head's description. Raises KeyError, TypeError or ValueError."""
    found = float(about["temperature"][classifier])
    if not 0 < found < math.inf:
        raise ValueError(f"its temperatures should be above 0, and one is {found}")
    return found


def _check_shapes(arrays: Mapping[str, NDArray[Any]], n_labels: int) -> None:
    """Raise ValueError unless all arrays of a head are there, in the shapes that this version reads."""
    sizes = {"labels": n_labels}
    has_hidden = any(name in arrays for name in HIDDEN_SHAPES)
    for name, shape in {**SHAPES, **(HIDDEN_SHAPES if has_hidden else {})}.items():
        if name not in arrays:
            raise ValueError(f"its array {name} is missing, another version may have written it")
        found, expected = arrays[name].shape, shape
        if len(found) == len(shape):
            named = zip(shape, found, strict=True)
            expected = tuple(sizes.setdefault(size, n) if isinstance(size, str) else size for size, n in named)
        if arrays[name].dtype.kind not in "fiu":
            raise ValueError(f"its array {name} holds no numbers")
        if found != expected:
            raise ValueError(
                f"its array {name} has the shape {found} in place of {expected}, another version may have written it"
            )


def _hidden_arrays(hidden: Hidden) -> dict[str, NDArray[Any]]:
    inward, scale = _quantise(hidden.inward)
    return {
        "inward": inward,
        "inward_scale": scale,
        "inward_bias": hidden.inward_bias,
        "outward": hidden.outward.astype(np.float16),
    }


def _hidden(arrays: Mapping[str, NDArray[Any]]) -> Hidden | None:
    """The hidden layer of a head's arrays, whose shapes are right; None for a head without one."""
    if "inward" not in arrays:
        return None
    inward = _dequantised(arrays, "inward")
    return Hidden(inward, arrays["inward_bias"].astype(np.float32), arrays["outward"].astype(np.float32))


def _quantise(weights: Floats) -> tuple[NDArray[np.int8], Floats]:
    scale = np.abs(weights).max(axis=0, initial=0) / 127
    scale[scale == 0] = 1
    return np.round(weights / scale).astype(np.int8), scale.astype(np.float32)


def _dequantised(arrays: Mapping[str, NDArray[Any]], name: str) -> Floats:
    return np.asarray(arrays[name].astype(np.float32) * arrays[f"{name}_scale"])

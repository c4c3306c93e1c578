"""Streams of text: whatever the pieces are cut like, the result is that of the whole text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.generate.output import Split, StopMatcher, ThinkSplitter, Utf8Stream

TAGS = [("<think>", "</think>"), ("<|channel>thought\n", "<channel|>")]


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)] or [text]


def run_stop(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        released, met = matcher.feed(piece)
        out += released
        if met:
            return out, True
    return out + matcher.flush(), False


def run_think(pieces: Sequence[str], inside: bool = False) -> tuple[str, str, int, bool]:
    splitter = ThinkSplitter(TAGS, inside=inside)
    splits = [*(splitter.feed(piece) for piece in pieces), splitter.flush()]
    answer = "".join(split.answer for split in splits)
    reasoning = "".join(split.reasoning for split in splits)
    return answer, reasoning, splitter.blocks, splitter.open


def think(text: str, inside: bool = False) -> tuple[str, str]:
    return run_think([text], inside)[:2]


PLACES = st.lists(st.integers(0, 10_000), max_size=30)


class TestUtf8Stream:
    def test_a_character_comes_out_with_its_last_byte(self) -> None:
        stream = Utf8Stream()
        snowman = "☃".encode()
        assert [stream.feed(snowman[i : i + 1]) for i in range(3)] == ["", "", "☃"]

    def test_the_boundary_is_known(self) -> None:
        stream = Utf8Stream()
        assert stream.at_boundary
        stream.feed("é".encode()[:1])
        assert not stream.at_boundary
        stream.feed("é".encode()[1:])
        assert stream.at_boundary

    def test_an_unfinished_character_never_comes(self) -> None:
        stream = Utf8Stream()
        assert stream.feed(b"ab\xf0\x9f\x98") == "ab"
        assert not stream.at_boundary

    def test_bytes_that_are_no_utf8_do_not_stop_the_stream(self) -> None:
        stream = Utf8Stream()
        assert stream.feed(b"a\xffb\xc3(") == "a\ufffdb\ufffd("

    @given(st.binary(max_size=60), PLACES)
    def test_any_cutting_of_any_bytes_decodes_alike(self, data: bytes, places: list[int]) -> None:
        stream = Utf8Stream()
        text = "".join(stream.feed(piece.encode("latin-1")) for piece in cut(data.decode("latin-1"), places))
        whole = data.decode("utf-8", errors="replace")
        unfinished = whole.removeprefix(text)
        assert text + unfinished == whole
        assert bool(unfinished) != stream.at_boundary
        assert set(unfinished) <= {"\ufffd"}  # two of them for half of a surrogate, which is no character


def first_stop(stops: Sequence[str], text: str) -> tuple[str, bool]:
    """The rule, said the slow way."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


class TestStopMatcher:
    def test_a_stop_may_span_many_pieces(self) -> None:
        assert run_stop(["###END"], ["text #", "##", "E", "N", "D more"]) == ("text ", True)

    def test_text_that_may_still_become_a_stop_is_held_back(self) -> None:
        matcher = StopMatcher(["\nUser:"])
        assert matcher.feed("Hello.\nUs") == ("Hello.", False)
        assert matcher.feed("ually") == ("\nUsually", False)

    def test_nothing_is_held_back_without_need(self) -> None:
        matcher = StopMatcher(["stop"])
        assert matcher.feed("no reason to wait") == ("no reason to wait", False)

    def test_a_false_start_inside_a_stop_is_not_missed(self) -> None:
        assert run_stop(["aab"], list("aaab")) == ("a", True)

    def test_held_text_comes_out_at_the_end(self) -> None:
        assert run_stop(["</s>"], ["less <", "/s"]) == ("less </s", False)

    def test_the_stop_that_is_complete_first_wins(self) -> None:
        assert run_stop(["world", "wor"], ["hello world"]) == ("hello ", True)
        assert run_stop(["later", "first"], ["a first, a later"]) == ("a ", True)

    def test_the_stop_that_was_met_is_known(self) -> None:
        matcher = StopMatcher(["ab", "xab", "c"])
        assert matcher.met is None
        assert [matcher.feed(piece) for piece in ("x", "ax", "ab", "c")] == [
            ("", False),
            ("xa", False),
            ("", True),
            ("", True),
        ]
        assert matcher.met == "xab"

    def test_of_two_that_end_together_the_longer_wins(self) -> None:
        assert run_stop(["b", "ab"], ["xab"]) == ("x", True)

    def test_what_follows_a_stop_is_ignored(self) -> None:
        matcher = StopMatcher(["x"])
        assert matcher.feed("axb") == ("a", True)
        assert matcher.feed("more") == ("", True)
        assert matcher.flush() == ""

    def test_without_stops_everything_passes(self) -> None:
        assert run_stop([], ["a", "b"]) == ("ab", False)

    def test_an_empty_stop_is_refused(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            StopMatcher(["a", ""])

    def test_sixteen_stops_that_nearly_match_for_ever_release_all_but_one_start(self) -> None:
        stops = ["a" * 200 + chr(ord("b") + i) for i in range(16)]
        matcher = StopMatcher(stops)
        released = sum(len(matcher.feed("a")[0]) for _ in range(50_000))
        assert released == 50_000 - 200

    @given(
        st.lists(st.text("ab<", min_size=1, max_size=5), max_size=16),
        st.text("ab<c", max_size=60),
        PLACES,
    )
    def test_any_cutting_ends_where_the_rule_says(self, stops: list[str], text: str, places: list[int]) -> None:
        assert run_stop(stops, cut(text, places)) == first_stop(stops, text)

    @given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.text("abc", max_size=40), PLACES)
    def test_released_text_is_always_safe(self, stops: list[str], text: str, places: list[int]) -> None:
        matcher = StopMatcher(stops)
        out = ""
        for piece in cut(text, places):
            out += matcher.feed(piece)[0]
            assert not any(stop in out for stop in stops)


class TestThinkSplitter:
    def test_a_block_becomes_reasoning(self) -> None:
        assert think("<think>why</think>because") == ("because", "why")

    def test_gemma_channels_are_split_too(self) -> None:
        assert think("<|channel>thought\nwhy<channel|>because") == ("because", "why")

    def test_tags_may_be_cut_anywhere(self) -> None:
        assert run_think(list("a <think>b</think>c"))[:3] == ("a c", "b", 1)

    def test_what_may_become_a_tag_is_held_back(self) -> None:
        splitter = ThinkSplitter(TAGS)
        assert splitter.feed("x <thi") == Split("x ", "")
        assert splitter.feed("rd") == Split("<third", "")

    def test_a_false_start_comes_out_at_the_end(self) -> None:
        assert think("a <think") == ("a <think", "")

    def test_a_prompt_may_have_opened_the_block(self) -> None:
        assert run_think(["still why</th", "ink>\n\nbecause"], inside=True) == ("because", "still why", 1, False)

    def test_an_unclosed_block_is_reasoning_and_stays_open(self) -> None:
        assert run_think(["a<think>b</thin"]) == ("a", "b</thin", 1, True)

    def test_several_blocks_are_counted(self) -> None:
        assert run_think(["<think>1</think>a\n<|channel>thought\n2<channel|>b"])[:3] == ("a\nb", "12", 2)

    def test_a_closing_tag_of_another_family_does_not_close(self) -> None:
        assert think("<think>a<channel|>b</think>c") == ("c", "a<channel|>b")

    def test_stray_closing_tags_are_dropped(self) -> None:
        assert run_think(["one</think> two\n</think>\nthree"]) == ("one two\nthree", "", 0, False)

    def test_the_newlines_after_a_block_are_dropped(self) -> None:
        assert think("<think>\n\n</think>\n \r\n\nanswer\n") == ("answer\n", "\n\n")
        assert think("<think></think>  answer") == ("answer", "")

    def test_the_indentation_of_the_first_line_is_kept(self) -> None:
        assert think("<think></think>\n\n    return 1") == ("    return 1", "")

    def test_words_around_a_block_do_not_run_together(self) -> None:
        assert think("One.<think>x</think>\n\nTwo.") == ("One.\n\nTwo.", "x")

    def test_a_block_of_nothing_but_space_leaves_nothing(self) -> None:
        assert run_think(["<think>", "</think>", "\n", " ", "\n  "])[0] == ""

    @pytest.mark.parametrize(
        "code",
        [
            "Use `<think>` and `</think>` here.",
            "Use `` a ` <think> `` here.",
            "```html\n<think>x</think>\n```\ndone",
            "1. first:\n   ```\n   <think>\n   ```\n",
            "~~~\n<think>\n```\n</think>\n~~~\n",
            "````md\n```\n<think>\n```\n````\n",
            "```\n<think>\n```x\n</think>\n",
            "``` a ` b ``` and `<think>`",
        ],
    )
    def test_tags_in_markdown_code_are_answer(self, code: str) -> None:
        assert run_think(list(code)) == (code, "", 0, False)

    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            ("`code` <think>x</think>a", "`code` a"),
            ("a ` b\n<think>x</think>a", "a ` b\na"),
            ("```\ncode\n```\n<think>x</think>a", "```\ncode\n```\na"),
            ("```one line``` <think>x</think>a", "```one line``` a"),
            ("a ~~~ b <think>x</think>a", "a ~~~ b a"),
        ],
    )
    def test_tags_after_code_count_again(self, text: str, answer: str) -> None:
        assert run_think(list(text))[:3] == (answer, "x", 1)

    def test_a_backtick_in_reasoning_does_not_hide_its_end(self) -> None:
        assert think("<think>a ` b ```\n</think>answer") == ("answer", "a ` b ```\n")

    def test_reasoning_that_mentions_its_opening_tag_ends_once(self) -> None:
        assert run_think(["<think>a <think> b</think>c"])[:3] == ("c", "a <think> b", 1)

    def test_the_longest_tag_at_a_place_counts(self) -> None:
        splitter = ThinkSplitter([("<t", "t>"), ("<t2", "2>")])
        assert [splitter.feed(piece) for piece in ("<t", "2x", "2>y")] == [("", ""), ("", "x"), ("y", "")]

    def test_an_empty_tag_is_refused(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            ThinkSplitter([("<think>", "")])

    PIECE = st.sampled_from(
        [*itertools.chain(*TAGS), "<th", "ink>", "<", "<|", "`", "```", "~~~", "\n", " ", "a", "b c", "é"]
    )
    WILD = st.lists(PIECE, max_size=25).map("".join)

    @given(WILD, PLACES, st.booleans())
    def test_any_cutting_gives_the_result_of_the_whole(self, text: str, places: list[int], inside: bool) -> None:
        assert run_think(cut(text, places), inside) == run_think([text], inside)

    @given(WILD, st.booleans())
    def test_nothing_is_lost_but_tags_and_space(self, text: str, inside: bool) -> None:
        answer, reasoning, blocks, still_open = run_think([text], inside)
        tags_dropped = (blocks - inside) + (blocks - still_open)  # openings, closings
        strays = sum(text.count(closing) for _, closing in TAGS) - (blocks - still_open)  # at most
        kept = re.sub(r"\s", "", answer + reasoning)
        dropped = len(re.sub(r"\s", "", text)) - len(kept)
        shortest, longest = len("<think>"), len("<|channel>thought")
        assert tags_dropped * shortest <= dropped <= (tags_dropped + strays) * longest

    @given(st.text("ab \n`~.", max_size=60), PLACES)
    def test_text_without_tags_is_unchanged(self, text: str, places: list[int]) -> None:
        assert run_think(cut(text, places)) == (text, "", 0, False)

    @given(st.lists(st.tuples(st.text("ab ", max_size=8), st.text("cd \n`", max_size=8)), max_size=6), PLACES)
    def test_blocks_within_a_line_are_taken_out_exactly(self, parts: list[tuple[str, str]], places: list[int]) -> None:
        text = "x" + "".join(f"{answer}<think>{reasoning}</think>" for answer, reasoning in parts)
        expected = ("x" + "".join(a for a, _ in parts), "".join(r for _, r in parts), len(parts), False)
        assert run_think(cut(text, places)) == expected


def test_a_verbatim_answer_keeps_its_tags() -> None:
    splitter = ThinkSplitter(TAGS, inside=True, verbatim=True)
    parts = [splitter.feed(text) for text in ("why</thi", "nk>", '{"a": "<think>b</think>"}')]
    assert "".join(part.reasoning for part in parts) == "why"
    assert "".join(part.answer for part in parts) + splitter.flush().answer == '{"a": "<think>b</think>"}'
    assert splitter.blocks == 1

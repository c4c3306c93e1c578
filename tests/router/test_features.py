"""What the heads read of a text."""

from coe.router.features import mistyped


def test_typing_errors_are_the_same_each_time_and_about_as_many_as_asked():
    text = "the quick brown fox jumps over the lazy dog " * 200
    assert mistyped(text, 1) == mistyped(text, 1) != mistyped(text, 2)
    assert mistyped(text, 1, rate=0) == text
    replaced = mistyped("a" * 10_000, 1)
    # Two kinds of four show here: omissions and swaps of equal letters do not.
    assert 100 < sum(letter != "a" for letter in replaced) < 300

# ruff: noqa: E501
"""Words that the honest texts are made of."""

from __future__ import annotations

from typing import Final

ONES: Final = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
TENS: Final = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NAMES: Final = ["Anna", "Boris", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hanna", "Igor", "Jana", "Kofi", "Lena", "Marek", "Nadia", "Olaf", "Petra", "Quim", "Rosa", "Stefan", "Tara", "Umar", "Vera", "Wanda", "Xenia", "Yusuf", "Zora"]  # fmt: skip
THINGS: Final = ["lamp", "chair", "kettle", "ladder", "bucket", "mirror", "carpet", "shovel", "basket", "hammer", "clock", "bottle", "blanket", "candle", "pillow", "wagon"]  # fmt: skip
PLACES: Final = ["harbour", "mill", "castle", "orchard", "market", "bridge", "library", "station", "meadow", "tower"]
ANIMALS: Final = ["cow", "hen", "goat", "duck", "sheep", "horse", "pig", "dog", "cat", "goose", "donkey", "frog"]
SOUNDS: Final = ["moo", "cluck", "maa", "quack", "baa", "neigh", "oink", "woof", "meow", "honk", "bray", "croak"]


def in_words(number: int) -> str:
    """A whole number below a thousand, in English."""
    if number >= 100:
        rest = f" {in_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number >= 20:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    return ONES[number]

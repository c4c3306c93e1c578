"""A prompt as it is given back before its answer (echo): its text, and where in it each of its tokens begins."""

from __future__ import annotations

from collections.abc import Sequence

from .output import Utf8Stream


class Echo:
    """A prompt's text, which comes in parts as its tokens are read.

    text:    the prompt as it was written, or what its token ids are as text.
    offsets: [tokens] characters of the text before the first one that each token has a byte of.
    """

    def __init__(self, pieces: Sequence[bytes], text: str | None = None) -> None:
        """pieces: the bytes of each token; of those that are no part of the text, none. text: None for the pieces'.

        Some vocabularies begin each text with a space of their own, and some write it in another way: where text and
        pieces are not alike, their ends are taken to be.
        """
        stream = Utf8Stream()
        starts: list[int] = []
        decoded: list[str] = []
        n_chars = 0
        for piece in pieces:
            starts.append(n_chars)
            decoded.append(stream.feed(piece))
            n_chars += len(decoded[-1])
        if not stream.at_boundary:
            decoded.append("\ufffd")
        whole = "".join(decoded)
        self.text = whole if text is None else text
        lead = len(whole) - len(self.text)
        self.offsets = [min(max(0, start - lead), len(self.text)) for start in starts]

    def part(self, start: int, stop: int) -> str:
        """The text of the tokens from start on, up to stop: together the parts are the whole."""
        begin = self.offsets[start] if start else 0
        end = self.offsets[stop] if stop < len(self.offsets) else len(self.text)
        return self.text[begin:end]

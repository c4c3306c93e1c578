"""Fill in the middle: the prompt of a model that writes what stands between two texts.

    [REP]myproject \\n [SEP]filename \\n snippet ... [SEP]filename \\n  BOS [PRE]before[SUF]after[MID]

The tokens are the vocabulary's own, as llama.cpp finds them there; a part whose token is missing is left out, but for
those of before, after and middle, without which there is no such prompt. The order is that of the code models which
have such tokens (prefix, suffix, middle), and what llama-server builds. Source: tools/server/server-common.cpp,
format_prompt_infill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ..errors import InfillError
from ..llama.vocab import Infill

_PROJECT: Final = "myproject\n"
_FILE: Final = "filename\n"
_SNIPPET: Final = "\n\n--- snippet ---\n\n"  # where there is no token that a file begins with


def infill_tokens(
    before: str,
    after: str,
    snippets: Sequence[Mapping[str, str]],
    marks: Infill | None,
    read: Callable[[str], list[int]],
    *,
    bos: Sequence[int],
    room: int,
    longest_bytes: int = 64,
) -> list[int]:
    """The prompt's tokens. read: a text's tokens, none of control among them. room: tokens that all may take.
    longest_bytes: of a token, for a snippet that surely does not fit is not read: megabytes of it would take seconds.

    Snippets that do not fit are left out, the first ones first; before and after are whole, whether they fit or not.
    Raises InfillError for a vocabulary without the tokens.
    """
    if marks is None:
        raise InfillError(
            "The model cannot fill in the middle: its vocabulary has no tokens for that.",
            "Ask a model that was trained for it, such as Qwen2.5-Coder, or send the text before alone.",
        )
    own = [*bos, marks.before, *read(before), marks.after, *read(after), marks.middle]
    head = [marks.repository, *read(_PROJECT)] if marks.repository is not None else []
    tail = [marks.file, *read(_FILE)] if marks.file is not None else []
    left = room - len(own) - len(head) - len(tail)
    if left < 0:
        return own
    shown: list[list[int]] = []
    for snippet in reversed(snippets):
        if len(snippet["text"].encode("utf-8", "replace")) > left * longest_bytes:
            break
        title = [marks.file, *read(f"{snippet['filename']}\n")] if marks.file is not None else read(_SNIPPET)
        tokens = [*title, *read(snippet["text"])]
        left -= len(tokens)
        if left < 0:
            break
        shown.append(tokens)
    return [*head, *(token for tokens in reversed(shown) for token in tokens), *tail, *own]

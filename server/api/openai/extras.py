"""Fields of a request that are not served: whether they ask for something, and what to say then.

Chat clients add fields of their own, and most of these may be ignored. One that changes what an answer is may not,
unless its value asks for nothing: `best_of: 1` is what comes anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from ...runtime.errors import RequestError

_Asks = Callable[[Any], bool]


def nothing(*values: Any) -> _Asks:
    """Anything but these asks for something. JSON's true is not 1."""
    return lambda value: not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


EMPTY: Final = nothing("", [], {}, False)
_LATER: Final = "It is not supported yet: remove it from the request."
REMOVE: Final = "It is not served: remove it from the request."

_OWN_TEMPLATE: Final = "The model's own is used: remove it from the request."
_SAMPLERS: Final = "Use temperature, top_p, top_k, min_p and penalties."
_NO_SAMPLERS: Final[Mapping[str, tuple[float, ...]]] = {
    **dict.fromkeys(("mirostat", "mirostat_mode", "xtc_probability", "dry_multiplier", "no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("top_a", "epsilon_cutoff", "eta_cutoff", "dynatemp_range", "smoothing_factor"), (0,)),
    **dict.fromkeys(("typical_p", "typical", "tfs_z", "tfs", "length_penalty", "guidance_scale"), (1,)),
    **dict.fromkeys(("encoder_repetition_penalty",), (1,)),
    "penalty_alpha": (0,),
    "top_n_sigma": (-1, 0),
}

Table = Mapping[str, tuple[_Asks, str]]

# Of both endpoints. Each changes what text comes, or where it ends.
SHARED: Final[Table] = {
    "extra_body": (EMPTY, "It is an argument of the openai package: send what is in it at the top level."),
    "include_usage": (nothing(False), 'Write stream_options: {"include_usage": true}.'),
    "stop_token_ids": (EMPTY, "Use stop, with texts."),
    "stop_sequences": (EMPTY, "Write stop."),
    "bad_words": (EMPTY, "Use logit_bias."),
    "banned_tokens": (EMPTY, "Use logit_bias."),
    "allowed_token_ids": (EMPTY, "Use logit_bias, or a JSON schema with an enum."),
    "use_beam_search": (nothing(False), REMOVE),
    "n_predict": (nothing(-1), "Write max_tokens."),
    "num_predict": (nothing(-1), "Write max_tokens."),
    "max_new_tokens": (nothing(-1), "Write max_tokens."),
    "max_output_tokens": (nothing(-1), "Write max_tokens."),
    "max_length": (nothing(-1), "Write max_tokens."),
    "stop_words": (EMPTY, "Write stop."),
    "stops": (EMPTY, "Write stop."),
    "include_stop_str_in_output": (nothing(False), "Add the stop text to the answer."),
    "truncate_prompt_tokens": (nothing(-1), "Shorten the prompt."),
    "suppress_tokens": (EMPTY, "Use logit_bias."),
    "banned_strings": (EMPTY, REMOVE),
    "logits_processors": (EMPTY, REMOVE),
    "return_token_ids": (nothing(False), REMOVE),
    "return_tokens_as_token_ids": (nothing(False), REMOVE),
    "do_sample": (nothing(True), "Write temperature: 0 for the most probable tokens."),
    "num_beams": (nothing(1), REMOVE),
    "options": (EMPTY, "It is Ollama's: send what is in it at the top level."),
    "template": (EMPTY, _OWN_TEMPLATE),
    "chat_template": (EMPTY, _OWN_TEMPLATE),
    "system": (EMPTY, "Write a message of the role system."),
    "instructions": (EMPTY, "Write a message of the role system."),
    # Samplers that are not served, with the values by which clients say that they want none.
    **{name: (nothing(*off), _SAMPLERS) for name, off in _NO_SAMPLERS.items()},
}
_CHAT: Final[Table] = {
    "audio": (nothing(False), _LATER),
    "prediction": (nothing(False), _LATER),
    "web_search_options": (nothing(False), _LATER),
    "best_of": (nothing(1), REMOVE),
    "echo": (nothing(False), REMOVE),
    "prompt": (EMPTY, "Write a message, or use /v1/completions."),
    "suffix": (EMPTY, REMOVE),
    "documents": (EMPTY, "Write them into a message."),
    "images": (EMPTY, "The specialists read text only."),
    "continue_final_message": (nothing(False), "An answer is continued where the last message is the assistant's."),
    "add_generation_prompt": (nothing(True), "An answer is continued where the last message is the assistant's."),
}
_COMPLETIONS: Final[Table] = {
    "echo": (nothing(False), _LATER),
    "best_of": (nothing(1), _LATER),
    "suffix": (nothing(""), _LATER),
    "max_completion_tokens": (nothing(-1), "Write max_tokens."),
    "tools": (EMPTY, "Use /v1/chat/completions."),
    "functions": (EMPTY, "Use /v1/chat/completions."),
    "messages": (EMPTY, "Use /v1/chat/completions."),
}


# They ask for more of an answer, or of what is told beside it: an answer without is still one, and a note says so.
_NOTED: Final[Mapping[str, _Asks]] = {
    "ignore_eos": nothing(False),
    "min_tokens": nothing(0),
    "min_new_tokens": nothing(0),
    "prompt_logprobs": nothing(False),
}


def ignored(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes of what a body asks for in vain."""
    asked = (name for name, asks in _NOTED.items() if body.get(name) is not None and asks(body[name]))
    return tuple(f"{name} is not served and was ignored" for name in asked)


def refuse_in_chat(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises RequestError for a field of a chat body that asks for what is not served. known: the fields that are."""
    table = {**SHARED, **_CHAT}
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":  # what vLLM's clients say of it is done anyway
        del table["continue_final_message"], table["add_generation_prompt"]
    refuse(body, table, known)


def refuse_in_completions(body: Mapping[str, Any], known: Collection[str]) -> None:
    """The same for a plain completion's body."""
    table = {**SHARED, **_COMPLETIONS}
    if (
        isinstance(body.get("n"), int) and body.get("best_of") == body["n"]
    ):  # as many as are wanted: none to choose from
        table.pop("best_of")
    refuse(body, table, known)


def refuse(body: Mapping[str, Any], table: Table, known: Collection[str]) -> None:
    """Raises RequestError for a field of the table that asks for something, and for a field that is misspelt.

    known: the fields that are served.
    """
    for name, (asks, remedy) in table.items():
        if body.get(name) is not None and asks(body[name]):
            raise RequestError(f"{name} is not supported. {remedy}", param=name)
    spelled = {_letters(name): name for name in known}
    for name, value in body.items():
        right = spelled.get(_letters(name))
        if right is not None and name not in known and value is not None:
            raise RequestError(f"{name[:60]} is not understood: write {right}.", param=name[:60])


def near(name: str, known: Collection[str]) -> str | None:
    """Of these names the one that differs from a name in its spelling alone; None where it is one of them."""
    if name in known:
        return None
    return next((other for other in known if isinstance(other, str) and _letters(other) == _letters(name)), None)


def _letters(name: str) -> str:
    """A field's name but for its spelling: maxTokens is max_tokens."""
    return name.replace("_", "").replace("-", "").casefold()

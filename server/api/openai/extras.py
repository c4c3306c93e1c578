"""Fields of a request that are not served: whether they ask for something, and what to say then.

Chat clients add fields of their own, and most of these may be ignored. One that changes what an answer is may not,
unless its value asks for nothing: `best_of: 1` is what comes anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from ...runtime.errors import RequestError

_Asks = Callable[[Any], bool]


def _nothing(*values: Any) -> _Asks:
    """Anything but these asks for something. JSON's true is not 1."""
    return lambda value: not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


_EMPTY: Final = _nothing("", [], {}, False)
_LATER: Final = "Remove it from the request."
_REMOVE: Final = "Remove it from the request."

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

_Table = Mapping[str, tuple[_Asks, str]]

# Of both endpoints. Each changes what text comes, or where it ends.
_SHARED: Final[_Table] = {
    "extra_body": (_EMPTY, "It is an argument of the openai package: send what is in it at the top level."),
    "include_usage": (_nothing(False), 'Write stream_options: {"include_usage": true}.'),
    "stop_token_ids": (_EMPTY, "Use stop, with texts."),
    "stop_sequences": (_EMPTY, "Write stop."),
    "bad_words": (_EMPTY, "Use logit_bias."),
    "banned_tokens": (_EMPTY, "Use logit_bias."),
    "allowed_token_ids": (_EMPTY, "Use logit_bias, or a JSON schema with an enum."),
    "use_beam_search": (_nothing(False), _REMOVE),
    "n_predict": (_nothing(-1), "Write max_tokens."),
    "num_predict": (_nothing(-1), "Write max_tokens."),
    "max_new_tokens": (_nothing(-1), "Write max_tokens."),
    "max_output_tokens": (_nothing(-1), "Write max_tokens."),
    "max_length": (_nothing(-1), "Write max_tokens."),
    "stop_words": (_EMPTY, "Write stop."),
    "stops": (_EMPTY, "Write stop."),
    "include_stop_str_in_output": (_nothing(False), "Add the stop text to the answer."),
    "truncate_prompt_tokens": (_nothing(-1), "Shorten the prompt."),
    "suppress_tokens": (_EMPTY, "Use logit_bias."),
    "banned_strings": (_EMPTY, _REMOVE),
    "logits_processors": (_EMPTY, _REMOVE),
    "return_token_ids": (_nothing(False), _REMOVE),
    "return_tokens_as_token_ids": (_nothing(False), _REMOVE),
    "do_sample": (_nothing(True), "Write temperature: 0 for the most probable tokens."),
    "num_beams": (_nothing(1), _REMOVE),
    "options": (_EMPTY, "It is Ollama's: send what is in it at the top level."),
    "template": (_EMPTY, _OWN_TEMPLATE),
    "chat_template": (_EMPTY, _OWN_TEMPLATE),
    "system": (_EMPTY, "Write a message of the role system."),
    "instructions": (_EMPTY, "Write a message of the role system."),
    # Samplers that are not served, with the values by which clients say that they want none.
    **{name: (_nothing(*off), _SAMPLERS) for name, off in _NO_SAMPLERS.items()},
}
_CHAT: Final[_Table] = {
    "audio": (_nothing(False), _LATER),
    "prediction": (_nothing(False), _LATER),
    "web_search_options": (_nothing(False), _LATER),
    "best_of": (_nothing(1), _REMOVE),
    "echo": (_nothing(False), _REMOVE),
    "prompt": (_EMPTY, "Write a message, or use /v1/completions."),
    "suffix": (_EMPTY, _REMOVE),
    "documents": (_EMPTY, "Write them into a message."),
    "images": (_EMPTY, "The specialists read text only."),
    "continue_final_message": (_nothing(False), "An answer is continued where the last message is the assistant's."),
    "add_generation_prompt": (_nothing(True), "An answer is continued where the last message is the assistant's."),
}
_COMPLETIONS: Final[_Table] = {
    "max_completion_tokens": (_nothing(-1), "Write max_tokens."),
    "tools": (_EMPTY, "Use /v1/chat/completions."),
    "functions": (_EMPTY, "Use /v1/chat/completions."),
    "messages": (_EMPTY, "Use /v1/chat/completions."),
}

_WRITE_LIMIT: Final = "Write max_output_tokens."
_RESPONSES: Final[_Table] = {
    **{
        name: (asks, _WRITE_LIMIT if remedy == "Write max_tokens." else remedy)
        for name, (asks, remedy) in _SHARED.items()
    },
    "max_tokens": (_nothing(-1), _WRITE_LIMIT),
    "max_completion_tokens": (_nothing(-1), _WRITE_LIMIT),
    "background": (_nothing(False), "Leave the connection open: the answer comes as a stream with stream: true."),
    "conversation": (_EMPTY, "Use previous_response_id, or send the items of the conversation in input."),
    "prompt": (_EMPTY, "Templates lie at OpenAI: write the text itself in input or instructions."),
    "messages": (_EMPTY, "Write input, or use /v1/chat/completions."),
    "functions": (_EMPTY, "Write tools."),
    "response_format": (_EMPTY, 'Write text: {"format": ...}.'),
    "logprobs": (_nothing(False), 'Write include: ["message.output_text.logprobs"].'),
    "n": (_nothing(1), "A response has one answer: send several requests at once."),
    "best_of": (_nothing(1), _REMOVE),
    "audio": (_nothing(False), _REMOVE),
    "modalities": (_nothing(["text"], []), _REMOVE),
}


# They ask for more of an answer, or of what is told beside it: an answer without is still one, and a note says so.
_NOTED: Final[Mapping[str, _Asks]] = {
    "ignore_eos": _nothing(False),
    "min_tokens": _nothing(0),
    "min_new_tokens": _nothing(0),
    "prompt_logprobs": _nothing(False),
    # Of the Responses API.
    "truncation": _nothing("disabled"),
    "context_management": _EMPTY,
}


def ignored(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes of what a body asks for in vain."""
    asked = (name for name, asks in _NOTED.items() if body.get(name) is not None and asks(body[name]))
    return tuple(f"{name} is not served and was ignored" for name in asked)


def refuse_in_chat(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises RequestError for a field of a chat body that asks for what is not served. known: the fields that are."""
    table = {**_SHARED, **_CHAT}
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":  # what vLLM's clients say of it is done anyway
        del table["continue_final_message"], table["add_generation_prompt"]
    _refuse(body, table, known)


def refuse_in_completions(body: Mapping[str, Any], known: Collection[str]) -> None:
    """The same for a plain completion's body."""
    _refuse(body, {**_SHARED, **_COMPLETIONS}, known)


def refuse_in_responses(body: Mapping[str, Any], known: Collection[str]) -> None:
    """The same for a body of the Responses API."""
    _refuse(body, {name: told for name, told in _RESPONSES.items() if name not in known}, known)


def _refuse(body: Mapping[str, Any], table: _Table, known: Collection[str]) -> None:
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

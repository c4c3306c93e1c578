"""What can go wrong in the engine, one sentence a class. Status codes are the HTTP layer's business."""

from __future__ import annotations


class EngineError(Exception):
    """Something in the engine went wrong; `remedy` says what a person can do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.message = message
        self.remedy = remedy


class ModelFileError(EngineError):
    """A model file cannot be read, or llama.cpp does not know what is in it."""


class LoadError(EngineError):
    """A model that can be read did not load."""


class WorkerDiedError(EngineError):
    """A worker process ended while it was needed."""


class PromptTooLongError(EngineError):
    """A prompt leaves no room for an answer in the context."""

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens; the context holds {context_tokens}, the answer included.",
            "Shorten the conversation, or raise context_tokens in the roster.",
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class TemplateError(EngineError):
    """A chat template is missing, broken, or refuses the conversation."""


class ThinkingPolicyError(EngineError):
    """A thinking policy cannot be carried out with this model's chat template."""


class GrammarError(EngineError):
    """A JSON schema cannot be followed, or costs more than one request may spend."""


class PoolError(EngineError):
    """The pool cannot grant a lease."""


class QueueFullError(PoolError):
    """Too many requests wait already."""


class WaitTimeoutError(PoolError):
    """A request waited as long as it may."""


class UnavailableError(PoolError):
    """The specialist cannot be served on this machine as the roster stands."""

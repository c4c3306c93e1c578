"""One request while it is being answered: from sampled tokens to the text that goes out (detokenisation, stop
strings, thinking budget)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..llama.context import Context
from ..llama.vocab import Vocab
from ..request import Delta, Finish, Finished, GenerateRequest, TokenLogprob
from ..spec import ThinkingMode
from .grammar import Grammar
from .loop_exits import GrammarLoops
from .loops import Loop, LoopGuard
from .output import StopMatcher, ThinkSplitter, Utf8Stream
from .sampling import Sampler, log_probabilities
from .text_logprobs import TextLogprobs


class ActiveSequence:
    """A request's tokens, sampler and text filters.

    tokens:         prompt and answer so far.
    evaluated:      how many of them are in the KV cache, or were when the cells were offloaded.
    history_tokens: where the conversation's shared history ends in the prompt; a checkpoint is worth taking there.
    specialist_id:  the specialist that answers, where several share a resident.
    arrived, started: when it was queued and first began, by the counter of the batch loop; 0 before.
    submitted_s, queued_s: when it was queued, and the seconds until it first began.
    cached:         tokens of the prompt that were in the cache when it first began.
    shares:         whether it may begin with cells of another conversation.
    waits_for:      the last reason given for its waiting, for logs.

    Its life is where it lies:

        WAITING (queue) -- start --> RUNNING (slot) -- advance --> FINISHED
        RUNNING -- preempt --> WAITING, with nothing evaluated
        RUNNING -- offload --> OFFLOADED (queue, its cells in host memory) -- start --> RUNNING
        any -- cancel, refuse --> FINISHED
    """

    def __init__(
        self,
        request: GenerateRequest,
        prompt: Sequence[int],
        vocab: Vocab,
        *,
        limit: int,
        history_tokens: int,
        tags: Sequence[tuple[str, str]],
        thinking_open: bool,
        grammar: Grammar | None = None,
        specialist_id: int = 0,
    ) -> None:
        """limit: tokens the answer may have. grammar: what the answer, without its thinking, has to keep to."""
        self.request = request
        self.specialist_id = specialist_id
        self.vocab = vocab
        self.tokens = list(prompt)
        self.n_prompt = len(prompt)
        self.history_tokens = history_tokens
        self.limit = limit
        self.evaluated = 0
        self.cached = 0
        self.arrived = self.started = 0
        self.submitted_s = self.queued_s = 0.0
        self.shares = True
        self.waits_for = ""
        self._stops = StopMatcher(request.stop)
        self.sampler = Sampler(
            vocab,
            request.sampling,
            seed=request.seed,
            logit_bias=request.logit_bias,
            grammar=grammar,
        )
        for token in self.tokens[max(0, self.n_prompt - request.sampling.repeat_last_n) :]:
            self.sampler.accept(token)
        self._utf8 = Utf8Stream()
        # A tag within an answer of a grammar is a part of it: nothing else could have been drawn there.
        self._splitter = ThinkSplitter(tags, inside=thinking_open, verbatim=grammar is not None)
        self._loops = LoopGuard(request.loop_guard, _asked(request)) if request.loop_guard else None
        self._grammar_loops = GrammarLoops(self._loops, grammar) if self._loops and grammar else None
        # The characters of thinking tags are control tokens in some vocabularies: they have to be seen as text.
        self._shown = {token for pair in tags for tag in pair for token in vocab.tokenize(tag)}
        self._forced: deque[int] = deque()
        self._closing = tags[0][1] if tags else ""
        self._reasoning_tokens = 0
        self._logprobs = TextLogprobs()
        self._decoded = 0  # characters
        self._grammar = grammar
        self._answer: list[str] = []  # for the check at the end, where there is a grammar
        self._stopped = False  # by a stop text
        self._violation: str | None = None
        self._conforms: bool | None = None if grammar is None else False
        self.finish: Finish | None = None
        self._loop: str | None = None

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.n_prompt

    @property
    def left(self) -> int:
        """Tokens the answer may still have."""
        return self.limit - self.n_generated

    @property
    def pending(self) -> int:
        """Tokens that wait to be evaluated."""
        return len(self.tokens) - self.evaluated

    @property
    def pending_history(self) -> int:
        """Tokens to evaluate up to the end of the shared history, 0 when that is passed."""
        return max(0, self.history_tokens - self.evaluated)

    def begin(self, tick: int, now_s: float) -> None:
        """The sequence has a slot, and `evaluated` tokens in it. What is reported of a start is that of the first."""
        self.waits_for = ""
        if not self.started:
            self.started = tick
            self.cached = self.evaluated
            self.queued_s = now_s - self.submitted_s

    def advance(self, context: Context, index: int) -> Delta | None:
        """Draw the next token from batch entry `index` and give the text it releases; sets `finish` at the end.

        Raises GrammarError when the grammar cannot be kept any longer.
        """
        constrained = not self._splitter.open
        token, forced = self._next_token(context, index)
        if self.vocab.ends_generation(token):
            self.finish = Finish.STOP
            delta = self._delta(*self._flush())
            self._check_against_schema()
            return delta
        self.tokens.append(token)
        self._reasoning_tokens += self._splitter.open and not forced
        piece = self.vocab.piece(token, special=token in self._shown)
        text = self._utf8.feed(piece)
        start, self._decoded = self._decoded, self._decoded + len(text)
        if self.request.top_logprobs is not None:
            entry = self._logprob(context, index, token, self.request.top_logprobs)
            self._logprobs.add(entry, start, self._decoded + (not self._utf8.at_boundary))
        answer, reasoning = self._filter(text, token, piece, constrained=constrained)
        if self.finish is None and self.n_generated >= self.limit:
            self.finish = Finish.LENGTH
        if self.finish is not None:
            rest_answer, rest_reasoning = self._flush()
            answer, reasoning = answer + rest_answer, reasoning + rest_reasoning
        return self._delta(answer, reasoning)

    def _next_token(self, context: Context, index: int) -> tuple[int, bool]:
        """The next token, and whether it was forced rather than drawn."""
        thinking = self._splitter.open
        budget = self.request.thinking.budget_tokens
        if thinking and budget is not None and not self._forced and self._utf8.at_boundary:
            over = self._reasoning_tokens >= budget
            if over and self.request.thinking.mode is ThinkingMode.BUDGET:
                self._forced.extend(self.vocab.tokenize(self._closing))
        if self._forced:
            token = self._forced.popleft()
            self.sampler.accept(token)
            return token, True
        return self.sampler.sample(context, index, constrained=not thinking), False

    def _filter(self, text: str, token: int, piece: bytes, *, constrained: bool) -> tuple[str, str]:
        """Think blocks out, then stop strings, then the loop guard; sets `finish`."""
        split = self._splitter.feed(text)
        answer, stopped = self._stops.feed(split.answer)
        if stopped:
            self.finish = Finish.STOP
        elif loop := self._look(split.answer + split.reasoning, token, piece, constrained=constrained):
            self.finish, self._loop = Finish.LOOP, loop.repeated
        return answer, self._keep_reasoning(split.reasoning)

    def _look(self, text: str, token: int, piece: bytes, *, constrained: bool) -> Loop | None:
        if self._grammar_loops is not None and constrained:
            return self._grammar_loops.feed(text, token, piece)
        return self._loops.feed(text) if self._loops is not None else None

    def _flush(self) -> tuple[str, str]:
        """What was held back, at the end of the answer. A character that is not complete by then never comes."""
        rest = self._splitter.flush()
        answer, self._stopped = self._stops.feed(rest.answer)
        answer += "" if self._stopped else self._stops.flush()
        return answer, self._keep_reasoning(rest.reasoning)

    def _check_against_schema(self) -> None:
        """An answer that ended by itself is one of its schema, or invalid; one that was cut is neither.

        Raises GrammarError when it cannot be checked.
        """
        if self._grammar is None or self._stopped:
            return
        self._violation = self._grammar.violation("".join(self._answer))
        self._conforms = self._violation is None
        if not self._conforms:
            self.finish = Finish.INVALID

    def _keep_reasoning(self, text: str) -> str:
        return "" if self.request.thinking.mode is ThinkingMode.OFF else text

    def _delta(self, text: str, reasoning: str) -> Delta | None:
        places = self._splitter.places()
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.request.top_logprobs is not None:
            self._logprobs.classify(places)
            logprobs = self._logprobs.release(len(text), self._splitter.decided)
        if self._grammar is not None:
            self._answer.append(text)
        return Delta(self.request.id, text, reasoning, logprobs) if text or reasoning else None

    def _logprob(self, context: Context, index: int, token: int, top: int) -> TokenLogprob:
        own, best = log_probabilities(context.logits(index), token, top)

        def written(t: int) -> tuple[str, list[int]]:
            piece = self.vocab.piece(t, special=True)
            return piece.decode("utf-8", "replace"), list(piece)

        return TokenLogprob(*written(token), own, [(*written(t), value) for t, value in best])

    def finished(self, reason: Finish) -> Finished:
        """The closing event."""
        off = self.request.thinking.mode is ThinkingMode.OFF
        return Finished(
            id=self.request.id,
            reason=reason,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.cached,
            completion_tokens=self.n_generated,
            reasoning_tokens=self._reasoning_tokens,
            leaked_blocks=self._splitter.blocks if off else 0,
            loop=self._loop,
            queued_s=self.queued_s,
            violation=self._violation,
            conforms=self._conforms,
        )

    def close(self) -> None:
        """Free the sampler."""
        self.sampler.close()


def _asked(request: GenerateRequest) -> str:
    """What the user said last; nothing where a text is continued."""
    said = [message["content"] for message in request.messages or () if message["role"] == "user"]
    return said[-1] if said and isinstance(said[-1], str) else ""

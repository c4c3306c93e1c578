"""One request while it is being answered: from sampled tokens to the text that goes out (detokenisation, stop
strings, thinking budget)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..llama.context import Context
from ..llama.vocab import Vocab
from ..request import CallPiece, Delta, Finish, Finished, GenerateRequest, Reading, TokenLogprob
from ..spec import ThinkingMode
from .echo import Echo
from .grammar import Grammar
from .loop_exits import GrammarLoops
from .loops import Loop, LoopGuard
from .output import StopMatcher, ThinkSplitter, Utf8Stream
from .sampling import Sampler, log_probabilities
from .text_logprobs import TextLogprobs
from .tools.reading import CallReading, Toolbox
from .tools.splitter import Part

_TELL_EVERY_S: Final = 1.0


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
        toolbox: Toolbox | None = None,
        specialist_id: int = 0,
        banned: Collection[int] = (),
        echo: Echo | None = None,
    ) -> None:
        """limit: tokens the answer may have. grammar: what the answer, without its thinking, has to keep to.
        toolbox: what it may call; then the grammar is the toolbox's. banned: tokens that are not drawn.
        echo: the prompt, where it comes before the answer.
        """
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
        self.submitted_s = self.queued_s = self._began_s = 0.0
        self._read_s: float | None = None  # when all of its prompt had been read
        self._told_s = -math.inf
        self.shares = True
        self.waits_for = ""
        self._stops = StopMatcher(request.stop)
        self.sampler = Sampler(
            vocab,
            request.sampling,
            seed=request.seed,
            logit_bias={**request.logit_bias, **dict.fromkeys(banned, -math.inf)},
        )
        for token in self.tokens[max(0, self.n_prompt - request.sampling.repeat_last_n) :]:
            self.sampler.accept(token)
        self._utf8 = Utf8Stream()
        # A tag within an answer of a grammar is a part of it: nothing else could have been drawn there.
        self._calls = CallReading(toolbox) if toolbox is not None else None
        self._verbatim = grammar is not None or (self._calls is not None and self._calls.grammar is not None)
        reading = self._calls
        fed = tags if reading is None else [(reading.spelling(a), reading.spelling(b)) for a, b in tags]
        self._splitter = ThinkSplitter(fed, inside=thinking_open, verbatim=self._verbatim)
        self._loops = LoopGuard(request.loop_guard, _asked(request)) if request.loop_guard else None
        self._grammar_loops = GrammarLoops(self._loops, grammar) if self._loops and grammar else None
        # The characters of thinking tags are control tokens in some vocabularies: they have to be seen as text.
        self._shown = {token for pair in tags for tag in pair for token in vocab.tokenize(tag)}
        self._forced: deque[int] = deque()
        self._closing = tags[0][1] if tags else ""
        self._reasoning_tokens = 0
        self._echo = echo
        self._told = 0  # tokens of the prompt whose echo has gone out
        self._logprobs = TextLogprobs(len(echo.text) if echo else 0, every=echo is not None)
        self._sum_logprobs, self._drawn = 0.0, 0
        self._places: deque[range] = deque()  # of the answer that the reading of calls still holds back
        self._decoded = 0  # characters
        self._grammar = grammar
        self._answer: list[str] = []  # for the check at the end, where there is something to check
        self._stopped = False  # by a stop text
        self._violation: str | None = None
        self._is_checked = grammar is not None or (self._calls is not None and self._calls.grammar is not None)
        self._conforms: bool | None = False if self._is_checked else None
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
    def _answer_is_full(self) -> bool:
        most = self.request.max_answer_tokens
        return most is not None and self.n_generated - self._reasoning_tokens >= most and not self._splitter.open

    @property
    def pending(self) -> int:
        """Tokens that wait to be evaluated."""
        return len(self.tokens) - self.evaluated

    @property
    def pending_history(self) -> int:
        """Tokens to evaluate up to the end of the shared history, 0 when that is passed."""
        return max(0, self.history_tokens - self.evaluated)

    @property
    def _first_unscored(self) -> int:
        """The first position whose logits say something of the prompt that is not known; n_prompt for none.

        The logits of a position are for the token after it; the prompt's first token has none.
        """
        scored = self.n_prompt if self._echo is None or not self.request.scores_prompt else self._told
        return max(0, scored - 1) if scored < self.n_prompt else self.n_prompt

    @property
    def reusable(self) -> int:
        """Tokens that may come from the cache: those whose logits are wanted have to be evaluated."""
        return min(self._first_unscored, len(self.tokens))

    @property
    def pending_unscored(self) -> int:
        """Tokens to evaluate up to those that are scored, 0 when there are none, or none that are scored."""
        first = self._first_unscored
        return max(0, first - self.evaluated) if first < self.n_prompt else 0

    @property
    def scores(self) -> bool:
        """Whether the tokens that wait to be evaluated are scored, each of them."""
        return self._first_unscored <= self.evaluated < self.n_prompt

    def wants_logits(self, position: int) -> bool:
        """Whether the logits of a position will be looked at."""
        return position == len(self.tokens) - 1 or self._first_unscored <= position < self.n_prompt - 1

    def echoed(
        self,
        context: Context,
        base: int,
        each: Callable[[Callable[[int], TokenLogprob], Sequence[int]], Iterable[TokenLogprob]] = map,
    ) -> Delta | None:
        """What the last decode makes known of the prompt, where it comes before the answer.

        base: the batch entry of position p is base + p. each: applies a function to several positions.
        """
        known = min(self.evaluated + 1, self.n_prompt)
        if self._echo is None or self._told >= known:
            return None
        start, self._told = self._told, known
        logprobs: list[TokenLogprob] = []
        if (top := self.request.top_logprobs) is not None:
            offsets = self._echo.offsets
            if start == 0:
                logprobs.append(TokenLogprob(*self._written(self.tokens[0]), None, [], offsets[0]))

            def score(position: int) -> TokenLogprob:
                token = self.tokens[position + 1]
                return self._logprob(context, base + position, token, top, offsets[position + 1])

            logprobs += each(score, range(max(0, start - 1), known - 1))
        text = self._echo.part(start, known)
        return Delta(self.request.id, text, logprobs=tuple(logprobs)) if text or logprobs else None

    def reading(self, now_s: float) -> Reading | None:
        """How far the prompt has been read, where the request wants to know and was not told a moment ago."""
        if not self.request.tells_reading or not 0 < self.evaluated < self.n_prompt:
            return None
        if now_s - self._told_s < _TELL_EVERY_S:
            return None
        self._told_s = now_s
        return Reading(self.request.id, self.evaluated, self.n_prompt)

    def begin(self, tick: int, now_s: float) -> None:
        """The sequence has a slot, and `evaluated` tokens in it. What is reported of a start is that of the first."""
        self.waits_for = ""
        if not self.started:
            self.started = tick
            self.cached = self.evaluated
            self.queued_s = now_s - self.submitted_s
            self._began_s = now_s

    def decoded(self, now_s: float) -> None:
        """Some of its tokens have been evaluated."""
        if self._read_s is None and self.evaluated >= self.n_prompt:
            self._read_s = now_s

    def advance(self, context: Context, index: int) -> Delta | None:
        """Draw the next token from batch entry `index` and give the text it releases; sets `finish` at the end.

        Raises GrammarError when the grammar cannot be kept any longer.
        """
        if not self.left:  # the prompt alone was to be read
            self.finish = Finish.LENGTH
            return None
        constrained = not self._splitter.open
        token, forced = self._next_token(context, index)
        entry = None
        if self.request.top_logprobs is not None or self.request.ranked:
            entry = self._logprob(context, index, token, self.request.top_logprobs or 0)
            self._sum_logprobs += entry.logprob or 0.0
            self._drawn += 1
        if self.vocab.ends_generation(token) or (self._calls is not None and self._calls.ends(token)):
            self.finish = Finish.STOP
            if entry is not None and self.request.scores_prompt:
                self._logprobs.add(entry, self._decoded, self._decoded)
            out = self._flush()
            self._check(out)
            return self._delta(out)
        self.tokens.append(token)
        self._reasoning_tokens += self._splitter.open and not forced
        piece = self.vocab.piece(token, special=token in self._shown)
        text = self._text(token, piece)
        start, self._decoded = self._decoded, self._decoded + len(text)
        if entry is not None and self.request.top_logprobs is not None:
            self._logprobs.add(entry, start, self._decoded + (not self._utf8.at_boundary))
        out = self._filter(text, token, piece, constrained=constrained)
        if self.finish is None and (self.n_generated >= self.limit or self._answer_is_full):
            self.finish = Finish.LENGTH
        if self.finish is not None:
            out.add(self._flush())
            if self.finish is Finish.STOP:
                self._check(out)
        return self._delta(out)

    def _text(self, token: int, piece: bytes) -> str:
        """The characters that a token completes; a tag of the tools' family that is one token stands as a sentinel."""
        if self._calls is None:
            return self._utf8.feed(piece)
        tag = self._calls.text_of(token)
        return self._calls.foreign(self._utf8.feed(piece)) if tag is None else tag

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
        grammar = self._calls.grammar if self._calls is not None else self._grammar
        return self.sampler.sample(context, index, None if thinking else grammar), False

    def _filter(self, text: str, token: int, piece: bytes, *, constrained: bool) -> _Out:
        """Think blocks out, then calls, then stop strings, then the loop guard; sets `finish`."""
        split = self._splitter.feed(text)
        out = _Out(reasoning=self._keep_reasoning(split.reasoning))
        if self._calls is None:
            self._logprobs.classify(self._splitter.places())
            self._read_text(out, split.answer)
        else:
            parts = self._calls.feed(split.answer, self._splitter.held, at_boundary=self._utf8.at_boundary)
            self._read_parts(out, parts)
            self._splitter.verbatim = self._verbatim or self._calls.in_call
            if self._calls.is_last:
                self.finish = self.finish or Finish.STOP
        if self.finish is None and (
            loop := self._look(split.answer + split.reasoning, token, piece, constrained=constrained)
        ):
            self.finish, self._loop = Finish.LOOP, loop.repeated
        return out

    def _read_text(self, out: _Out, text: str) -> None:
        answer, stopped = self._stops.feed(text)
        out.say(answer)
        if stopped:
            self.finish, self._stopped = self.finish or Finish.STOP, True

    def _read_parts(self, out: _Out, parts: Sequence[Part]) -> None:
        """Text through the stop strings; a stop string does not reach over a call, and does not count within one."""
        self._places.extend(self._splitter.places())
        for part in parts:
            places = _taken(self._places, part.taken)
            if self._stopped:
                return
            if part.alike and not part.pieces:
                self._logprobs.classify(places if part.text else ())
                self._read_text(out, part.text)
                continue
            out.say(self._stops.flush())
            out.say(part.text, listed=False)
            out.calls += part.pieces

    def _look(self, text: str, token: int, piece: bytes, *, constrained: bool) -> Loop | None:
        if self._grammar_loops is not None and constrained:
            return self._grammar_loops.feed(text, token, piece)
        return self._loops.feed(text) if self._loops is not None else None

    def _flush(self) -> _Out:
        """What was held back, at the end of the answer. A character that is not complete by then never comes."""
        rest = self._splitter.flush()
        out = _Out(reasoning=self._keep_reasoning(rest.reasoning))
        if self._calls is None:
            self._logprobs.classify(self._splitter.places())
            self._read_text(out, rest.answer)
        else:
            self._read_parts(out, self._calls.feed(rest.answer))
            self._read_parts(out, self._calls.flush(cut=self.finish is not Finish.STOP))
        out.say("" if self._stopped else self._stops.flush())
        return out

    def _check(self, out: _Out) -> None:
        """An answer that ended by itself keeps to what it was held to, or is invalid; one that was cut is neither.

        out: what has not gone out yet. Raises GrammarError when it cannot be checked.
        """
        if self._stopped:
            return
        answer = "".join(self._answer) + out.text
        if self._calls is not None:
            self._violation = self._calls.violation(answer)
            if self._calls.n_calls and self.finish is Finish.STOP:
                self.finish = Finish.CALLS
        elif self._grammar is not None:
            self._violation = self._grammar.violation(answer)
        if self._violation is not None:
            self.finish = Finish.INVALID
        self._conforms = self._violation is None if self._is_checked or self._violation is not None else None

    def _keep_reasoning(self, text: str) -> str:
        if self.request.thinking.mode is ThinkingMode.OFF:
            return ""
        return text if self._calls is None else self._calls.plain(text)

    def _delta(self, out: _Out) -> Delta | None:
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.request.top_logprobs is not None:
            undecided = self._places[0].start if self._places else self._splitter.decided
            logprobs = self._logprobs.release(out.listed, undecided)
            if self.finish is not None:
                logprobs += self._logprobs.rest()
        text = out.text
        if self._is_checked:
            self._answer.append(text)
        return Delta(self.request.id, text, out.reasoning, logprobs, tuple(out.calls)) if out or logprobs else None

    def _logprob(self, context: Context, index: int, token: int, top: int, offset: int = 0) -> TokenLogprob:
        own, best = log_probabilities(context.logits(index), token, top)
        return TokenLogprob(*self._written(token), own, [(*self._written(t), value) for t, value in best], offset)

    def _written(self, token: int) -> tuple[str, list[int]]:
        piece = self.vocab.piece(token, special=True)
        return piece.decode("utf-8", "replace"), list(piece)

    def finished(self, reason: Finish, now_s: float) -> Finished:
        """The closing event."""
        began_s = self._began_s if self.started else now_s
        read_s = now_s if self._read_s is None else self._read_s
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
            malformed_calls=self._calls.n_malformed if self._calls is not None else 0,
            mean_logprob=self._sum_logprobs / self._drawn if self.request.ranked and self._drawn else None,
            forbidden_calls=self._calls.n_forbidden if self._calls is not None else 0,
            prompt_s=read_s - began_s,
            answer_s=now_s - read_s,
        )

    def close(self) -> None:
        """Free the sampler."""
        self.sampler.close()


@dataclass
class _Out:
    """What goes out of one step. listed: characters of the text that have log-probabilities."""

    reasoning: str = ""
    listed: int = 0
    calls: list[CallPiece] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.calls or any(self._texts))

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def say(self, text: str, *, listed: bool = True) -> None:
        self._texts.append(text)
        self.listed += len(text) * listed

    def add(self, other: _Out) -> None:
        self.reasoning += other.reasoning
        self.listed += other.listed
        self.calls += other.calls
        self._texts += other._texts


def _taken(places: deque[range], count: int) -> list[range]:
    """The first so many places, which are no longer there."""
    found: list[range] = []
    while count and places:
        first = places.popleft()
        part, rest = first[:count], first[count:]
        if rest:
            places.appendleft(rest)
        count -= len(part)
        found.append(part)
    return found


def _asked(request: GenerateRequest) -> str:
    """What the user said last; nothing where a text is continued."""
    said = [message["content"] for message in request.messages or () if message["role"] == "user"]
    return said[-1] if said and isinstance(said[-1], str) else ""

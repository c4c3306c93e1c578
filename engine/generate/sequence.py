"""One request while it is being answered: from sampled tokens to the text that goes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..llama.context import Context
from ..llama.vocab import Vocab
from ..request import Delta, Finish, Finished, GenerateRequest, TokenLogprob
from ..spec import ThinkingMode
from .grammar import Structure
from .loops import LoopGuard
from .output import StopMatcher, ThinkSplitter, Utf8Stream
from .sampling import Sampler, log_probabilities


class ActiveSequence:
    """A request's tokens, sampler and text filters.

    tokens: prompt and answer so far. evaluated: how many of them are in the KV cache.
    turn_tokens: where the conversation's shared history ends in the prompt; a checkpoint is worth taking there.
    """

    def __init__(
        self,
        request: GenerateRequest,
        prompt: Sequence[int],
        vocab: Vocab,
        *,
        limit: int,
        turn_tokens: int,
        tags: Sequence[tuple[str, str]],
        thinking_open: bool,
        structure: Structure | None = None,
        owner: int = 0,
    ) -> None:
        """limit: tokens the answer may have. structure: what the answer, without its thinking, has to keep to.
        owner: the specialist that answers, where several share a resident.
        """
        self.request = request
        self.owner = owner
        self.arrived = 0
        self.vocab = vocab
        self.tokens = list(prompt)
        self.n_prompt = len(prompt)
        self.turn_tokens = turn_tokens
        self.limit = limit
        self.evaluated = 0
        self.cached = 0
        self.started = 0
        self.submitted_s = self.queued_s = 0.0  # when it came, and for how long it waited until it was begun
        self.shares = True  # whether it may begin with cells of another conversation
        self._stops = StopMatcher(request.stop)
        self.sampler = Sampler(
            vocab,
            request.sampling,
            seed=request.seed,
            logit_bias=request.logit_bias,
            structure=structure,
        )
        for token in self.tokens[max(0, self.n_prompt - request.sampling.repeat_last_n) :]:
            self.sampler.accept(token)
        self._utf8 = Utf8Stream()
        # A tag within a structured answer is a part of it: nothing else could have been drawn there.
        self._splitter = ThinkSplitter(tags, inside=thinking_open, verbatim=structure is not None)
        self._loops = LoopGuard() if request.loop_guard else None
        # The characters of thinking tags are control tokens in some vocabularies: they have to be seen as text.
        self._shown = {token for pair in tags for tag in pair for token in vocab.tokenize(tag)}
        self._forced: deque[int] = deque()
        self._closing = tags[0][1] if tags else ""
        self._reasoning_tokens = 0
        self._logprobs: list[TokenLogprob] = []
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
    def until_turn(self) -> int:
        """Tokens to evaluate up to the end of the shared history, 0 when that is passed."""
        return max(0, self.turn_tokens - self.evaluated)

    def advance(self, context: Context, index: int) -> Delta | None:
        """Draw the next token from batch entry `index` and give the text it releases; sets `finish` at the end.

        Raises GrammarError when the wanted structure cannot be kept any longer.
        """
        token, forced = self._next_token(context, index)
        if self.vocab.ends_generation(token):
            self.finish = Finish.STOP
            return self._delta(*self._flush())
        self.tokens.append(token)
        if self.request.top_logprobs is not None:
            self._logprobs.append(self._logprob(context, index, token, self.request.top_logprobs))
        self._reasoning_tokens += self._splitter.open and not forced
        answer, reasoning = self._filter(self._utf8.feed(self.vocab.piece(token, special=token in self._shown)))
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

    def _filter(self, text: str) -> tuple[str, str]:
        """Think blocks out, then stop strings, then the loop guard; sets `finish`."""
        split = self._splitter.feed(text)
        answer, stopped = self._stops.feed(split.answer)
        if stopped:
            self.finish = Finish.STOP
        elif self._loops is not None and (loop := self._loops.feed(split.answer + split.reasoning)):
            self.finish, self._loop = Finish.LOOP, loop.repeated
        return answer, self._keep_reasoning(split.reasoning)

    def _flush(self) -> tuple[str, str]:
        """What was held back, at the end of the answer."""
        split = self._splitter.feed(self._utf8.flush())
        rest = self._splitter.flush()
        answer, stopped = self._stops.feed(split.answer + rest.answer)
        answer += "" if stopped else self._stops.flush()
        return answer, self._keep_reasoning(split.reasoning + rest.reasoning)

    def _keep_reasoning(self, text: str) -> str:
        return "" if self.request.thinking.mode is ThinkingMode.OFF else text

    def _delta(self, text: str, reasoning: str) -> Delta | None:
        if not text and not reasoning and not (self._logprobs and self.finish):
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Delta(self.request.id, text, reasoning, logprobs)

    def _logprob(self, context: Context, index: int, token: int, top: int) -> TokenLogprob:
        own, best = log_probabilities(context.logits(index), token, top)

        def written(t: int) -> tuple[str, list[int]]:
            piece = self.vocab.piece(t, special=True)
            return piece.decode("utf-8", "replace"), list(piece)

        return TokenLogprob(*written(token), own, [(*written(t), value) for t, value in best])

    def finished(self) -> Finished:
        """The closing event; `finish` must be set."""
        assert self.finish is not None
        off = self.request.thinking.mode is ThinkingMode.OFF
        return Finished(
            id=self.request.id,
            reason=self.finish,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.cached,
            completion_tokens=self.n_generated,
            reasoning_tokens=self._reasoning_tokens,
            leaked_blocks=self._splitter.blocks if off else 0,
            loop=self._loop,
            queued_s=self.queued_s,
        )

    def close(self) -> None:
        """Free the sampler."""
        self.sampler.close()

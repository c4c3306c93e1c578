"""What small models write when nothing ends them but their own end or the length: text for the loop guard's figures.

Answers are kept in a JSONL file as they come, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from coe.demo.curriculum import DOMAINS, questions
from coe.demo.shipped import FOLDER, PARENT
from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.request import Delta, Event, Finish, Finished, GenerateRequest
from coe.engine.spec import LoadSpec, Sampling
from coe.engine.worker.batch import BatchLoop
from coe.surgery.cut.cut import cut
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent

TEMPERATURES: Final = (0.0, 0.3, 0.6, 0.99)
PENALTIES: Final = (1.0, 1.05)
_AT_ONCE: Final = 4  # long answers beside each other slow each other down: all attend over one cache
_PROMPT_TOKENS: Final = 128
_QUESTIONS: Final = 8  # of each foreign domain, to a specialist of the tiny college

PROMPTS: Final = (
    "Explain why the sky is blue, in great detail.",
    "Prove that there are infinitely many prime numbers. Think step by step.",
    "Write a Python function that solves a Sudoku, with tests.",
    "List fifty uses of a paper clip.",
    "Write a poem of twenty verses about the sea.",
    "Compute 17 * 23 * 41, showing every step.",
    "Make a Markdown table of the planets with ten columns.",
    "Tell me a long story about a dragon.",
    "Write a JSON array of twenty made-up customers.",
    "What is the difference between TCP and UDP?",
    "Write the C code of a hash map with all its functions.",
    "Give me a week's meal plan with recipes.",
    "Write a dialogue between two robots that lasts very long.",
    "Which of 91, 97 and 119 are prime? Check every divisor and check again.",
    "Schreibe eine lange Geschichte über einen Müller und seine drei Söhne.",
    "Write a CSV file with the weather of every day of a month.",
)


@dataclass(frozen=True)
class ModelText:
    """One answer. ended: the model ended it by itself."""

    model: str
    prompt: str
    temperature: float
    penalty: float
    text: str
    ended: bool

    @property
    def key(self) -> tuple[str, str, float, float]:
        return self.model, self.prompt, self.temperature, self.penalty


def read_texts(path: Path) -> list[ModelText]:
    """What the file holds; a last line that was torn is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(ModelText(**json.loads(line)))
        except ValueError:
            continue
    return found


def hear_smollm2(model: Path, path: Path, tokens: int) -> None:
    """Let SmolLM2 answer the prompts at every temperature and penalty, as far as the file has no answer yet."""
    _hear("SmolLM2-135M", model, PROMPTS, path, tokens)


def hear_college(path: Path, tokens: int) -> None:
    """Ask each specialist of the demo's college what it knows nothing of: there it loops."""
    with tempfile.TemporaryDirectory() as folder:
        for mask in sorted((FOLDER / "masks").glob("*.json")):
            specialist = Path(folder) / f"{mask.stem}.gguf"
            cut(Parent.open(PARENT), Mask.load(mask), specialist, provenance=False)
            foreign = itertools.chain.from_iterable(
                [question.text for question in questions(domain) if question.held_out][:_QUESTIONS]
                for domain in DOMAINS
                if domain != mask.stem
            )
            _hear(f"college {mask.stem}", specialist, tuple(foreign), path, tokens)


def _hear(name: str, model: Path, prompts: Sequence[str], path: Path, tokens: int) -> None:
    known = {text.key for text in read_texts(path)}
    wanted = [
        ModelText(name, prompt, temperature, penalty, "", False)
        for prompt in prompts
        for temperature in TEMPERATURES
        for penalty in PENALTIES
    ]
    wanted = [text for text in wanted if text.key not in known]
    if not wanted:
        return
    with path.open("a", encoding="utf-8") as file:
        for text in _answered(model, wanted, tokens):
            file.write(json.dumps(asdict(text), ensure_ascii=False) + "\n")
            file.flush()


def _answered(path: Path, wanted: Sequence[ModelText], tokens: int) -> Iterator[ModelText]:
    """The same with text, as the answers end."""
    context_tokens = tokens + _PROMPT_TOKENS
    spec = LoadSpec(
        path, context_tokens=context_tokens, cache_tokens=_AT_ONCE * context_tokens, parallel=_AT_ONCE, threads=1
    )
    model = Model(spec)
    context = Context(model, spec)
    events: list[Event] = []
    loop = BatchLoop(model, context, spec, events.append)
    try:
        for at, text in enumerate(wanted):
            loop.submit(_request(str(at), text, tokens))
        pieces: dict[str, list[str]] = {}
        running = True
        while running:
            running = loop.step()
            for event in _taken(events):
                if isinstance(event, Delta):
                    pieces.setdefault(event.id, []).append(event.text)
                elif isinstance(event, Finished):
                    written = "".join(pieces.pop(event.id, ()))
                    yield replace(wanted[int(event.id)], text=written, ended=event.reason is Finish.STOP)
    finally:
        loop.close()
        context.close()
        model.close()


def _request(name: str, text: ModelText, tokens: int) -> GenerateRequest:
    sampling = Sampling(temperature=text.temperature, repeat_penalty=text.penalty)
    message: Mapping[str, Any] = {"role": "user", "content": text.prompt}
    return GenerateRequest(
        name, "specialist", messages=[message], sampling=sampling, max_tokens=tokens, seed=7, loop_guard=None
    )


def _taken(events: list[Event]) -> Iterable[Event]:
    taken = list(events)
    events.clear()
    return taken

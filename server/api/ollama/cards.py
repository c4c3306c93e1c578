"""Models as Ollama's clients list them: names with a tag, sizes, capabilities, what is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from coe.engine.errors import UnavailableError
from coe.engine.pool.admission import State
from coe.engine.spec import ModelFacts
from coe.router.encoder import STATES, Embeds

from ...roster.models import Specialist
from ...roster.values import AUTO, asked_name, names_among, tagged
from ...runtime.availability import Servable, Unavailable
from ...runtime.college import College
from ...runtime.errors import Part, UnknownModelError
from ..models import capabilities_of
from .replies import timestamp

# Of those that we know, the words that Ollama has.
_CAPABILITIES: Final = ("completion", "tools", "insert", "thinking", "embedding")
_FOR_EVER: Final = timedelta(days=365 * 200)  # until a model goes that stays until its room is needed
_ENCODERS: Final = "bert"  # the architecture of the sentence encoder, by GGUF's name for it
_UNKNOWN: Final = ModelFacts("", 0)


@dataclass(frozen=True)
class Card:
    """A model that can be asked. served: its specialists, all that answer for `auto`, none for the sentence encoder."""

    name: str
    served: Sequence[Servable]
    facts: ModelFacts
    digest: str
    encoder: Embeds | None = None

    @property
    def specialist(self) -> Specialist | None:
        """None for `auto`."""
        return self.served[0].entry if asked_name(self.name) != AUTO and self.served else None

    @property
    def files(self) -> tuple[Path, ...]:
        """None for `auto`, which has none of its own."""
        return self.served[0].location.files if self.specialist is not None else ()

    def size(self, on_disk: int) -> int:
        """Bytes: of its files; of one that has none of its own, being filled from its parent, what its weights take."""
        if self.specialist is None:
            return 0
        item = self.served[0]
        return item.footprint.weights_bytes if item.location.sources and item.footprint is not None else on_disk

    @property
    def context_tokens(self) -> int:
        """Of a conversation, prompt and answer."""
        if self.encoder is not None:
            return self.encoder.positions
        return max((_context_tokens(item) for item in self.served), default=0)

    @property
    def capabilities(self) -> list[str]:
        """In Ollama's words."""
        if self.encoder is not None:
            return ["embedding"]
        able = {word for item in self.served for word in capabilities_of(item)}
        return [word for word in _CAPABILITIES if word in able]

    @property
    def details(self) -> dict[str, Any]:
        """What stands in every list."""
        entry = self.specialist
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.facts.architecture,
            "families": [self.facts.architecture] if self.facts.architecture else [],
            "parameter_size": number_text(self.facts.parameters),
            "quantization_level": self.facts.file_type or (entry.quant if entry is not None else None) or "unknown",
            "context_length": self.context_tokens,
            "embedding_length": self.facts.embedding_length,
        }


def cards(college: College) -> list[Card]:
    """`auto`, and every specialist that can be served, by its name and its aliases."""
    found = [card_of(college, AUTO)]
    for name in college.catalog.available:
        entry = college.catalog.availability[name].entry
        found += [card_of(college, each) for each in (name, *names_among(entry.aliases))]
    if (encoder := college.embeddings.encoder) is not None:
        names = (encoder.name, *college.roster.router.encoder_aliases)
        found += [card_of(college, each) for each in names if college.embeddings.is_encoder(each)]
    return found


def card_of(college: College, name: str) -> Card:
    """The model of a name or an alias. Raises UnknownModelError, and UnavailableError for what cannot be served."""
    served = college.catalog.availability
    available = {one: item for one, item in served.items() if isinstance(item, Servable)}
    if (encoder := college.embeddings.encoder) is not None and college.embeddings.is_encoder(name):
        return Card(name, [], ModelFacts(_ENCODERS, 0, 0, STATES), _digest([encoder.name]), encoder)
    if college.roster.called(name) == AUTO:
        available = {one: item for one, item in available.items() if not item.entry.embeddings}
        all_facts = {college.catalog.facts.get(one, _UNKNOWN) for one in available}
        # Of several architectures and sizes there is none to tell.
        facts = next(iter(all_facts)) if len(all_facts) == 1 else _UNKNOWN
        stamps = [stamp for one in available for stamp in college.catalog.stamps(one)]
        return Card(AUTO, list(available.values()), facts, _digest([AUTO, *stamps]))
    specialist = college.roster.find(name)
    if specialist is None:
        known = ", ".join([AUTO, *available])
        raise UnknownModelError(f"There is no model {name!r}. Known: {known}.", param=Part.MODEL)
    item = served[specialist.name]
    if isinstance(item, Unavailable):
        raise UnavailableError(f"{specialist.name} cannot be served: {item.reason}", item.remedy)
    pinned = specialist.sha256
    facts = college.catalog.facts.get(specialist.name, _UNKNOWN)
    digest = (
        pinned[0]
        if pinned and len(pinned) == 1
        else _digest([specialist.name, specialist.system_prompt or "", *college.catalog.stamps(specialist.name)])
    )
    return Card(name, [item], facts, digest)


def _context_tokens(item: Servable) -> int:
    return item.embedding.input_tokens if item.embedding is not None else item.entry.context_tokens


def listed(card: Card, size: int, modified: datetime) -> dict[str, Any]:
    """An entry of /api/tags."""
    return {
        "name": tagged(card.name),
        "model": tagged(card.name),
        "modified_at": timestamp(modified),
        "size": size,
        "digest": card.digest,
        "details": card.details,
        "capabilities": card.capabilities,
    }


def on_disk(files: Iterable[Path]) -> tuple[int, datetime]:
    """Bytes of files together, and when the last of them was written. Looks at the disk."""
    size, last = 0, 0.0
    for file in files:
        with suppress(OSError):  # it went since the roster was read
            status = file.stat()
            size, last = size + status.st_size, max(last, status.st_mtime)
    return size, datetime.fromtimestamp(last, UTC)


def shown(card: Card, modified: datetime, *, notice: str | None) -> dict[str, Any]:
    """The answer of /api/show."""
    entry = card.specialist
    return {
        "license": (entry.licence if entry is not None else None) or "",
        "modelfile": f"# Served by a College of Experts, whose roster says how.\nFROM {tagged(card.name)}\n",
        "parameters": _parameters(card),
        "template": _template(card),
        "system": (entry.system_prompt if entry is not None else None) or "",
        "details": card.details,
        "model_info": _model_info(card),
        "capabilities": card.capabilities,
        "modified_at": timestamp(modified),
        "coe": {"description": (entry.description if entry is not None else None) or "", "notice": notice},
    }


def _parameters(card: Card) -> str:
    """As a Modelfile has them: what holds where a request says nothing."""
    settings: dict[str, Any] = {"num_ctx": card.context_tokens}
    if (entry := card.specialist) is not None:
        settings |= vars(entry.default_sampling())
        if entry.max_tokens is not None:
            settings["num_predict"] = entry.max_tokens
    return "\n".join(
        f"{name:<30} {value:g}" if isinstance(value, float) else f"{name:<30} {value}"
        for name, value in settings.items()
    )


def _template(card: Card) -> str:
    """Models have templates of Jinja; Ollama's are Go's. Clients look in them for the words `tools` and `.Suffix`."""
    calls = ""
    if "tools" in card.capabilities:
        forms = dict.fromkeys(_form_of_calls(item) for item in card.served if "tools" in capabilities_of(item))
        calls = f"; tools: {', '.join(forms)}"
    gap = "{{ if .Suffix }}{{ .Suffix }}{{ end }}" if "insert" in card.capabilities else ""
    return (
        f"{{{{- /* the chat template of the model itself{calls} */ -}}}}"
        f"{{{{ if .System }}}}{{{{ .System }}}}{{{{ end }}}}{{{{ .Prompt }}}}{gap}"
    )


def _form_of_calls(item: Servable) -> str:
    own = item.tool_form.family if item.tool_form is not None and item.entry.tools != "generic" else None
    return own or "generic"


def _model_info(card: Card) -> dict[str, Any]:
    """By GGUF's keys. The context is what is served, which may be less than what the model was trained for."""
    facts = card.facts
    family = facts.architecture or "coe"
    info = {
        "general.architecture": family,
        "general.basename": card.name,
        "general.parameter_count": facts.parameters,
        "general.file_type": facts.file_type_number,
        f"{family}.context_length": card.context_tokens,
        f"{family}.embedding_length": facts.embedding_length or None,
        f"{family}.block_count": facts.layers or None,
    }
    return {key: value for key, value in info.items() if value is not None}


def running(college: College, now: datetime) -> list[dict[str, Any]]:
    """The entries of /api/ps: which specialist each resident is now, those that stay longest first."""
    found: list[tuple[datetime, dict[str, Any]]] = []
    for resident in college.pool.status().residents:
        item = college.catalog.availability.get(resident.specialist)
        if resident.state is not State.WARM or not isinstance(item, Servable):
            continue
        card = card_of(college, resident.specialist)
        ttl_s = college.roster.pool.idle_ttl_s
        left = _FOR_EVER if ttl_s is None or item.entry.pin else timedelta(seconds=max(0.0, ttl_s - resident.idle_s))
        entry = {
            "name": tagged(card.name),
            "model": tagged(card.name),
            "size": resident.memory.total_bytes,
            "digest": card.digest,
            "details": card.details,
            "expires_at": timestamp(now + left),
            "size_vram": resident.memory.card_bytes,
            "context_length": card.context_tokens,
        }
        found.append((now + left, entry))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [entry for _, entry in found]


def number_text(number: int) -> str:
    """How many parameters, as Ollama writes it: 13.9B, 134.5M; nothing where it is not known."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.1f}".removesuffix(".0") + letter
    return str(number) if number else ""


def _digest(facts: Iterable[str]) -> str:
    """64 hexadecimal digits, others when a file changed: of its bytes only where the roster pins them."""
    return hashlib.sha256("\0\0".join(facts).encode()).hexdigest()

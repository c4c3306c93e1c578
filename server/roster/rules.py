"""Cross-field validation of a roster: what is wrong or doubtful within one entry, between entries, and with the rest.

Pure: each rule looks at values and yields findings at key paths. Lines and wording of single fields are the loader's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from coe.engine.spec import LoadSpec
from coe.router.choose import Candidate
from coe.router.domains import DOMAINS, canonical
from coe.router.examples import example_problems, examples_of
from coe.surgery.plan.recipes import RECIPES, settings_of

from .addresses import is_loopback
from .models import BuildSection, ModelSource, Roster, SamplingBounds, ServerSection, Specialist
from .source import KeyPath, nearest

LEAST_EXAMPLES = 10  # fewer teach a classifier nothing
WARM_TEMPERATURE, HOT_TEMPERATURE = 0.8, 1.0  # pruned models loop more often from the first, often from the second


@dataclass(frozen=True)
class Finding:
    """What a check found: at a key path of the file, an error or (not fatal) a doubt."""

    path: KeyPath
    message: str
    remedy: str = ""
    fatal: bool = True


def specialist_findings(
    specialist: Specialist, bad: frozenset[str], at: KeyPath, own: Collection[str] = ()
) -> Iterator[Finding]:
    """Rules within one entry, at key path `at`. A rule that needs a field in `bad` (wrong by itself) says nothing.

    own: the keys that the entry says itself, and has not from `defaults`.
    """
    kinds = ("file", "repo", "package", "mask", "mask_of", "build")
    sources = [key for key in kinds if getattr(specialist, key) is not None or key in bad]
    if not sources:
        remedy = "Add `file:`, or `repo:` and `pattern:`, or `package:`, or `mask:`, `mask_of:` or `build:`."
        yield Finding(at, "The entry names no model.", remedy)
    elif len(sources) > 1:
        yield Finding(
            (*at, sources[1]), f"A model has one source, here are {' and '.join(sources)}.", "Keep one of them."
        )
    elif sources == ["repo"] and specialist.pattern is None and "pattern" not in bad:
        yield Finding(
            (*at, "repo"),
            "A repository may hold many files.",
            'Add a pattern that finds one, such as `pattern: "*Q4_K_M*.gguf"`.',
        )
    elif sources == ["mask_of"] and specialist.pattern is not None:
        yield Finding((*at, "pattern"), "`pattern` goes with the `repo` of `mask_of`.", "Write it into that block.")
    elif sources in (["file"], ["mask"], ["build"]) and specialist.pattern is not None:
        yield Finding((*at, "pattern"), "`pattern` goes with `repo` or `package`.", "Remove it.")
    if "experts" in own and sources and not {"mask", "mask_of"} & set(sources):
        remedy = "Remove it; how many a build keeps stands in its `build:`."
        yield Finding((*at, "experts"), "`experts` goes with a mask: a file keeps what it has.", remedy)
    yield from _pin_findings(specialist, at, sources)
    if specialist.build is not None:
        yield from _build_findings(specialist.build, (*at, "build"))
    elif specialist.on_missing == "build" and not bad & {"on_missing", "build"}:
        yield Finding(
            (*at, "on_missing"),
            "An entry without `build:` cannot be built; its requests are refused when its model is missing.",
            "Add `build:`, or write refuse or fallback.",
            fatal=False,
        )

    if not bad & {"sampling", "sampling_bounds"}:
        temperature, bounds = specialist.sampling.temperature, specialist.sampling_bounds
        where = (*at, "sampling", "temperature")
        if temperature >= HOT_TEMPERATURE and bounds.on_excess != "allow":
            yield Finding(
                where,
                f"A temperature of {temperature:g} makes pruned models loop.",
                "Set it below 1.0 (0.6 is proven), or sampling_bounds.on_excess to allow.",
            )
        elif temperature > bounds.max_temperature and bounds.on_excess != "allow":
            yield Finding(
                where,
                f"{temperature:g} is above sampling_bounds.max_temperature ({bounds.max_temperature:g}).",
                "Lower it, or raise the bound.",
            )
        elif temperature >= WARM_TEMPERATURE:
            yield Finding(
                where, f"From {WARM_TEMPERATURE} up, pruned models loop more often.", "0.6 is proven.", fatal=False
            )
        if bounds.max_temperature >= HOT_TEMPERATURE and bounds.on_excess != "allow":
            yield Finding(
                (*at, "sampling_bounds", "max_temperature"),
                "Requests may ask for 1.0 and more, where pruned models loop.",
                f"{SamplingBounds().max_temperature:g} is the default.",
                fatal=False,
            )
    if not bad & {"embeddings", "dimensions"}:
        yield from _embedding_findings(specialist, at, sources)
    if not bad & {"context_tokens", "cache_tokens"} and 0 < specialist.cache_tokens < specialist.context_tokens:
        yield Finding(
            (*at, "cache_tokens"),
            f"The cache ({specialist.cache_tokens}) does not hold one full context ({specialist.context_tokens}).",
            "Raise cache_tokens, lower context_tokens, or leave cache_tokens out.",
        )
    if not bad & {"context_tokens", "max_tokens"} and (specialist.max_tokens or 0) >= specialist.context_tokens:
        yield Finding(
            (*at, "max_tokens"),
            f"The context of {specialist.context_tokens} tokens ends an answer earlier.",
            "Lower it, or leave it out: then an answer takes what the context leaves.",
            fatal=False,
        )
    if not bad & {"context_tokens", "thinking"}:
        budget = specialist.thinking.budget or 0
        if budget >= specialist.context_tokens:
            yield Finding(
                (*at, "thinking", "budget"),
                f"Thinking of {budget} tokens does not fit a context of {specialist.context_tokens}.",
                "Lower the budget, or raise context_tokens.",
            )
        elif budget > specialist.context_tokens * 0.75:
            yield Finding(
                (*at, "thinking", "budget"),
                f"Thinking may leave {specialist.context_tokens - budget} tokens for prompt and answer.",
                "Lower the budget, or raise context_tokens.",
                fatal=False,
            )
    if "examples" not in bad and 0 < len(specialist.examples) < LEAST_EXAMPLES:
        yield Finding(
            (*at, "examples"),
            f"{len(specialist.examples)} examples teach the supervisor too little.",
            f"Write at least {LEAST_EXAMPLES}, or none.",
        )
    never_chosen = not bad & {"domains", "examples"} and not specialist.domains and not specialist.examples
    if never_chosen and not specialist.embeddings:
        yield Finding(
            (*at, "domains"),
            "Without `domains` or `examples` the supervisor never chooses this specialist.",
            "Add one of them, or call it by name.",
            fatal=False,
        )


def _embedding_findings(specialist: Specialist, at: KeyPath, sources: Sequence[str]) -> Iterator[Finding]:
    """A model made for embeddings is a file of its own, and nothing that a question is sent to."""
    if not specialist.embeddings:
        if specialist.dimensions:
            yield Finding(
                (*at, "dimensions"), "Without `embeddings: true` nothing reads `dimensions`.", "Remove it.", fatal=False
            )
        return
    for key in ("mask", "mask_of", "build"):
        if key in sources:
            yield Finding((*at, key), "A specialist that is cut answers chats; it gives no embeddings.", "Remove one.")
    if specialist.share is True:
        yield Finding((*at, "share"), "A model for embeddings shares its resident with no other.", "Remove it.")
    for key in ("domains", "examples"):
        if getattr(specialist, key):
            yield Finding(
                (*at, key), "The supervisor sends no question to a model for embeddings.", "Remove it.", fatal=False
            )


def _pin_findings(source: ModelSource, at: KeyPath, sources: Sequence[str]) -> Iterator[Finding]:
    if source.revision is not None and sources != ["repo"]:
        remedy = "Write it into the block of `mask_of`." if sources == ["mask_of"] else "Remove it."
        yield Finding((*at, "revision"), "`revision` goes with `repo`.", remedy)
    if source.sha256 is not None and set(sources) & {"mask", "mask_of", "build"}:
        remedy = "Pin the parent, by its own `sha256`."
        yield Finding((*at, "sha256"), "`sha256` goes with a file that is fetched, not with one that is made.", remedy)


def _revision_findings(draft: Roster, specialists: Sequence[tuple[Specialist, frozenset[str]]]) -> Iterator[Finding]:
    """A repository has one folder: two revisions of it would take each other's place at every pull."""
    first: dict[str, str | None] = {}
    places: list[tuple[KeyPath, ModelSource]] = [(("parent",), draft.parent)] if draft.parent is not None else []
    places += [(("specialists", index), one) for index, (one, bad) in enumerate(specialists) if not bad]
    for at, source in places:
        if source.repo is not None and first.setdefault(source.repo, source.revision) != source.revision:
            yield Finding(
                (*at, "revision"),
                f"Another entry takes {source.repo} at another revision, and a repository has one folder.",
                "Write the same revision in both.",
            )


def roster_findings(
    draft: Roster, specialists: Sequence[tuple[Specialist, frozenset[str]]], wrong_keys: frozenset[str]
) -> Iterator[Finding]:
    """Rules between entries, and between entries and the rest; wrong_keys are the top-level ones set aside."""
    taken: dict[str, str] = {}
    if "router" not in wrong_keys:
        for index, alias in enumerate(draft.router.aliases):
            if alias in taken:
                yield Finding(("router", "aliases", index), f"{alias!r} stands here twice.", "Remove one.")
            taken[alias] = "`auto`"
    for index, (specialist, bad) in enumerate(specialists):
        at: KeyPath = ("specialists", index)
        called = [((*at, "name"), specialist.name)] if "name" not in bad else []
        if "aliases" not in bad:
            called += [((*at, "aliases", i), alias) for i, alias in enumerate(specialist.aliases)]
        for where, name in called:
            if name in taken:
                yield Finding(where, f"{name!r} already calls {taken[name]}.", "Choose another.")
            else:
                taken[name] = f"specialists[{index}]"
    names = [specialist.name for specialist, bad in specialists if "name" not in bad]
    whole = len(names) == len(specialists)  # else a name that seems unknown may only be misspelt in its entry

    def known(where: KeyPath, name: str) -> Iterator[Finding]:
        if whole and names and name not in names:
            close = nearest(name, names)
            remedy = f"Did you mean {close}?" if close else f"Name one of {', '.join(names)}."
            yield Finding(where, f"There is no specialist {name!r}.", remedy)

    if draft.fallback is not None:
        yield from known(("fallback",), draft.fallback)
        if any(one.embeddings and one.name == draft.fallback for one, bad in specialists if "name" not in bad):
            yield Finding(
                ("fallback",), f"{draft.fallback} gives embeddings and answers no question.", "Name another, or null."
            )
    for index, alias in enumerate(draft.router.encoder_aliases if "router" not in wrong_keys else ()):
        if alias in taken:
            yield Finding(
                ("router", "encoder_aliases", index), f"{alias!r} already calls {taken[alias]}.", "Choose another."
            )
    for index, name in enumerate(draft.pool.preload):
        yield from known(("pool", "preload", index), name)
    if "notices" not in wrong_keys:
        yield from _notice_findings(draft, specialists)
    if draft.fallback is None and not draft.fallback_warm and "fallback" not in wrong_keys:
        for index, (specialist, bad) in enumerate(specialists):
            if specialist.on_missing == "fallback" and "on_missing" not in bad:
                yield Finding(
                    ("specialists", index, "on_missing"),
                    "There is no fallback.",
                    "Name one at the top (`fallback:`), or set fallback_warm to true.",
                )
    yield from _parent_findings(draft.parent)
    if draft.parent is None and "parent" not in wrong_keys:
        for index, (specialist, _) in enumerate(specialists):
            if specialist.build is not None and specialist.build.parent is None:
                yield Finding(
                    ("specialists", index, "build"),
                    "There is no parent to cut it from.",
                    "Add `parent:` here, or at the top of the roster for all builds.",
                )
            for key in ("mask", "mask_of"):
                if getattr(specialist, key) is not None:
                    yield Finding(
                        ("specialists", index, key),
                        "There is no parent to cut it from.",
                        "Add `parent:` at the top of the roster.",
                    )
    yield from _exposure_findings(draft.server)
    yield from _wait_findings(draft)
    yield from _revision_findings(draft, specialists)
    yield from _sharing_findings(specialists)
    yield from _example_findings(specialists)


# Waits in seconds of which a day is far too long; milliseconds were meant then.
_WAITS = (
    ("server", "first_byte_s"), ("server", "max_wait_s"), ("pool", "max_bypass_s"), ("pool", "load_backoff_s"),
    ("pool", "load_timeout_s"), ("pool", "stall_s"), ("pool", "max_slice_wait_s"),
)  # fmt: skip
_DAY_S = 86_400


def _wait_findings(draft: Roster) -> Iterator[Finding]:
    for section, key in _WAITS:
        seconds = getattr(getattr(draft, section), key)
        if seconds is not None and seconds >= _DAY_S:
            yield Finding(
                (section, key),
                f"{seconds:g} s are {seconds / 3600:.0f} hours.",
                f"Write {seconds / 1000:g} if milliseconds were meant.",
                fatal=False,
            )


def _exposure_findings(server: ServerSection) -> Iterator[Finding]:
    named = (server.api_keys_env, server.api_keys_file, server.admin_keys_env, server.admin_keys_file)
    if is_loopback(server.host) or any(named):
        return
    yield Finding(
        ("server", "host"),
        f"Every machine that reaches {server.host} may use the server."
        if server.insecure
        else f"Other machines reach {server.host}, and no keys are named: the server makes its own.",
        "Set api_keys_env or api_keys_file, or listen on 127.0.0.1.",
        fatal=False,
    )


def _notice_findings(draft: Roster, specialists: Sequence[tuple[Specialist, frozenset[str]]]) -> Iterator[Finding]:
    for index, (specialist, bad) in enumerate(specialists):
        if specialist.notice is None or "notice" in bad or specialist.notice in draft.notices:
            continue
        close = nearest(specialist.notice, draft.notices)
        remedy = f"Did you mean {close}?" if close else "Write its text under `notices:` and its name here."
        yield Finding(("specialists", index, "notice"), f"There is no notice {specialist.notice!r}.", remedy)


def _example_findings(specialists: Sequence[tuple[Specialist, frozenset[str]]]) -> Iterator[Finding]:
    """Domains that the supervisor is not taught, and examples that contradict or repeat each other."""
    candidates = [
        Candidate(specialist.name, specialist.domains, examples=specialist.examples)
        for specialist, bad in specialists
        if not bad & {"domains", "examples"} and not specialist.embeddings
    ]
    examples = examples_of(candidates)
    known = {*DOMAINS, *(domain for domain, texts in examples.items() if texts)}
    for place, (specialist, bad) in enumerate(specialists):
        for index, domain in enumerate(() if bad & {"domains", "examples"} else specialist.domains):
            if canonical(domain) not in known:
                close = nearest(canonical(domain), sorted(known))
                yield Finding(
                    ("specialists", place, "domains", index),
                    f"The supervisor does not know the domain {domain!r}.",
                    f"Did you mean {close}?"
                    if close
                    else f"Add `examples` to an entry that names it first, or choose among {', '.join(DOMAINS)}.",
                    fatal=False,
                )
    for problem in example_problems(examples):
        yield Finding(("specialists",), f"{problem[0].upper()}{problem[1:]}.", fatal=False)


def _parent_findings(parent: ModelSource | None, at: KeyPath = ("parent",)) -> Iterator[Finding]:
    if parent is None:
        return
    sources = [key for key in ("file", "repo", "package") if getattr(parent, key) is not None]
    yield from _pin_findings(parent, at, sources)
    if len(sources) != 1:
        yield Finding(
            at, f"A parent has one source, here are {len(sources)}.", "Add `file:`, or `repo:` and `pattern:`."
        )
    elif parent.file is not None and parent.pattern is not None:
        yield Finding((*at, "pattern"), "`pattern` goes with `repo` or `package`.", "Remove it.")
    elif parent.repo is not None and parent.pattern is None:
        yield Finding((*at, "repo"), "A repository may hold many files.", "Add a `pattern` that finds one.")


# Setting -> the first recipe that has it.
_RECIPE_OF = {key: recipe for recipe in reversed([*RECIPES]) for key in settings_of(recipe)}


def _build_findings(build: BuildSection, at: KeyPath) -> Iterator[Finding]:
    yield from _parent_findings(build.parent, (*at, "parent"))
    name = build.recipe.name
    for key, recipe in _RECIPE_OF.items():
        if getattr(build.recipe, key) is not None and key not in settings_of(name):
            yield Finding((*at, "recipe", key), f"`{key}` is a setting of {recipe}, not of {name}.", "Remove it.")
    if build.reasoning and name != "three-pass":
        yield Finding((*at, "reasoning"), f"The recipe {name} reads no reasoning traces.", "Remove it.")
    if not build.questions and not build.answer and not any(path.endswith(".jsonl") for path in build.corpus):
        yield Finding(
            (*at, "questions"),
            "Nothing here can judge it: a plain text holds no questions, and an unjudged build is kept aside.",
            "Add `questions:`, or release it with coe build --accept.",
            fatal=False,
        )


def _sharing_findings(specialists: Sequence[tuple[Specialist, frozenset[str]]]) -> Iterator[Finding]:
    """Entries of one file that differ in how it is loaded take memory twice: seldom meant."""
    first: dict[tuple[object, ...], Specialist] = {}
    for index, (specialist, bad) in enumerate(specialists):
        if bad:
            continue
        if any((specialist.build, specialist.mask, specialist.mask_of)):
            continue
        source = (specialist.file, specialist.repo, specialist.package, specialist.pattern)
        other = first.setdefault(source, specialist)
        mine, theirs = specialist.load_spec(Path()), other.load_spec(Path())
        differing = [
            field.name for field in fields(LoadSpec) if getattr(mine, field.name) != getattr(theirs, field.name)
        ]
        if differing and "embeddings" not in differing:
            yield Finding(
                ("specialists", index),
                f"It loads the same model as {other.name} with another {' and '.join(differing)}: two residents.",
                "Make them equal to share one.",
                fatal=False,
            )

"""The sections of a roster as frozen values (pydantic models). The text below a key is its help in an editor.

Where a default is the engine's, the router's or surgery's, it is read from there: no default stands twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from coe.engine.pool.types import PoolLimits
from coe.engine.request import Patience
from coe.engine.spec import LoadSpec, Sampling, Sharing, Thinking, ThinkingMode
from coe.router.choose import SupervisorSettings
from coe.router.client_tasks import ANSWER_TOKENS, ClientTasks
from coe.surgery.build.job import BUILT, BuildOrder
from coe.surgery.judge.values import Bound
from coe.surgery.plan.recipes import RECIPES, Recipe

from .builtin import roster_option
from .model_files import (
    Location,
    held_to,
    locate_cut,
    locate_file,
    locate_in_folder,
    locate_in_package,
    mask_absent,
    published_mask_path,
    pull_remedy,
    repository_folder,
)
from .source import Problem
from .values import (
    AUTO,
    Aliases,
    AliasesOrPrefixes,
    Budget,
    BudgetOrZero,
    Cards,
    Count,
    CountOrZero,
    Digests,
    ExpertLayers,
    Experts,
    Factor,
    InvalidError,
    Layers,
    LoopGuardSwitch,
    Name,
    Names,
    Package,
    Parts,
    Pattern,
    Repo,
    Revision,
    Seconds,
    SecondsOrZero,
    Share,
    ShareSwitch,
    Size,
    SizeOrZero,
    Sizes,
    Switch,
    Text,
    Texts,
    Variable,
    expanded,
    one_of,
    sequence,
    untagged,
)


class Section(BaseModel):
    """Keys of one block of the roster; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    short_forms: ClassVar[tuple[JsonSchemaValue, ...]] = ()  # what may be written in place of the block

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The block's JSON schema, or one of its short forms."""
        reference = handler(core_schema)
        if cls.short_forms:
            schema = handler.resolve_ref_schema(reference)
            block = dict(schema)
            schema.clear()
            schema["anyOf"] = [*cls.short_forms, block]
        return reference


class ServerSection(Section):
    """Where the server listens, which clients it lets in, and how much it takes from them."""

    host: Text = "127.0.0.1"
    """0.0.0.0 for all interfaces: keys are made then where none are set"""
    port: Annotated[int, Strict(), Field(ge=0, le=65535)] = 8000
    """0 takes a free one"""
    ollama_port: Annotated[int, Strict(), Field(ge=0, le=65535)] | None = None
    """a second port for clients that look for Ollama, at 11434; all paths are served at both"""
    first_byte_s: Seconds = 1.0
    """a stream's status waits this long for a model; then comment frames keep it alive"""
    show_waiting: Annotated[bool, Strict()] = False
    """a chat's stream tells in the reasoning what it waits for: loading, reading the prompt, each with a percentage"""
    max_wait_s: Seconds = 120.0
    """a request that waited longer for a model is answered with 503"""
    slow_request_s: Seconds = 60.0
    """a request that takes longer has a line in the log"""
    max_queue: Count = PoolLimits.max_queue
    """requests that may wait; one more is answered with 429"""
    shutdown_s: SecondsOrZero = 30.0
    """Ctrl-C and SIGTERM let answers under way end for so long, then they fail; keep it below your supervisor's"""
    max_body_bytes: Size = 8 * 2**20
    """a larger request body is refused"""
    max_uploads_bytes: Size = 64 * 2**20
    """bodies of all requests together, of each what is beyond 64 KiB; what makes them larger is answered with 503"""
    max_unread_bytes: Size = 64 * 2**20
    """text of all streams together that their clients have not fetched; the stream that makes it more is ended"""
    max_stored_bytes: SizeOrZero = 64 * 2**20
    """responses of /v1/responses that are kept in memory to go on from, 1,000 for at most a day; 0 keeps none"""
    body_timeout_s: Seconds = 60.0
    """a request body that takes longer to come is answered with 408"""
    max_connections: Count = 1000
    """at once, fewer where the process may not open as many files; one more takes the place of an idle one, or is
    answered with 503"""
    max_prompt_tokens: Count | None = None
    """a longer prompt is refused, even where the context would hold it"""
    api_keys_env: Variable | None = None
    """environment variable that holds the keys for asking, separated by commas; COE_API_KEYS without it"""
    api_keys_file: Text | None = None
    """a file of keys for asking, one a line; relative to this file"""
    admin_keys_env: Variable | None = None
    """one for keys that may also unload models and begin builds; COE_ADMIN_KEYS without it"""
    admin_keys_file: Text | None = None
    """a file of such keys, one a line; relative to this file"""
    insecure: Switch = False
    """listen on more than this machine's loopback without keys: any machine that reaches it may use the server"""
    allowed_hosts: Texts = ()
    """names by which clients call the server, beside localhost, this machine's name and all IP addresses, such as
    "coe.example.org"; ".example.org" is every name below it, "*" any name, for a proxy that checks names itself"""
    cors_origins: Texts = ()
    """origins whose web pages may call the server, such as "https://chat.example.org\""""


class PoolSection(Section):
    """How much memory the residents may take, and how long a model stays loaded."""

    vram_budget: Budget = "auto"
    """bytes that all residents may take; auto: the device's free memory less the margin"""
    host_budget: Budget = "auto"
    """host memory that they may take beside a GPU; auto: what is available at the start less vram_margin"""
    vram_margin: SizeOrZero = 2**30
    """what auto leaves to others"""
    residents: Count = 1
    """models that are to be in memory at once: what `experts: fit` leaves room for"""
    devices: Cards = "auto"
    """cards that models are loaded on, such as [CUDA0, CUDA1], each model on one of them; auto: all that are there"""
    idle_ttl_s: Seconds | None = PoolLimits.idle_ttl_s
    """a model without requests for so long is unloaded; without it models stay until their room is needed"""
    max_bypass_s: SecondsOrZero = PoolLimits.max_bypass_s
    """requests for what is loaded may overtake a waiting load for at most this long"""
    load_backoff_s: SecondsOrZero = PoolLimits.load_backoff_s
    """after a failed load, the next try waits this long"""
    load_timeout_s: Seconds = PoolLimits.load_timeout_s
    """a load that takes longer has failed"""
    stall_s: Seconds = PoolLimits.stall_s
    """a worker without a sign of life, or progress in its work, for so long is killed and replaced; 3 at least"""
    quiet_s: Seconds = PoolLimits.quiet_s
    """no request for so long: idle time, in which builds begin"""
    preload: Names = ()
    """names of specialists to load at the start"""
    ram_budget: BudgetOrZero = "auto"
    """host memory of each resident that specialists share, for conversations out of the cache's way;
    auto: 2 GiB beside a GPU, else an eighth of vram_budget at most"""
    swap_share: Annotated[float, Strict(), Field(gt=0, le=0.9)] = Sharing.swap_share
    """the part of the time that may go into changing from one specialist to the next while several work"""
    max_slice_wait_s: Seconds | None = Sharing.max_wait_s
    """no request waits longer for its time slice than this, even where changing takes a larger part then"""
    most_shared: CountOrZero = PoolLimits.most_shared
    """residents that specialists of one shape may have; 0: as many as there is room for"""
    check_swaps: Switch = Sharing.check
    """compare every byte that was moved with its file after each change"""


class RouterSection(Section):
    """When the supervisor trusts its choice, and what it reads text with."""

    aliases: AliasesOrPrefixes = ()
    """further names for `auto`, such as claude-* for clients that ask for models of others by themselves"""
    threshold: Share = SupervisorSettings.threshold
    """below this confidence (0 to 1) the fallback answers"""
    thresholds: Text | None = None
    """a file of thresholds, one for each domain, fitted on texts of yours by `coe fit-thresholds`"""
    margin: Share = SupervisorSettings.margin
    """specialists closer than this to the likeliest are a tie: the sooner answer wins it"""
    residency_weight: Share = SupervisorSettings.residency_weight
    """what a second of waiting (load or swap, and reading the prompt) is worth in such a tie, as a
    probability; 0: ties go to the likeliest, then to the first in the roster"""
    prompt_tokens_per_s: Count | Literal["auto"] = "auto"
    """how fast prompts are read: to move a long conversation costs that time; auto: as measured"""
    hysteresis: Share = SupervisorSettings.hysteresis
    """a conversation changes its specialist only for one that is better by this much"""
    encoder: Text = "auto"
    """what turns text into vectors: auto (the packaged MiniLM), a folder, or none (word features only)"""
    encoder_aliases: Aliases = ()
    """further names by which clients ask the encoder for embeddings, such as text-embedding-3-small"""
    head: Text | None = None
    """a head fitted by `coe train-router -o`, in place of the shipped one"""
    client_tasks: dict[Text, Texts] = {}
    """what chat clients ask on their own account (titles, tags), beside what is known: regular expressions, looked for
    in the first 400 characters, by a name; whichever specialist is warm does these"""
    client_task_tokens: dict[Text, CountOrZero] = {}
    """the longest answers to these, thinking aside, by name, where a request does not want less: in place of title,
    topic 128; emoji 32; tags, commit message, autocompletion 256; follow-ups, search queries, image prompt,
    next speaker 512; tool choice, prompt rewriting 2048; summary 8192; memory none; 0: no bound"""

    @field_validator("client_tasks")
    @classmethod
    def _check_patterns(cls, patterns: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        ClientTasks(patterns)
        return patterns

    @field_validator("client_task_tokens")
    @classmethod
    def _check_tasks(cls, tokens: dict[str, int], about: ValidationInfo) -> dict[str, int]:
        known = [*ANSWER_TOKENS, *about.data.get("client_tasks", {})]
        for name in tokens:
            if name not in known:
                raise InvalidError(f"{name!r} is no client task.", f"Write one of: {', '.join(dict.fromkeys(known))}.")
        return tokens


class SamplingSection(Section):
    """How the next token is drawn where a request does not say; the fields of `engine.spec.Sampling`."""

    temperature: Annotated[float, Strict(), Field(ge=0, le=2)] = Sampling.temperature
    """the CoE cards' value. From 0.8 a warning; from 1.0 refused unless on_excess is allow"""
    top_k: CountOrZero = Sampling.top_k
    """only the so many most probable tokens; 0: all"""
    top_p: Annotated[float, Strict(), Field(gt=0, le=1)] = Sampling.top_p
    """only the most probable tokens that together have this share; 1: all"""
    min_p: Share = Sampling.min_p
    """only tokens at least this fraction as probable as the first; 0: all"""
    repeat_penalty: Annotated[float, Strict(), Field(ge=0.1, le=2)] = Sampling.repeat_penalty
    """the CoE cards' value; 1: none"""
    presence_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] = Sampling.presence_penalty
    """subtracted once from a token that was used; 0: none"""
    frequency_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] = Sampling.frequency_penalty
    """subtracted for each use of a token; 0: none"""
    repeat_last_n: CountOrZero = Sampling.repeat_last_n
    """how many tokens back the three penalties look"""


class SamplingBounds(Section):
    """What a request may ask for, and what happens to one that asks for more."""

    max_temperature: Annotated[float, Strict(), Field(ge=0, le=2)] = 0.99
    """pruned models loop from 1.0 up"""
    max_patience: LoopGuardSwitch = False
    """the most patient loop guard: strict, normal, patient, or false: none, so that a request may switch it off"""
    on_excess: Literal["clamp", "refuse", "allow"] = "clamp"
    """what becomes of a request that asks for more: clamp (and say so), refuse (400), or allow"""


class ThinkingSection(Section):
    """What becomes of the thinking block. A roster writes `off`, `on`, `{budget: 8192}` or `{prefill: ...}`."""

    short_forms = ({"enum": ["off", "on", False, True]},)

    mode: Annotated[Literal["off", "on", "budget"], WithJsonSchema({"enum": ["off", "on", "budget", False, True]})] = (
        "off"
    )
    """off: answers start with the model's closed thinking block"""
    budget: Count | None = None
    """tokens of thinking after which it is made to stop"""
    prefill: str | None = None
    """text in place of the closed block of the model's own chat template"""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, ThinkingSection):
            return value
        if isinstance(value, (bool, str)):
            value = {"mode": value}
        if not isinstance(value, dict):
            raise InvalidError(f"{value!r} is no thinking policy.", "Write off, on or {budget: 8192}.")
        if isinstance(value.get("mode"), bool):  # YAML 1.1 reads off and on as booleans
            value = {**value, "mode": "on" if value["mode"] else "off"}
        if value.get("budget") is not None and "mode" not in value:
            value = {**value, "mode": "budget"}
        return value

    @model_validator(mode="after")
    def _agrees(self) -> ThinkingSection:
        if (self.mode == "budget") != (self.budget is not None):
            raise InvalidError("`budget` goes with the mode of that name only.", "Write {budget: 8192}.")
        if self.prefill is not None and self.mode != "off":
            raise InvalidError("`prefill` is the closed block of a specialist that does not think.", "Remove one.")
        return self


class SpecialistSettings(Section):
    """What `defaults` may say for all specialists, and each specialist for itself."""

    quant: Text | None = None
    """for people to read; the file itself says how it is stored"""
    system_prompt: Text | None = None
    """opens every conversation; a client's own system message follows it"""
    thinking: ThinkingSection = ThinkingSection()
    """off: answers start with the model's closed thinking block, and clients cannot switch it on; on; or
    {budget: 8192}: made to stop after so many tokens. {prefill: "<think></think>\\n"} is off, with this
    text in place of the block of the model's own chat template (the CoE cards' literal; seldom needed)"""
    sampling: SamplingSection = SamplingSection()
    """how the next token is drawn where a request does not say; merged with an entry's key by key"""
    sampling_bounds: SamplingBounds = SamplingBounds()
    """what a request may ask for"""
    max_tokens: Count | None = None
    """the longest answer where a request does not say; without it, what the context leaves"""
    context_tokens: Annotated[int, Strict(), Field(ge=256, le=2**22)] = LoadSpec.context_tokens
    """prompt and answer of one conversation (8192 cut long answers off and made them loop)"""
    cache_tokens: Annotated[int, Strict(), Field(ge=0, le=2**22)] = LoadSpec.cache_tokens
    """KV cells that the conversations of a resident share; 0: as many as context_tokens"""
    parallel: Annotated[int, Strict(), Field(ge=1, le=64)] = LoadSpec.parallel
    """conversations that a resident decodes together"""
    gpu_layers: Layers = LoadSpec.gpu_layers
    """layers on the GPU, or all"""
    cpu_expert_layers: ExpertLayers = LoadSpec.cpu_expert_layers
    """layers whose experts stay in host memory, counted from the first: none, all, a number, or auto: on a GPU as
    few as its budget asks for"""
    experts: Experts | None = None
    """experts that each layer of a mask keeps, by its ranking: a number, a share of all such as 0.75, or fit: the most
    that there is room for; without it as many as the mask itself"""
    tensor_split: Parts = ()
    """of several cards, each one's part of the layers, such as [3, 1]; without it a model lies on one card, or is
    shared out by the room on each where it fits on none alone"""
    kv_type: Literal["f16", "q8_0"] = "f16"
    """how the KV cache is stored; q8_0 takes half"""
    mmap: Switch = LoadSpec.mmap
    """read the file through the page cache; false copies it"""
    threads: Annotated[int, Strict(), Field(ge=0, le=512)] = LoadSpec.threads  # 512 is ggml's own limit
    """CPU threads; 0: one a physical core"""
    pin: Switch = False
    """never unload it; one that shares its resident may become another meanwhile"""
    share: ShareSwitch = "auto"
    """whether specialists of one shape share a resident and change in place: true, false, or auto: yes, except
    on the processor where all of them fit into the budget, each loaded by itself (docs/sharing.md)"""
    on_missing: Literal["refuse", "fallback", "build"] = "refuse"
    """when it is asked for and cannot be served: refuse; fallback lets the fallback answer; build lets
    it answer while the specialist is being built (needs `build:` in the entry)"""
    notice: Text | None = None
    """name of a text under notices"""
    beta: Switch = False
    """marks the model as unfinished in /v1/models"""
    licence: Text | None = None
    """for people to read"""
    loop_guard: LoopGuardSwitch = "normal"
    """end answers that repeat themselves: true, false, or how soon: strict, normal (the same as true), patient"""
    tools: Literal["auto", "native", "generic", "ignore", "refuse"] = "auto"
    """what becomes of the tools that a chat offers: native: the form of the model's own chat template; generic: a form
    of ours in the system prompt; auto: native where the template has a form that is read back, else generic;
    ignore answers without them, and says so; refuse (400)"""
    raw_prompts: Switch = False
    """read control tokens that a prompt of /v1/completions spells; else they are text, as in every message.
    Who may send them can open turns and thinking: for formats of your own"""


class ModelSource(Section):
    """Where a GGUF comes from: a file, a Hugging Face repository, or an installed package."""

    file: Text | None = None
    """in place of repo and pattern: a path, relative to models_dir"""
    repo: Repo | None = None
    """Hugging Face repository; `coe pull NAME` fetches from it"""
    package: Package | None = None
    """in place of repo: an installed Python package that carries the model, found by pattern"""
    pattern: Pattern | None = None
    """A glob without regard to case that finds one model in it; split files count as one"""

    revision: Revision | None = None
    """a commit, tag or branch of repo, in place of the newest; only a commit never changes"""
    sha256: Digests | None = None
    """of the file, or a list, of each part; hashed once, and another file is not served"""

    _roster_option: str = PrivateAttr(default="")  # the loader's: what commands have to be told to mean its roster

    def find_file(self, models_dir: Path, pull_name: str) -> Location:
        """Where the model is, or why it is not there. pull_name: what `coe pull` calls it.

        A model with `sha256` is hashed where that was not done since its files changed: seconds a GB.
        """
        found = self._find(models_dir, pull_name)
        return found if self.sha256 is None else held_to(found, self.sha256, pull_name)

    def _find(self, models_dir: Path, pull_name: str) -> Location:
        if self.package is not None:
            return locate_in_package(self.package, self.pattern or "*.gguf")
        if self.repo is not None:
            folder = repository_folder(models_dir, self.repo)
            remedy = pull_remedy([pull_name], self._roster_option)
            return locate_in_folder(folder, self.pattern or "*.gguf", remedy, pull_name)
        path = models_dir / expanded(self.file or "")
        return locate_file(path, f"Put the file there, or correct `file` of {pull_name} in the roster.")


class BuildParent(ModelSource):
    """The model that one specialist is cut from. A roster may write a file's path alone."""

    short_forms = ({"type": "string", "pattern": r"\S"},)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class RecipeSection(Section):
    """How experts are chosen: a recipe or a preset, and what differs from its own settings; None leaves those.

    A roster may write the name alone.
    """

    short_forms = ({"enum": [*RECIPES]},)

    name: Annotated[str, one_of(RECIPES), WithJsonSchema({"enum": [*RECIPES]})] = Recipe.name
    """three-pass, drop-map, top-k, or a published recipe"""
    criterion: Literal["gate-mass", "frequency", "rank-weighted", "reap", "mass-norm", "random"] | None = None
    """what experts are scored by; gate-mass, and for drop-map its own score, when left out"""
    pin_super_experts: Switch = False
    """keep experts of extreme output, whatever their score"""
    whitelist_rank: Factor | None = None
    """of three-pass: mean rank below which an expert is confident, of eight ranks"""
    whitelist_activations: Count | None = None
    """of three-pass: choices that the whitelist takes at least"""
    cap: CountOrZero | None = None
    """of three-pass: most exchanges a layer of the third pass"""
    weights: dict[str, Factor] | None = None
    """of drop-map and the presets: class -> weight"""
    alpha: Factor | None = None
    """of drop-map and the presets: what a norm counts beside a token"""
    breadth: Factor | None = None
    """of drop-map and the presets: what the mean over the classes adds to the best of them"""
    protect_top: CountOrZero | None = None
    """of drop-map and the presets: so many of the highest aggregate a layer are never dropped"""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def value(self) -> Recipe:
        """The recipe as surgery takes it; the loader's rules have seen to it that its settings are its own."""
        return Recipe.from_settings(self.model_dump(exclude_none=True))


class BoundSection(Section):
    """How much accuracy a built specialist may lose beside its parent. A roster may write the standard errors alone."""

    short_forms = ({"type": "number", "minimum": 0},)

    standard_errors: Factor = Bound.standard_errors
    """of the paired difference"""
    loss: Share | None = Bound.loss
    """a share of right answers, in place of standard_errors"""
    min_questions: Count = Bound.min_questions
    """with fewer the specialist is kept aside"""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"standard_errors": value} if isinstance(value, (int, float)) else value

    @property
    def value(self) -> Bound:
        """The bound as surgery takes it."""
        return Bound(**self.model_dump())


class BuildSection(Section):
    """How a specialist is made that has no file yet. Paths are relative to the roster's folder."""

    parent: BuildParent | None = None
    """another than the `parent` above: a file, or {repo: ..., pattern: ...}"""
    corpus: Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(sequence)]
    """what the parent's router is watched over: text, or lines of {text}, {question,
    answer} or {messages}; CLASS=FILE names a class"""
    experts: Count
    """experts that each layer keeps"""
    recipe: RecipeSection = RecipeSection()
    """three-pass, top-k, drop-map, v6, v7, v7-coderx; or its settings: {name: three-pass, cap: 6},
    {name: drop-map, weights: {math: 2, code: 3}}, {name: top-k, criterion: reap}"""
    reasoning: Texts = ()
    """domain-neutral reasoning traces, for the third of the three passes"""
    answer: Switch = BuildOrder.answer
    """true: the corpus holds questions, and the parent writes the answers"""
    questions: Texts = ()
    """JSON lines to judge it by, beside every tenth question of the corpus"""
    bound: BoundSection = BoundSection()
    """it is released if it loses no more than so many standard errors beside its parent; {loss: 0.02} for two
    points at most, {min_questions: 100} for more than the 30 that a judgement takes"""
    max_tokens: Count = BuildOrder.max_tokens
    """the longest answer of the parent, or to a question it is judged by"""
    quantize: Text | None = None
    """bring it to another file type"""
    shared_scale: Annotated[float, Strict(), Field(gt=0)] | None = None
    """multiply what the shared expert adds, as the 98-expert recipes do"""
    when: Literal["idle", "now"] = "idle"
    """while serving: in idle time, making way for requests; or now: takes idle models' room and keeps it"""


class ParentEntry(ModelSource):
    """The model that specialists are cut from."""

    model: Text
    """its Hugging Face name"""
    quant: Text | None = None
    """for people to read"""
    licence: Text | None = None
    """for people to read"""

    def location(self, models_dir: Path) -> Location:
        """Where the parent is, or why it is not there and what to do."""
        return self.find_file(models_dir, "parent")

    def locate(self, models_dir: Path) -> Path | None:
        """The parent's file, or None."""
        return self.location(models_dir).path


class MaskOfSection(Section):
    """A published specialist that is served as a mask of the roster's parent."""

    repo: Repo
    """its Hugging Face repository, of which `coe pull --masks` fetches what tells the mask: some MiB of many GiB"""
    pattern: Pattern
    """a glob without regard to case that finds one model in it"""
    revision: Revision | None = None
    """a commit, tag or branch of it, in place of the newest"""

    def path(self, models_dir: Path) -> Path:
        """Where its mask is kept."""
        return published_mask_path(models_dir, self.repo, self.pattern, self.revision)


class Specialist(SpecialistSettings, ModelSource):
    """One entry of the roster, with what it inherits from `defaults` filled in."""

    name: Name
    """what clients ask for: lowercase letters, digits, - _ . (auto asks the supervisor)"""
    aliases: AliasesOrPrefixes = ()
    """further names for clients; one that ends in * stands for all names that begin so"""
    description: Text | None = None
    """for people to read"""
    domains: Texts = ()
    """what the supervisor sends here: math physics chemistry engineering biology economics business
    psychology computer_science law medicine coding python general"""
    examples: Texts = ()
    """texts such as users send, at least ten; the supervisor learns from them where domains do not say enough"""
    embeddings: Switch = False
    """true: a model made for embeddings, which answers /v1/embeddings and /v1/rerank, and no chats. It reads texts of
    up to context_tokens, and needs memory for as many at once; how vectors are pooled is the file's"""
    dimensions: Sizes = ()
    """shorter vectors that requests may ask for, of a model whose first numbers were trained to be vectors themselves
    (Matryoshka); its own length need not be listed"""
    mask: Text | None = None
    """in place of a file: a mask of `parent`, as `coe plan` writes it, or another tool's drop map, list or matrix
    (.json or .npy; `coe mask` converts one that could be read two ways); relative to this file. The server cuts it
    out into models_dir when it starts"""
    mask_of: MaskOfSection | None = None
    """in place of a file: a published specialist, served as a mask of `parent`. Beside that its router's
    rows tell which experts it keeps; `coe pull --masks` reads them off and writes the mask into models_dir"""
    build: BuildSection | None = None
    """in place of file, repo or package: how `coe build NAME` makes it. Paths are relative to this file"""

    def location(self, models_dir: Path) -> Location:
        """Where the model is, or why it is not there and what to do."""
        if self.build is not None:
            path = self.built_path(models_dir)
            if not os.path.isfile(path):
                return Location(None, reason="It has not been built yet.", remedy=f"Run: {self.build_command}")
            return Location(path, (path,))
        if self.mask is not None:
            return locate_cut(models_dir, self.name, Path(self.mask), self.experts)
        return self.find_file(models_dir, self.name)

    @property
    def awaits_mask(self) -> bool:
        """Whether it is to be a mask of a published specialist, and that is not there. Looks at the disk."""
        return self.mask_of is not None and self.mask is not None and not os.path.isfile(self.mask)

    @property
    def build_command(self) -> str:
        """What builds it."""
        return f"coe build {self.name}{self._roster_option}"

    def built_path(self, models_dir: Path) -> Path:
        """Where a build of it is released to."""
        return models_dir / BUILT / f"{self.name}.gguf"

    def locate(self, models_dir: Path) -> Path | None:
        """The file to load (of a split model the first part), or None; `location` says why."""
        return self.location(models_dir).path

    def load_spec(self, path: Path, sharing: Sharing | None = None, ram_budget_bytes: int = 0) -> LoadSpec:
        """How the engine loads this specialist's file. Specialists with equal specs share a resident.

        With `cpu_expert_layers: auto` all experts are on the GPU, as if there were room: see runtime/fitting.py.
        """
        return LoadSpec(
            path=path,
            sharing=sharing,
            ram_budget_bytes=ram_budget_bytes,
            context_tokens=self.context_tokens,
            cache_tokens=self.cache_tokens,
            parallel=self.parallel,
            gpu_layers=self.gpu_layers,
            cpu_expert_layers=0 if self.cpu_expert_layers == "auto" else self.cpu_expert_layers,
            kv_type=self.kv_type,
            mmap=self.mmap,
            threads=self.threads,
            embeddings=self.embeddings,
            tensor_split=self.tensor_split,
        )

    def thinking_policy(self) -> Thinking:
        """What the engine does with the thinking block."""
        return Thinking(ThinkingMode(self.thinking.mode), self.thinking.budget, self.thinking.prefill)

    def patience(self) -> Patience | None:
        """How patient the loop guard is where a request says nothing; None: there is none."""
        return Patience(self.loop_guard) if self.loop_guard else None

    def default_sampling(self) -> Sampling:
        """How tokens are drawn where a request says nothing."""
        return Sampling(**{field.name: getattr(self.sampling, field.name) for field in fields(Sampling)})


class Roster(Section):
    """A whole roster. `path` and `warnings` are the loader's; all else is what the file says."""

    version: Literal[1] = 1
    """version of this format"""
    models_dir: Text = "models"
    """where models are kept; relative to this file. A repository owner/name lies in owner--name below it"""
    server: ServerSection = ServerSection()
    """where the server listens, which clients it lets in, how much it takes from them"""
    pool: PoolSection = PoolSection()
    """which models are in memory"""
    router: RouterSection = RouterSection()
    """the supervisor, for requests with the model `auto`"""
    defaults: SpecialistSettings = SpecialistSettings()
    """what entries inherit unless they say otherwise; every key of this block may stand in an entry as well"""
    parent: ParentEntry | None = None
    """the model that specialists are cut from"""
    fallback: Name | None = None
    """answers what no specialist is sure of; null: none is named"""
    fallback_warm: Switch = True
    """until the named one can be served, whichever specialist is warm answers"""
    notices: dict[str, Text] = Field(default_factory=dict)
    """texts for users, by a name that entries refer to; shown in /v1/models"""
    specialists: Annotated[tuple[Specialist, ...], BeforeValidator(sequence)]
    """of those that name a domain, those further up are preferred"""

    _path: Path = PrivateAttr(default=Path("specialists.yaml"))
    _warnings: tuple[Problem, ...] = PrivateAttr(default=())

    @property
    def path(self) -> Path:
        """The file this was read from; relative paths in it begin at its folder."""
        return self._path

    @property
    def option(self) -> str:
        """What commands that fetch or build have to be told beside a name to mean this roster."""
        return roster_option(self.path)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is allowed but doubtful, in the order of its lines."""
        return self._warnings

    @property
    def models_path(self) -> Path:
        """The models folder as an absolute path."""
        return self.resolve(self.models_dir)

    @property
    def names(self) -> tuple[str, ...]:
        """The specialists' names, in the roster's order."""
        return tuple(specialist.name for specialist in self.specialists)

    def parent_of(self, specialist: Specialist) -> BuildParent | ParentEntry | None:
        """The model that a specialist is cut from: that of its own `build`, or the roster's."""
        own = specialist.build.parent if specialist.build is not None else None
        return own or self.parent

    def resolve(self, written: str) -> Path:
        """A path as the roster writes it, made absolute: relative ones begin at the roster's folder."""
        return (self.path.absolute().parent / expanded(written)).absolute()

    def find(self, name_or_alias: str) -> Specialist | None:
        """The specialist of that name or alias; None for no such. `auto` is none: the supervisor decides."""
        name = self.called(name_or_alias)
        return next((specialist for specialist in self.specialists if specialist.name == name), None)

    def called(self, name_or_alias: str) -> str | None:
        """The specialist's name that a client means by a name, or `auto`; None for neither.

        A name as it stands comes first, then one with `:latest` behind it or in capitals, then an alias that ends in *,
        of two of these the longer.
        """
        wanted = untagged(name_or_alias)
        if wanted == AUTO:
            return AUTO
        calling = [(alias, AUTO) for alias in self.router.aliases]
        calling += [(alias, one.name) for one in self.specialists for alias in (one.name, *one.aliases)]
        alike = [name for alias, name in calling if alias == name_or_alias]
        alike += [name for alias, name in calling if untagged(alias) == wanted]
        prefixes = [(alias[:-1].casefold(), name) for alias, name in calling if alias.endswith("*")]
        begun = [(len(prefix), name) for prefix, name in prefixes if wanted.startswith(prefix)]
        return next(iter(alike), None) or max(begun, default=(0, None))[1]

    def with_experts(self, counts: Mapping[str, int | None]) -> Roster:
        """The roster with these counts in the place of `experts: fit`, by the specialists' names."""
        entries = (
            one.model_copy(update={"experts": counts[one.name]}) if one.name in counts else one
            for one in self.specialists
        )
        return self.model_copy(update={"specialists": tuple(entries)})

    def locate(self, specialist: Specialist) -> Location:
        """Where a specialist's model is, or why it is not there and what to do."""
        if specialist.awaits_mask:
            parent = self.parent.location(self.models_path) if self.parent is not None else None
            return mask_absent(parent if parent is not None and parent.path is None else None, self.option)
        return specialist.location(self.models_path)

    def notice_of(self, specialist: Specialist) -> str | None:
        """The text of the notice that a specialist's users are to see, or None."""
        return self.notices.get(specialist.notice) if specialist.notice is not None else None

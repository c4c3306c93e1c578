"""What a roster says, as frozen values. `specialists.yaml` at the top of the project explains every key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    model_validator,
)

from coe.engine.spec import LoadSpec, Sampling, Sharing, Thinking, ThinkingMode
from coe.surgery.build.job import BUILT

from .model_files import Location, locate_cut, locate_file, locate_in_folder, locate_in_package, repository_folder
from .source import Problem

AUTO = "auto"  # the model name that asks the supervisor

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_MOST_BYTES = 2**60
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9][A-Za-z0-9_-]*)*")
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class InvalidError(ValueError):
    """A value that a key does not take, with what to write instead."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def expanded(written: str) -> Path:
    """A path with `~` and `~somebody` resolved; as it stands where there is no such user."""
    try:
        return Path(written).expanduser()
    except RuntimeError:
        return Path(written)


def parse_size(value: object) -> int:
    """Bytes of `15 GiB`, `900 MB` or a plain number of bytes. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _UNITS:
        raise InvalidError(f"{value!r} is not a size.", "Write `15 GiB`, `900 MB` or a number of bytes.")
    size = float(found[1]) * _UNITS[found[2].lower()]
    if size > _MOST_BYTES:
        raise InvalidError(f"{value!r} is more than any machine has.", "Write `15 GiB`, `900 MB` or a number of bytes.")
    return int(size)


def _budget(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    size = parse_size(value)
    if size == 0:
        raise InvalidError("A budget of nothing holds no model.", "Write `auto` or a size such as `15 GiB`.")
    return size


def _share(value: object) -> object:
    if value != "auto" and not isinstance(value, bool):
        raise InvalidError(f"{value!r} is not known here.", "Write auto, true or false.")
    return value


def _layers(word: Mapping[str, int]) -> Any:
    def layers(value: object) -> object:
        if isinstance(value, str):
            if value not in word:
                raise InvalidError(f"{value!r} is no number of layers.", f"Write a number or {' or '.join(word)}.")
            return word[value]
        if value == -1:
            raise InvalidError("A number of layers is not negative.", "Write `all` for all of them.")
        return value

    return BeforeValidator(layers)


def _matches(pattern: re.Pattern[str], message: str, remedy: str) -> Any:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise InvalidError(f"{value!r} {message}", remedy)
        return value

    return AfterValidator(check)


def _not_auto(value: str) -> str:
    if value == AUTO:
        raise InvalidError("`auto` is the name that asks the supervisor.", "Choose another.")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise InvalidError("The text is empty.", "Write something, or remove the key.")
    return value


def _inside(value: str) -> str:
    """A glob inside a folder must not lead out of it."""
    if value.startswith(("/", "~")) or ".." in value.split("/"):
        raise InvalidError(f"{value!r} leads out of the folder.", 'Write a pattern such as "*Q4_K_M*.gguf".')
    return value


def _sequence(value: object) -> object:
    if isinstance(value, str):
        raise InvalidError("A list is wanted, this is one text.", f"Write `[{value}]`.")
    return value


Text = Annotated[str, AfterValidator(_not_blank)]
Switch = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
CountOrNone = Annotated[int, Strict(), Field(ge=0)]
Seconds = Annotated[float, Strict(), Field(gt=0)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
Margin = Annotated[int, BeforeValidator(parse_size)]
Budget = Annotated[int | Literal["auto"], BeforeValidator(_budget)]
Name = Annotated[
    str,
    _matches(_NAME, "is not a name.", "Use lowercase letters, digits, `-`, `_` and `.`, a letter or digit first."),
    AfterValidator(_not_auto),
]
Alias = Annotated[
    str,
    _matches(_ALIAS, "is not an alias.", "Use letters, digits and `-_.:/`, without spaces."),
    AfterValidator(_not_auto),
]
Repo = Annotated[str, _matches(_REPO, "is not a Hugging Face repository.", "Write it as owner/name.")]
Package = Annotated[str, _matches(_PACKAGE, "is not a package.", "Write the name that pip installs.")]
Pattern = Annotated[str, AfterValidator(_not_blank), AfterValidator(_inside)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_sequence)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_sequence)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerSettings(Section):
    """Where the server listens, whom it lets in, and what it bears."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Strict(), Field(ge=0, le=65535)] = 8000
    first_byte_s: Seconds = 10.0
    max_wait_s: Seconds = 120.0
    max_queue: Count = 64
    max_body_bytes: Size = 8 * 2**20
    max_prompt_tokens: Count | None = None
    api_keys_env: (
        Annotated[str, _matches(_ENVIRONMENT, "is not a variable's name.", "Write a name such as COE_API_KEYS.")] | None
    ) = None
    api_keys_file: Text | None = None
    cors_origins: Texts = ()


class PoolSettings(Section):
    """How much memory the residents may take, and how long a model stays."""

    vram_budget: Budget = "auto"
    vram_margin: Margin = 2**30
    idle_ttl_s: Seconds | None = None
    max_bypass_s: Annotated[float, Strict(), Field(ge=0)] = 10.0
    load_backoff_s: Annotated[float, Strict(), Field(ge=0)] = 30.0
    load_timeout_s: Seconds = 600.0
    stall_s: Seconds = 60.0
    quiet_s: Seconds = 60.0
    preload: Names = ()
    ram_budget: Literal["auto"] | Margin = "auto"
    swap_share: Annotated[float, Strict(), Field(gt=0, le=0.9)] = 0.1
    max_turn_wait_s: Seconds | None = None
    most_shared: CountOrNone = 0
    check_swaps: Switch = False


class RouterSettings(Section):
    """When the supervisor trusts its choice, and what it reads text with."""

    threshold: Share = 0.6
    thresholds: Text | None = None  # a file that `coe fit-thresholds` wrote
    margin: Share = 0.05
    residency_weight: Share = 0.01
    prompt_tokens_per_s: Count | Literal["auto"] = "auto"
    hysteresis: Share = 0.25
    encoder: Text = "auto"
    head: Text | None = None  # what `coe train-router -o` wrote; the shipped one when left out


class SamplingSettings(Section):
    """How the next token is drawn where a request does not say; the fields of `engine.spec.Sampling`."""

    temperature: Annotated[float, Strict(), Field(ge=0, le=2)] = 0.6
    top_k: CountOrNone = 40
    top_p: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.95
    min_p: Share = 0.05
    repeat_penalty: Annotated[float, Strict(), Field(ge=0.1, le=2)] = 1.05
    presence_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] = 0.0
    repeat_last_n: CountOrNone = 64


class SamplingBounds(Section):
    """What a request may ask for, and what happens to one that asks for more."""

    max_temperature: Annotated[float, Strict(), Field(ge=0, le=2)] = 0.99
    on_excess: Literal["clamp", "refuse", "allow"] = "clamp"


class ThinkingSetting(Section):
    """What becomes of the thinking block. A roster writes `off`, `on`, `{budget: 8192}` or `{prefill: ...}`."""

    mode: Literal["off", "on", "budget"] = "off"
    budget: Count | None = None  # tokens
    prefill: Annotated[str, Field()] | None = None  # replaces the family's closed block

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, ThinkingSetting):
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
    def _agrees(self) -> ThinkingSetting:
        if (self.mode == "budget") != (self.budget is not None):
            raise InvalidError("`budget` goes with the mode of that name only.", "Write {budget: 8192}.")
        if self.prefill is not None and self.mode != "off":
            raise InvalidError("`prefill` is the closed block of a specialist that does not think.", "Remove one.")
        return self


class Settings(Section):
    """What `defaults` may say for all specialists, and each specialist for itself."""

    quant: Text | None = None
    system_prompt: Text | None = None
    thinking: ThinkingSetting = ThinkingSetting()
    sampling: SamplingSettings = SamplingSettings()
    sampling_bounds: SamplingBounds = SamplingBounds()
    max_tokens: Count | None = None
    context_tokens: Annotated[int, Strict(), Field(ge=256, le=2**22)] = 16384
    cache_tokens: Annotated[int, Strict(), Field(ge=0, le=2**22)] = 0
    parallel: Annotated[int, Strict(), Field(ge=1, le=64)] = 4
    gpu_layers: Annotated[int, Strict(), _layers({"all": -1})] = -1
    cpu_expert_layers: Annotated[int, Strict(), _layers({"none": 0, "all": -1})] = 0
    kv_type: Literal["f16", "q8_0"] = "f16"
    mmap: Switch = True
    threads: Annotated[int, Strict(), Field(ge=0, le=512)] = 0  # ggml's own limit
    pin: Switch = False
    share: Annotated[Literal["auto"] | bool, BeforeValidator(_share)] = "auto"
    on_missing: Literal["refuse", "fallback", "build"] = "refuse"
    notice: Text | None = None
    beta: Switch = False
    licence: Text | None = None
    loop_guard: Switch = True


class ModelSource(Section):
    """Where a GGUF comes from: a file, a Hugging Face repository, or an installed package."""

    file: Text | None = None
    repo: Repo | None = None
    package: Package | None = None
    pattern: Pattern | None = None

    def find_file(self, models_dir: Path, pull_name: str) -> Location:
        """Where the model is, or why it is not there. pull_name: what `coe pull` calls it."""
        remedy = f"Run: coe pull {pull_name}"
        if self.package is not None:
            return locate_in_package(self.package, self.pattern or "*.gguf")
        if self.repo is not None:
            folder = repository_folder(models_dir, self.repo)
            return locate_in_folder(folder, self.pattern or "*.gguf", remedy)
        path = models_dir / expanded(self.file or "")
        return locate_file(path, f"Put the file there, or correct `file` of {pull_name} in the roster.")


class BuildParent(ModelSource):
    """The model that one specialist is cut from. A roster may write a file's path alone."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class Recipe(Section):
    """How experts are chosen: a recipe or a preset, and what differs from its own settings; None leaves those.

    A roster may write the name alone.
    """

    name: Literal["three-pass", "drop-map", "top-k", "v6", "v7", "v7-coderx"] = "three-pass"
    criterion: Literal["gate-mass", "frequency", "rank-weighted", "reap", "mass-norm", "random"] | None = None
    pin_super_experts: Switch = False
    # of three-pass
    whitelist_rank: Annotated[float, Strict(), Field(ge=0)] | None = None
    whitelist_activations: Count | None = None
    cap: CountOrNone | None = None
    # of drop-map and the presets
    weights: dict[str, Annotated[float, Strict(), Field(ge=0)]] | None = None
    alpha: Annotated[float, Strict(), Field(ge=0)] | None = None
    breadth: Annotated[float, Strict(), Field(ge=0)] | None = None
    protect_top: CountOrNone | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class GateBound(Section):
    """How much a built specialist may lose beside its parent. A roster may write the standard errors alone.

    standard_errors: of the paired difference. loss: a share of right answers, instead of that.
    """

    standard_errors: Annotated[float, Strict(), Field(ge=0)] = 1.0
    loss: Share | None = None
    min_questions: Count = 30

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"standard_errors": value} if isinstance(value, (int, float)) else value


class Build(Section):
    """How a specialist is made that has no file yet. Paths are relative to the roster's folder."""

    parent: BuildParent | None = None  # the roster's own where left out
    corpus: Annotated[tuple[Text, ...], BeforeValidator(_sequence), Field(min_length=1)]
    experts: Count
    recipe: Recipe = Recipe()
    reasoning: Texts = ()
    answer: Switch = False
    questions: Texts = ()
    bound: GateBound = GateBound()
    max_tokens: Count = 2048
    quantize: Text | None = None
    shared_scale: Annotated[float, Strict(), Field(gt=0)] | None = None
    when: Literal["idle", "now"] = "idle"


class Parent(ModelSource):
    """The model that specialists are cut from."""

    model: Text
    quant: Text | None = None
    licence: Text | None = None

    def location(self, models_dir: Path) -> Location:
        """Where the parent is, or why it is not there and what to do."""
        return self.find_file(models_dir, "parent")

    def locate(self, models_dir: Path) -> Path | None:
        """The parent's file, or None."""
        return self.location(models_dir).path


class Specialist(Settings, ModelSource):
    """One entry of the roster, with what it inherits from `defaults` filled in."""

    name: Name
    aliases: Annotated[tuple[Alias, ...], BeforeValidator(_sequence)] = ()
    description: Text | None = None
    domains: Texts = ()
    examples: Texts = ()
    mask: Text | None = None  # a mask's file, in any format of `coe.surgery.formats`: the roster's parent is cut by it
    build: Build | None = None

    def location(self, models_dir: Path) -> Location:
        """Where the model is, or why it is not there and what to do."""
        if self.build is not None:
            path = self.built_path(models_dir)
            if not os.path.isfile(path):
                return Location(None, reason="It has not been built yet.", remedy=f"Run: coe build {self.name}")
            return Location(path, (path,))
        if self.mask is not None:
            return locate_cut(models_dir, self.name, Path(self.mask))
        return self.find_file(models_dir, self.name)

    def built_path(self, models_dir: Path) -> Path:
        """Where a build of it is released to."""
        return models_dir / BUILT / f"{self.name}.gguf"

    def locate(self, models_dir: Path) -> Path | None:
        """The file to load (of a split model the first part), or None; `location` says why."""
        return self.location(models_dir).path

    def load_spec(self, path: Path, sharing: Sharing | None = None, ram_budget_bytes: int = 0) -> LoadSpec:
        """How the engine loads this specialist's file. Specialists with equal specs share a resident."""
        return LoadSpec(
            path=path,
            sharing=sharing,
            ram_budget_bytes=ram_budget_bytes,
            context_tokens=self.context_tokens,
            cache_tokens=self.cache_tokens,
            parallel=self.parallel,
            gpu_layers=self.gpu_layers,
            cpu_expert_layers=self.cpu_expert_layers,
            kv_type=self.kv_type,
            mmap=self.mmap,
            threads=self.threads,
        )

    def thinking_policy(self) -> Thinking:
        """What the engine does with the thinking block."""
        return Thinking(ThinkingMode(self.thinking.mode), self.thinking.budget, self.thinking.prefill)

    def default_sampling(self) -> Sampling:
        """How tokens are drawn where a request says nothing."""
        return Sampling(**{field.name: getattr(self.sampling, field.name) for field in fields(Sampling)})


class Roster(Section):
    """A whole roster. `path` and `warnings` are the loader's; all else is what the file says."""

    version: Literal[1] = 1
    models_dir: Text = "models"
    server: ServerSettings = ServerSettings()
    pool: PoolSettings = PoolSettings()
    router: RouterSettings = RouterSettings()
    defaults: Settings = Settings()
    parent: Parent | None = None
    fallback: Name | None = None
    fallback_warm: Switch = True
    notices: dict[str, Text] = Field(default_factory=dict)
    specialists: Annotated[tuple[Specialist, ...], BeforeValidator(_sequence)]

    _path: Path = PrivateAttr(default=Path("specialists.yaml"))
    _warnings: tuple[Problem, ...] = PrivateAttr(default=())

    @property
    def path(self) -> Path:
        """The file this was read from; relative paths in it begin at its folder."""
        return self._path

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

    def parent_of(self, specialist: Specialist) -> BuildParent | Parent | None:
        """The model that a specialist is cut from: that of its own `build`, or the roster's."""
        own = specialist.build.parent if specialist.build is not None else None
        return own or self.parent

    def resolve(self, written: str) -> Path:
        """A path as the roster writes it, made absolute: relative ones begin at the roster's folder."""
        return (self.path.absolute().parent / expanded(written)).absolute()

    def find(self, name_or_alias: str) -> Specialist | None:
        """The specialist of that name or alias, or None. `auto` is none: the supervisor decides."""
        for specialist in self.specialists:
            if name_or_alias == specialist.name or name_or_alias in specialist.aliases:
                return specialist
        return None

    def locate(self, specialist: Specialist) -> Location:
        """Where a specialist's model is, or why it is not there and what to do."""
        return specialist.location(self.models_path)

    def notice_of(self, specialist: Specialist) -> str | None:
        """The text of the notice that a specialist's users are to see, or None."""
        return self.notices.get(specialist.notice) if specialist.notice is not None else None

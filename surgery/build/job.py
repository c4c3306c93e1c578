"""A build's folder (job directory): its order, its progress, the records of its finished steps, and its lock.

Every file of it is written beside and renamed, so that a kill leaves the old content or the new. A build that a process
works on is known by an advisory lock of the kernel (flock), which no dead process keeps.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from coe.engine.files import make_private, private_folder, written_beside
from coe.engine.spec import LoadSpec

from ..errors import BuildError, SurgeryError
from ..judge.values import USUAL_BOUND, Bound
from ..plan.recipes import Recipe

BUILDS: Final = "builds"  # below the models folder: a folder a build
BUILT: Final = "built"  # below the models folder: what was released
_RETRY_S: Final = (0.01, 0.05, 0.2)  # a look at a lock holds it for some microseconds: taking it is tried again
MOST_BEGINNINGS: Final = 3  # of a step that never ended: from then on it is taken to kill its process every time


#                                               .-- FAILED   an error, a lost process
#   ABSENT --> WAITING --> RUNNING --(steps)--> +-- ASIDE    judged, not released --(accept)--> RELEASED
#                 ^          |                  '-- RELEASED
#                 |          v
#                 '------ STOPPED   a signal, or its machine went down: the build resumes at its first unfinished step
# FAILED and ASIDE are ends: only a retry, an acceptance or another order leads back to WAITING.
class BuildState(StrEnum):
    """Where a build is in its life."""

    ABSENT = "not-built"  # not asked for yet
    WAITING = "waiting"  # for the build before it, for room, or for idle time
    RUNNING = "running"
    STOPPED = "stopped"  # by a signal or with its machine; it resumes there
    FAILED = "failed"  # does not start over by itself
    ASIDE = "kept-aside"  # made and judged, and not released
    RELEASED = "released"

    @property
    def unfinished(self) -> bool:
        """Whether the build was asked for and has not come to an end."""
        return self in (BuildState.WAITING, BuildState.RUNNING, BuildState.STOPPED)


@dataclass(frozen=True)
class BuildOrder:
    """What is to be built. All paths are absolute.

    corpus:    what the parent is profiled over, each FILE or CLASS=FILE.
    reasoning: domain-neutral traces for the recipe's third pass, in the same form.
    answer:    the corpus holds questions, and the parent writes the answers itself.
    recipe:    how its experts are chosen.
    questions: what it is judged by, beside every tenth question of the corpus.
    bound:     the loss of accuracy that it may have beside its parent.
    system:    the system prompt of questions, when it is judged.
    out:       where the specialist is released to.
    option:    what `coe build` has to be told beside the name, for messages; it changes nothing of what is built.
    """

    name: str
    parent: Path
    corpus: tuple[str, ...]
    experts: int
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    reasoning: tuple[str, ...] = ()
    answer: bool = False
    questions: tuple[Path, ...] = ()
    bound: Bound = USUAL_BOUND
    system: str = ""
    quantize: str | None = None
    shared_scale: float | None = None
    max_tokens: int = 2048  # of an answer of the parent, or to a held-out question
    seed: int = 0
    option: str = ""

    @property
    def command(self) -> str:
        """What carries it out, or goes on with it."""
        return f"coe build {self.name}{self.option}"

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        plain = asdict(self)
        return {
            **plain,
            "parent": str(self.parent),
            "out": str(self.out),
            "recipe": self.recipe.to_settings(),
            "questions": [str(p) for p in self.questions],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> BuildOrder:
        """Raises TypeError, KeyError or SurgeryError for what to_json did not write."""
        texts = {key: tuple(plain[key]) for key in ("corpus", "reasoning")}
        typed = {
            "parent": Path(plain["parent"]),
            "out": Path(plain["out"]),
            "questions": tuple(Path(path) for path in plain["questions"]),
            "recipe": Recipe.from_settings(plain["recipe"]),
            "bound": Bound(**plain["bound"]),
        }
        return cls(**{**plain, **texts, **typed})


@dataclass(frozen=True)
class Machine:
    """How the models of a build are loaded, as in engine.spec.LoadSpec; of the result it changes the rounding alone."""

    context_tokens: int = LoadSpec.context_tokens
    cache_tokens: int = LoadSpec.cache_tokens
    parallel: int = LoadSpec.parallel
    gpu_layers: int = LoadSpec.gpu_layers
    cpu_expert_layers: int = LoadSpec.cpu_expert_layers
    kv_type: str = LoadSpec.kv_type
    mmap: bool = LoadSpec.mmap
    threads: int = LoadSpec.threads
    devices: tuple[str, ...] = LoadSpec.devices

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From a file or the wire."""
        return cls(**{**data, "devices": tuple(data.get("devices", ()))})


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is. Times are seconds since 1970; fraction is of the step, 0..1, None where it is not known.

    warning: what the preflight check foresaw that the build's end will suffer from.
    """

    state: BuildState = BuildState.ABSENT
    step: str = ""
    fraction: float | None = None
    tokens_per_s: float | None = None
    message: str = ""
    remedy: str = ""
    warning: str = ""
    steps_done: int = 0
    steps: int = 0
    started: float | None = None
    updated: float | None = None

    def line(self) -> str:
        """One phrase for a header or a table: `running: profile 42 %`."""
        if self.state is BuildState.RUNNING and self.step:
            share = "" if self.fraction is None else f" {100 * self.fraction:.0f} %"
            return f"{self.state}: {self.step}{share}"
        if self.state is BuildState.WAITING and self.message:
            return f"{self.state}: {self.message}"
        return str(self.state)


@dataclass(frozen=True)
class StepRecord:
    """A finished step: the fingerprint of what went into it, facts for the steps after it, and when it ended."""

    fingerprint: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    ended: float = 0.0  # seconds since 1970


class Busy(BuildError):
    """Another build is at work; one runs at a time."""


class Job:
    """A build's folder. Any process may read it; the one that holds its lock writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, models_dir: Path, name: str) -> Job:
        """The build of a specialist."""
        return cls(models_dir / BUILDS / name)

    def path(self, name: str) -> Path:
        """A file of the build."""
        return self.folder / name

    @property
    def log(self) -> Path:
        """The output of its process."""
        return self.path("log")

    def make_folder(self) -> None:
        """Make the folder, for the user alone: it holds text of the corpus, and answers. Raises OSError."""
        private_folder(self.folder.parent)
        private_folder(self.folder)

    # --- the order --------------------------------------------------------------------------------------------

    def order(self) -> tuple[BuildOrder, Machine]:
        """The order and how its models are loaded. Raises BuildError when there is none, SurgeryError for a bad one."""
        try:
            plain = json.loads(self.path("job.json").read_text())
            return BuildOrder.from_json(plain["order"]), Machine.from_json(plain["machine"])
        except FileNotFoundError as error:
            raise BuildError(f"{self.folder} holds no build.", "Begin it with coe build.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{self.path('job.json')} cannot be read: {error!r}.", _ANEW) from error

    @property
    def command(self) -> str:
        """What carries the order out, or goes on with it."""
        try:
            return self.order()[0].command
        except SurgeryError:
            return f"coe build {self.folder.name}"

    def write_order(self, order: BuildOrder, machine: Machine) -> None:
        """Write the order. What earlier steps made stays, and is used where its inputs are unchanged."""
        self.make_folder()
        _write(self.path("job.json"), {"order": order.to_json(), "machine": asdict(machine)})

    # --- progress ---------------------------------------------------------------------------------------------

    def progress(self) -> BuildProgress:
        """How far the build is; one that was RUNNING and whose process is gone is STOPPED."""
        found = self._read_progress()
        if found.state is BuildState.RUNNING and not self.at_work():
            # It may have ended between the two reads: only what is still written counts.
            found = self._read_progress()
            if found.state is BuildState.RUNNING:
                return replace(found, state=BuildState.STOPPED, fraction=None, tokens_per_s=None)
        return found

    def _read_progress(self) -> BuildProgress:
        try:
            plain = json.loads(self.path("progress.json").read_text())
            return BuildProgress(**{**plain, "state": BuildState(plain["state"])})
        except (OSError, ValueError, TypeError, KeyError):
            return BuildProgress()

    def write_progress(self, progress: BuildProgress) -> None:
        """Write how far the build is."""
        self.make_folder()
        _write(self.path("progress.json"), asdict(replace(progress, updated=time.time())), sync=False)

    def report(self) -> dict[str, Any] | None:
        """The report on the specialist, None before its evaluation."""
        try:
            plain = json.loads(self.path("report.json").read_text())
        except (OSError, ValueError):
            return None
        return plain if isinstance(plain, dict) else None

    # --- finished steps ---------------------------------------------------------------------------------------

    def records(self) -> dict[str, StepRecord]:
        """The finished steps, by name."""
        return {name: StepRecord(**record) for name, record in self._state().get("steps", {}).items()}

    def record(self, step: str, record: StepRecord) -> None:
        """Record a finished step."""
        state = self._state()
        state.setdefault("steps", {})[step] = asdict(record)
        state.get("begun", {}).pop(step, None)
        _write(self.path("state.json"), state)

    def begin(self, step: str) -> int:
        """Record that a step begins; gives how often it had begun before without an end."""
        state = self._state()
        begun = state.setdefault("begun", {})
        before = int(begun.get(step, 0))
        begun[step] = before + 1
        _write(self.path("state.json"), state)
        return before

    def reset_attempts(self) -> None:
        """Reset the count of beginnings: the steps were ended on purpose, or are to be tried again."""
        state = self._state()
        if state.pop("begun", None):
            _write(self.path("state.json"), state)

    def remember(self, key: str, value: Any) -> None:
        """Keep a fact beside the steps."""
        state = self._state()
        state[key] = value
        _write(self.path("state.json"), state)

    def recall(self, key: str) -> Any:
        """A fact that was kept, or None."""
        return self._state().get(key)

    def _state(self) -> dict[str, Any]:
        try:
            plain = json.loads(self.path("state.json").read_text())
        except (OSError, ValueError):
            return {}
        return plain if isinstance(plain, dict) else {}

    # --- its lock ---------------------------------------------------------------------------------------------

    def at_work(self) -> bool:
        """Whether a process works on it now."""
        return _is_locked(self.path("lock"))

    @contextmanager
    def worked_on(self) -> Iterator[None]:
        """Hold the build's lock, and the one that all builds share. Raises Busy when either is taken."""
        self.make_folder()
        with _locked(self.folder.parent / ".lock", self.folder.name), _locked(self.path("lock"), self.folder.name):
            yield


_ANEW: Final = "Remove the folder and begin it anew with coe build."


def at_work(models_dir: Path) -> str | None:
    """The name of the build that a process works on now, None when there is none."""
    lock = models_dir / BUILDS / ".lock"
    return _holder(lock) if _is_locked(lock) else None


def _write(path: Path, plain: Any, *, sync: bool = True) -> None:
    text = json.dumps(plain, indent=1, ensure_ascii=False)
    if sync:
        with written_beside(path, private=True) as beside:
            beside.write_text(text)
        return
    # Twice a second for hours: what a power cut would lose of it is nothing.
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make_private(beside)
        beside.write_text(text)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # where the disk is full


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold a lock file. Raises Busy. Source: flock(2); the kernel lets go when the process ends, however it ends."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for retry_s in (*_RETRY_S, None):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if retry_s is None:
                    raise Busy(f"The build of {_holder(path)} is at work.", "Wait for its end, or stop it.") from None
                time.sleep(retry_s)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"name": name, "pid": os.getpid()}).encode(), 0)
        yield
    finally:
        os.close(file)


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two looks do not disturb each other.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _holder(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["name"])
    except (OSError, ValueError, KeyError):
        return "another specialist"

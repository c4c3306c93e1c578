"""A roster's text: YAML parsed into plain values with the line of every key (source map), and its syntax problems.

PyYAML alone keeps no lines, silently lets the last of two equal keys win, and stops at the first mistake.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coe.engine.files import open_regular
from coe.engine.text import printable

KeyPath = tuple[str | int, ...]

_MOST_BYTES = 4 * 1024 * 1024
_MOST_NODES = 200_000


@dataclass(frozen=True)
class Problem:
    """One thing wrong, or doubtful, in a roster: where it stands, what it is and what to do about it."""

    file: str  # the file's name, without its folder
    line: int | None  # counted from 1; None when the file as a whole is meant
    key: str  # `specialists[1].sampling.temperature`; empty for the file as a whole
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return printable(": ".join(filter(None, (where, self.key, f"{self.message} {self.remedy}".strip()))))


class RosterError(Exception):
    """A roster cannot be used; `problems` holds everything that is wrong with it, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems), key=lambda problem: (problem.line or 0, problem.key)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass
class Source:
    """A roster's values as written, the line of each key path, and the problems met while reading.

    values: what the YAML says, in plain dicts, lists and scalars; None when it cannot be read at all.
    lines:  key path -> line, counted from 1; () is the whole document.
    """

    file: str
    values: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: KeyPath, message: str, remedy: str = "") -> Problem:
        """A problem at a key path, or at the nearest one above it that has a line."""
        known = path
        while known not in self.lines and known:
            known = known[:-1]
        return Problem(self.file, self.lines.get(known), key_text(path), message, remedy)


def key_text(path: KeyPath) -> str:
    """A key path as a reader writes it: `specialists[1].sampling.temperature`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is most likely meant to be, or None."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


class _TooManyError(Exception):
    """There are more values than a roster may have."""


def read_source(path: Path) -> Source:
    """Read a roster's YAML. Never raises for what is in the file: what is wrong stands in `problems`."""
    source = Source(file=path.name)
    text = _read_text(path, source)
    if text is None:
        return source
    try:
        loader: Any = yaml.SafeLoader(text)  # its methods carry no types
        node = loader.get_single_node()
        if node is None:
            source.problems.append(
                Problem(source.file, None, "", "The file is empty.", "Start with a list called `specialists:`.")
            )
            return source
        source.values = _Reader(loader, source).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        remedy = "Indent with spaces, never with tabs." if "\\t" in what else "Check indentation, quotes and colons."
        line = mark.line + 1 if mark else None
        source.problems.append(Problem(source.file, line, "", f"Not valid YAML: {what}.", remedy))
    except yaml.reader.ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        line = text.count("\n", 0, position) + 1
        message = f"The character U+{_code_point(error.character):04X} is not allowed in YAML."
        source.problems.append(Problem(source.file, line, "", message, "Remove it."))
    except yaml.YAMLError as error:
        source.problems.append(Problem(source.file, None, "", f"Not valid YAML: {error}."))
    except _TooManyError:
        source.values = None
        message = f"With all its anchors written out the YAML holds more than {_MOST_NODES:,} values."
        source.problems.append(Problem(source.file, None, "", message, "Write fewer, and refer to fewer."))
    except RecursionError:
        source.values = None
        source.problems.append(Problem(source.file, None, "", "The YAML is nested too deeply.", "Flatten it."))
    return source


def _code_point(character: object) -> int:
    return ord(character) if isinstance(character, str) else int(str(character))


def _read_text(path: Path, source: Source) -> str | None:
    def fail(message: str, remedy: str = "", line: int | None = None) -> None:
        source.problems.append(Problem(source.file or str(path), line, "", message, remedy))

    try:
        with open_regular(path) as file:
            raw = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        fail(f"There is no such file: {path}.", "Give the path of a roster, or start from specialists.yaml.")
        return None
    except IsADirectoryError:
        fail(f"{path} is a folder.", "Give the path of the roster in it.")
        return None
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.", "Give the path of a roster.")
        return None
    if raw.startswith(b"GGUF"):
        fail("This is a model file.", "Give the path of a roster that names it (`file:`).")
        return None
    if len(raw) > _MOST_BYTES:
        fail(f"The file is larger than {_MOST_BYTES // 1024 // 1024} MiB.", "A roster is a short YAML text.")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fail("The text is not UTF-8.", "Save the file as UTF-8.", line)
        return None


def _odd_base(number: str) -> int | None:
    """The base of a number that few people take for what YAML 1.1 makes of it: 010 is 8, 1:30 is 90."""
    if ":" in number:
        return 60
    return 8 if re.match(r"[-+]?0[0-9_]+$", number) else None


class _Reader:
    """Turns YAML nodes into plain values and notes lines and problems in a source."""

    def __init__(self, loader: Any, source: Source) -> None:
        self._loader = loader
        self._source = source
        self._open: set[int] = set()  # the nodes we are inside of: an anchor may refer to its own surroundings
        self._seen = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._source.lines.setdefault(path, node.start_mark.line + 1)
        self._seen += 1
        if self._seen > _MOST_NODES:
            raise _TooManyError  # nested aliases: a few lines may stand for billions of values
        if id(node) in self._open:
            self._fail(path, "The anchor refers to itself.", "Write the value out.")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self._key(key_node)
            line = key_node.start_mark.line + 1
            if key is not None and key in own:
                first = own[key]
                self._fail((*path, key), f"The key stands here twice, first in line {first}.", "Keep one.", line)
            elif key is not None:
                own[key] = line
        self._loader.flatten_mapping(node)  # `<<: *anchor`; merged keys come first, so that own ones win
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            line = key_node.start_mark.line + 1
            if key is None:
                self._fail(path, "A key must be text.", "Put it in quotes.", line)
                continue
            self._source.lines[(*path, key)] = line
            values[key] = self.value(value_node, (*path, key))
        return values

    def _key(self, node: yaml.Node) -> str | None:
        """The key's text. YAML 1.1 takes `on` and `1` for other things than text; as keys they are refused."""
        if isinstance(node, yaml.ScalarNode) and node.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            return str(node.value)
        return None

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            value = self._loader.construct_object(node)
        except yaml.MarkedYAMLError as error:
            self._fail(path, f"The value cannot be read: {error.problem}.", "Put it in quotes.")
        except ValueError as error:  # a date such as 2024-13-45
            self._fail(path, f"The value cannot be read: {error}.", "Put it in quotes.")
        else:
            if type(value) in (int, float) and (base := _odd_base(node.value)):
                what = f"YAML reads {node.value} as {value}, in base {base}."
                self._fail(path, what, f"Write {value} if that is meant, or put it in quotes if it is text.")
            return value
        return None

    def _fail(self, path: KeyPath, message: str, remedy: str, line: int | None = None) -> None:
        problem = self._source.problem(path, message, remedy)
        if line is not None:
            problem = Problem(problem.file, line, problem.key, message, remedy)
        self._source.problems.append(problem)

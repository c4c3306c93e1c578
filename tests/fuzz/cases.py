"""What is fuzzed: each kind of file, and the commands that read it."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import mutations

_ASKED: Final = "--questions questions.jsonl --max-tokens 8 --context 256 --parallel 2 --threads 1"

# File that is mutated -> the commands that read it, beside sound files of the other kinds.
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "parent.gguf": (
        "inspect parent.gguf",
        "mask drop.json --parent parent.gguf -o out.json --kind drop",
        "cut parent.gguf matrix.npy -o out.gguf",
        "verify parent.gguf specialist.gguf matrix.npy",
        "profile parent.gguf --corpus corpus.txt -o out.npz --context 64",
        "check roster.yaml",
        "serve --roster roster.yaml --port 0",
        "build law --roster roster.yaml",
    ),
    "specialist.gguf": (
        "inspect specialist.gguf",
        f"eval specialist.gguf {_ASKED}",
        f"eval specialist.gguf --beside parent.gguf {_ASKED}",
        "serve --roster roster.yaml --port 0",
        "verify parent.gguf specialist.gguf mask.json",
        "check roster.yaml",
        "check roster.yaml --no-dry-run",
    ),
    "mask.json": (
        "mask mask.json --parent parent.gguf -o out.json",
        "cut parent.gguf mask.json -o out.gguf",
        "verify parent.gguf specialist.gguf mask.json",
        "compare mask.json drop.json --parent parent.gguf",
        "check roster.yaml",
    ),
    "drop.json": (
        "mask drop.json --parent parent.gguf -o out.json",
        "cut parent.gguf drop.json -o out.gguf --kind drop",
    ),
    "matrix.npy": (
        "mask matrix.npy --parent parent.gguf -o out.json",
        "cut parent.gguf matrix.npy -o out.gguf",
    ),
    "profile.npz": (
        "plan profile.npz --experts 4 -o out.json --recipe top-k",
        "plan profile.npz --experts 4 -o out.json --recipe drop-map --pin-super-experts",
        "plan profile.npz --experts 4 -o out.json --second profile.npz",
    ),
    "head.npz": (
        "check headed.yaml --no-dry-run",
        "route --roster headed.yaml Hello",
        "serve --roster headed.yaml --port 0",
    ),
    "thresholds.json": (
        "check headed.yaml --no-dry-run",
        "route --roster headed.yaml Hello",
        "serve --roster headed.yaml --port 0",
    ),
    "roster.yaml": (
        "check roster.yaml --no-dry-run",
        "route --roster roster.yaml Hello",
        "pull --roster roster.yaml --yes",
        "build --roster roster.yaml",
        "build law --roster roster.yaml",
        "serve --roster roster.yaml --port 0",
    ),
    "corpus.txt": ("profile parent.gguf --corpus corpus.txt -o out.npz --context 64",),
    "corpus.jsonl": (
        "profile parent.gguf --corpus corpus.jsonl -o out.npz --context 64",
        "build law --roster roster.yaml",
    ),
    "questions.jsonl": (f"eval specialist.gguf {_ASKED}",),
    "labelled.jsonl": (
        "eval-router labelled.jsonl --roster headed.yaml",
        "fit-thresholds labelled.jsonl -o out.json --roster headed.yaml",
        "train-router labelled.jsonl -o out.npz",
    ),
    "asked.jsonl": ("route --roster headed.yaml --file asked.jsonl --json",),
}

_HEADED: Final = """\
version: 1
models_dir: .
router: {encoder: none, head: head.npz, thresholds: thresholds.json}
fallback: general
specialists: [{name: general, file: specialist.gguf, domains: [general]}]
"""


def write_sound(seeds: Path, folder: Path) -> None:
    """All files that commands read, none of them mutated."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds, folder)
    (folder / "headed.yaml").write_text(_HEADED)


@dataclass(frozen=True)
class Case:
    """One mutated file and the command that reads it: everything follows from the seed and the number."""

    seed: int
    number: int

    @property
    def _draw(self) -> random.Random:
        return random.Random(f"{self.seed}:{self.number}")

    @property
    def file(self) -> str:
        """The file that is mutated: each in its turn."""
        return list(COMMANDS)[self.number % len(COMMANDS)]

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments of `coe`."""
        return tuple(self._draw.choice(COMMANDS[self.file]).split())

    def write(self, seeds: Path, folder: Path) -> None:
        """All files of the case: sound ones, and the mutated one in their midst."""
        write_sound(seeds, folder)
        draw = self._draw
        draw.random()
        path = folder / self.file
        content = path.read_bytes()
        if self.file == "head.npz":
            about = folder / "head.json"
            changed, told = mutations.of_head(content, about.read_bytes(), draw)
            about.write_bytes(told)
        elif path.suffix == ".gguf":
            changed = mutations.of_gguf(content, draw)
        else:
            mutate = mutations.of_bytes if path.suffix in (".npy", ".npz", ".txt") else mutations.of_words
            changed = mutate(content, draw)
        path.write_bytes(changed)

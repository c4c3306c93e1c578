"""Optional dependencies: pip's extras of this project, what needs each, and one line where a package is missing."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Final

import typer

from ._lines import console, print_line

_err = console(stderr=True)


@dataclass(frozen=True)
class Extra:
    """One optional package. name: what pip calls it, coe-runtime[name]."""

    name: str
    distribution: str
    module: str
    used_for: str

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f'pip install "coe-runtime[{self.name}]"'


TRAIN: Final = Extra("train", "scikit-learn", "sklearn", "coe train-router")
PLOTS: Final = Extra("plots", "matplotlib", "matplotlib", "pictures of the commands")
TORCH: Final = Extra("torch", "sentence-transformers", "sentence_transformers", "a sentence encoder of your own")
EXTRAS: Final = (TRAIN, PLOTS, TORCH)


def require(extra: Extra, what: str) -> None:
    """Go on where the package can be imported; else print one line with the remedy, and exit with 1.

    To be called before any work: what is missing must not be found out after an hour. what: what needs the package.
    """
    try:
        importlib.import_module(extra.module)
    except ImportError as error:
        why = "is not installed" if error.name == extra.module else f"cannot be imported ({error})"
        told = f"{what} needs {extra.distribution}, which {why}: {extra.remedy}"
        print_line(_err, told, "red")
        raise typer.Exit(1) from None

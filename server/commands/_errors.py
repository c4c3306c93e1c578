"""Errors of a command as one line each, with the exit status that a shell expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer
from rich.console import Console

from ._lines import console, print_line

STOPPED_EXIT: Final = 130  # what shells give for a Ctrl-C


@contextmanager
def clear_errors(resumes: str = "", err: Console | None = None) -> Iterator[None]:
    """Print an error as one line with its remedy and exit with 1. resumes: what a Ctrl-C leaves, for the reader.
    err: the error stream's console."""
    from coe.engine.errors import EngineError
    from coe.surgery.errors import SurgeryError

    from .pull.errors import PullError

    err = err or console(stderr=True)
    try:
        yield
    except (SurgeryError, EngineError, PullError) as error:
        print_line(err, f"{error.message} {error.remedy}".strip(), "red")
        raise typer.Exit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_line(err, f"{where}{error.strerror or error}.", "red")
        raise typer.Exit(1) from None
    except MemoryError:
        print_line(err, "There is not enough memory for what the file asks for.", "red")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print(f"Stopped. {resumes}".strip(), markup=False)
        raise typer.Exit(STOPPED_EXIT) from None

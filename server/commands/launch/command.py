"""`coe launch CLIENT`: the story of one launch."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from coe.engine.text import quoted

from ...roster.addresses import base_url
from ...roster.models import ServerSection
from .._lines import print_line
from .asking import LaunchError, ask_server
from .clients import CLIENTS
from .runner import place_of, run, temporary_place, write_files
from .saving import plan, save
from .values import Client, Saving, Served, Settings

_SHOWN_FOLDER: Final = Path("/FOLDER")
_SHOWN_KEY: Final = "KEY"  # a terminal keeps what is printed


def launch(
    name: str,
    arguments: Sequence[str],
    out: Console,
    err: Console,
    *,
    url: str | None,
    key: str | None,
    model: str,
    saved: bool,
    shown: bool,
) -> int:
    """Start a client so that it asks the server at `url`, or at the usual address; returns its exit code.

    key:   or several, with commas between them, of which the first is taken.
    saved: write into the client's own files what it is told, and start it with them.
    shown: print the settings, and do nothing.
    """
    try:
        client = _known(name)
        executable = shutil.which(client.command)
        if executable is None and not shown:
            raise LaunchError(
                f"{client.title} is not installed: there is no {client.command} in PATH. Get it with: {client.install}"
            )
        address = url or base_url(ServerSection().host, ServerSection().port)
        served = ask_server(address, (key or "").split(",")[0].strip(), model)
        for doubt in doubts(client, served):
            print_line(err, doubt, "yellow")
        if shown:
            _show(client, served, arguments, out, saved=saved)
            return 0
        assert executable is not None, "else there was nothing to start"
        if saved:
            return _launch_saved(client, executable, served, arguments, err)
        with temporary_place(outside_tmp=client.outside_tmp) as place:
            settings = client.settings(served, place)
            write_files(settings.files)
            return run(executable, settings, arguments)
    except LaunchError as error:
        print_line(err, str(error), "red")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_line(err, f"{name} could not be started. {where}{error.strerror or error}.", "red")
    return 1


def _known(name: str) -> Client:
    if (client := CLIENTS.get(name)) is None:
        raise LaunchError(f"There is no client {quoted(name)}. Known are: {', '.join(CLIENTS)}.")
    return client


def doubts(client: Client, served: Served) -> list[str]:
    """What will not go well with this client and this server, a sentence each."""
    found = []
    model = served.model
    if client.needs_tools and not model.tools:
        found.append(
            f"{model.name} takes no tools: {client.title} can talk, and neither read nor change files. Name another "
            "with --model, or see `tools` in the roster."
        )
    if 2 * client.prompt_tokens > model.context_tokens:
        shorter = f" A shorter prompt: {client.shorter}" if client.shorter else ""
        found.append(
            f"{client.title} takes about {client.prompt_tokens:,} tokens for its own instructions and tools, and "
            f"{model.name} holds {model.context_tokens:,}: raise `context_tokens` in the roster.{shorter}"
        )
    return found


def _launch_saved(client: Client, executable: str, served: Served, arguments: Sequence[str], err: Console) -> int:
    with temporary_place() as place:
        saving = client.saving(served, place, os.environ)
        for saved in save(plan(saving.edits), served.key):
            if saved.written:
                print_line(err, f"Written: {saved.path}{f' (as it was: {saved.copy})' if saved.copy else ''}")
            for path in saved.closed:
                print_line(err, f"Others could read {path}: the server's key stands in it, and it is yours alone now.")
        if saving.kept is not None:
            saving.kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            print_line(err, f"{client.title} keeps its settings in no file; its data stay in {saving.kept}")
        write_files(saving.settings.files)
        return run(executable, saving.settings, arguments)


# --- showing --------------------------------------------------------------------------------------------------


def _show(client: Client, served: Served, arguments: Sequence[str], out: Console, *, saved: bool) -> None:
    """Files, variables and the command, as a person would write them, with a word in place of the key."""
    hidden = replace(served, key=_SHOWN_KEY if served.key else "")
    place = replace(place_of(_SHOWN_FOLDER, os.environ), secret="SECRET")
    if saved:
        saving = client.saving(hidden, place, os.environ)
        _show_edits(saving, out)
        settings = saving.settings
    else:
        settings = client.settings(hidden, place)
        if _uses(settings, _SHOWN_FOLDER):
            print_line(out, f"# {_SHOWN_FOLDER} stands for a temporary folder, removed when {client.command} ends.")
    if served.key:
        print_line(out, f"# {_SHOWN_KEY} stands for the server's key.")
    for path, text in settings.files.items():
        _show_file(str(path), text, out)
    for name, value in settings.environment.items():
        print_line(out, f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
    print_line(out, shlex.join([*settings.argv, *arguments]))


def _show_edits(saving: Saving, out: Console) -> None:
    """What would be put into files. What else is in them is the user's, keys of others maybe."""
    plan(saving.edits)  # says now what would be in the way
    for edit in saving.edits:
        whole = isinstance(edit.values, str)
        text = edit.values if isinstance(edit.values, str) else json.dumps(edit.values, indent=1, ensure_ascii=False)
        _show_file(f"{edit.path}, the whole file" if whole else f"put into {edit.path}", text, out)


def _show_file(title: str, text: str, out: Console) -> None:
    print_line(out, f"# {title}:")
    for line in text.splitlines():
        print_line(out, line)
    print_line(out, "")


def _uses(settings: Settings, folder: Path) -> bool:
    values: Mapping[str, str | None] = settings.environment
    return bool(settings.files) or any(str(folder) in (value or "") for value in values.values())

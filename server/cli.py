"""The `coe` command. Each command imports what it needs when it runs, so that `coe --help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe.engine.private import keep_private, make_files_private

from .commands import router as router_commands
from .commands import surgery as surgery_commands
from .commands._lines import console, print_line
from .commands._logs import LogFormat, set_up
from .commands._roster import OwnRosterOption, RosterOption
from .roster.builtin import demo_roster, known_roster, own_roster

keep_private()  # before any command imports its libraries

app = typer.Typer(
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they would show keys and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Specialists cut out of one mixture-of-experts model, behind one OpenAI-compatible server.",
)
_out = console()
_err = console(stderr=True)


@app.callback(invoke_without_command=True)
def _nothing(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        _out.print("[bold]coe[/] serves a college of specialists behind one OpenAI-compatible address.\n")
        _out.print("  coe demo                       a tour of what this is, in a minute")
        _out.print("  coe serve                      the demo's college, without any download")
        _out.print("  coe fit hf:OWNER/REPO          what of a parent fits this machine, before anything is downloaded")
        _out.print("  coe check specialists.yaml     what of a roster this machine can serve")
        _out.print("  coe schema                     the roster's JSON schema, for an editor")
        _out.print("  coe pull --roster FILE NAME    fetch a specialist's model")
        _out.print("  coe serve --roster FILE        serve your own college")
        _out.print('  coe route "a question"         which specialist would answer')
        _out.print("  coe bench --roster FILE        what each specialist takes on this machine")
        _out.print("  coe launch CLIENT              start Codex, Claude Code, opencode and others on the server")
        _out.print("  coe export NAME --for ollama   a specialist as a file for other programs")
        _out.print("  coe doctor                     what is missing on this machine\n")
        _out.print("Making a specialist:")
        _out.print("  coe build NAME                 one that the roster describes, from corpus to release")
        _out.print("  coe profile, plan, cut         the same by hand: watch the parent, choose experts, cut them out")
        _out.print("  coe mask                       another tool's drop map or matrix as a mask of ours")
        _out.print("  coe mask-of                    a published specialist as a mask of its parent")
        _out.print("  coe verify, eval               prove the file; questions beside the parent")
        _out.print("  coe inspect, compare           what a model consists of; how alike masks are\n")
        _out.print("The supervisor:")
        _out.print("  coe eval-router, fit-thresholds     how well it sorts questions of yours; when to doubt it")
        _out.print("  coe train-router                    fit it to questions of yours\n")
        _out.print("coe COMMAND --help says more.")


@app.command()
def serve(
    roster: RosterOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; the roster's when left out.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; the roster's when left out.")] = None,
    ollama_port: Annotated[
        int | None,
        typer.Option(
            envvar="COE_OLLAMA_PORT",
            help="A second port for clients that look for Ollama, at 11434; the roster's when left out.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="COE_ALLOWED_HOSTS", help="A name by which clients call the server, beside the roster's; repeatable."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="COE_INSECURE", help="Listen on more than the loopback without any key."),
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log every decision; -vv: what llama.cpp says, too.")
    ] = 0,
    log_format: Annotated[LogFormat, typer.Option(help="How log lines are written.")] = LogFormat.TEXT,
) -> None:
    """Serve a roster on an OpenAI-compatible address."""
    from .commands._exposure import Opened
    from .commands.serve import serve as run

    set_up(verbose, log_format)
    make_files_private()
    doors = Opened(tuple(name for text in allowed_host or () for name in text.split(",") if name), insecure)
    raise typer.Exit(
        run(known_roster(roster), host=host, port=port, ollama_port=ollama_port, out=_out, err=_err, opened=doors)
    )


@app.command()
def route(
    text: Annotated[str | None, typer.Argument(help="A question, as a user would ask it.")] = None,
    roster: RosterOption = None,
    file: Annotated[
        Path | None,
        typer.Option(help='Questions, one JSON object a line: {"text": ...} or {"messages": [...]}; - for stdin.'),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each decision as JSON; of a file, one a line.")
    ] = False,
) -> None:
    """Say which specialist would answer a question, or each of a file's, and why. Loads no model."""
    from .commands.route import route_file, route_text

    if file is not None and text is None:
        raise typer.Exit(route_file(known_roster(roster), file, as_json=as_json, out=_out, err=_err))
    if text is None or file is not None:
        raise typer.BadParameter("Give a question, or --file with a file of them.")
    raise typer.Exit(route_text(known_roster(roster), text, as_json=as_json, out=_out, err=_err))


@app.command()
def check(
    roster: Annotated[Path, typer.Argument(help="The roster file; `demo` is the built-in one.")],
    dry_run: Annotated[bool, typer.Option(help="Ask llama.cpp what each model would take.")] = True,
    remote: Annotated[
        bool,
        typer.Option("--remote", help="Judge models that are not here as well: of each, the header alone is fetched."),
    ] = False,
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", help="Access token of the model hub, for --remote.")
    ] = None,
) -> None:
    """Check a roster: every error at once, which files are there, and what fits together in memory."""
    from .commands.check import check_roster

    if not remote:
        raise typer.Exit(check_roster(known_roster(roster), dry_run=dry_run, out=_out))
    from .commands.check_remote import check_ahead

    raise typer.Exit(check_ahead(known_roster(roster), token, dry_run=dry_run, out=_out, err=_err))


@app.command()
def fit(
    model: Annotated[
        str,
        typer.Argument(
            help="The parent: a GGUF, or a repository on the hub, of which headers alone are fetched: hf:OWNER/REPO, "
            "hf:OWNER/REPO/PATTERN.",
            show_default=False,
        ),
    ],
    vram: Annotated[
        str | None,
        typer.Option(help="Memory to fit it in, such as 15GiB; what is free here less a margin when left out."),
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=256, max=2**22, help="Tokens of a conversation; may be repeated. 16384 and 65536 when left out."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    token: Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Access token of the model hub.")] = None,
) -> None:
    """Show what of a parent fits: the whole of it in each quantisation, fewer experts, experts in host memory.

    All sums are llama.cpp's own, by dry runs that read no weights. Nothing has to be downloaded first.
    """
    from .commands.fit.command import fit as run
    from .commands.fit.values import parse_budget
    from .roster.values import InvalidError

    try:
        vram_bytes = None if vram is None else parse_budget(vram)
    except InvalidError as error:
        raise typer.BadParameter(f"{error} {error.remedy}".strip(), param_hint="--vram") from None
    contexts = context or (16_384, 65_536)
    raise typer.Exit(run(model, vram_bytes, contexts, token=token, as_json=as_json, out=_out, err=_err))


@app.command()
def schema() -> None:
    """Print the JSON schema of a roster, by which an editor completes its keys and marks mistakes."""
    import json

    from .roster.schema import roster_schema

    print(json.dumps(roster_schema(), indent=2))


@app.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(help="Specialists, or `parent`; all when left out.")] = None,
    roster: OwnRosterOption = None,
    masks: Annotated[
        bool,
        typer.Option("--masks", help="The masks of all `mask_of` entries, some MiB each, and only the models named."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before fetching several models.")] = False,
    token: Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Access token of the model hub.")] = None,
) -> None:
    """Fetch specialists' models, and masks of published ones, from the model hub into the models folder."""
    from .commands.pull.command import pull as run
    from .roster.load import load_roster
    from .roster.source import RosterError

    try:
        loaded = load_roster(own_roster(roster))
    except RosterError as error:
        for problem in error.problems:
            print_line(_err, str(problem))
        raise typer.Exit(1) from None
    status = run(loaded, names or [], yes=yes, token=token, console=_out, confirm=typer.confirm, masks=masks)
    raise typer.Exit(status)


@app.command()
def demo(
    url: Annotated[
        str | None,
        typer.Option(help="A server to ask; when left out, the one on port 8000 if it serves the demo, else its own."),
    ] = None,
) -> None:
    """A tour of the built-in college in under a minute: questions, answers, and a specialist built on the way."""
    from .commands.demo import tour

    raise typer.Exit(tour(demo_roster(), url, _out))


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Specialists; all that can be served when left out.")
    ] = None,
    roster: RosterOption = None,
    url: Annotated[
        str | None, typer.Option(help="A server that is running; one is started for the roster when left out.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="The server's key, if it wants one.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each specialist is changed to.")] = 5,
    tokens: Annotated[int, typer.Option(min=16, help="Length of the answers whose speed is measured.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure specialists on this machine: time to the first token, changes, and tokens a second."""
    from .commands.bench import bench as run

    path = known_roster(roster)
    code = run(path, names or [], _out, _err, url=url, key=key, rounds=rounds, n_tokens=tokens, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def launch(
    client: Annotated[
        str, typer.Argument(help="codex, claude, opencode, qwen, continue, open-webui or aider.", show_default=False)
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="After `--`: arguments for the client.", show_default=False)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A server that is running; the one on port 8000 when left out.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="COE_API_KEYS", help="The server's key, if it wants one.")] = None,
    model: Annotated[str, typer.Option(help="What the client asks for: `auto`, a specialist or an alias.")] = "auto",
    save: Annotated[
        bool, typer.Option("--save", help="Write the settings into the client's own files, and start it with them.")
    ] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the settings, and start nothing.")] = False,
) -> None:
    """Start a client of others on a running server.

    It is told the address, the key, the model, its context and whether it takes tools, in a temporary folder; its own
    files stay as they are, unless --save is given.
    """
    from .commands.launch.command import launch as run

    code = run(client, arguments or [], _out, _err, url=url, key=key, model=model, saved=save, shown=show)
    raise typer.Exit(code)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="The specialist, by its name or an alias.", show_default=False)],
    program: Annotated[
        str, typer.Option("--for", help="ollama, gguf (the file alone), llama-swap or lmstudio.", show_default=False)
    ],
    roster: RosterOption = None,
    folder: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write into; one called as the specialist when left out."),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy a file that is there, too; else it is referred to, or linked.")
    ] = False,
) -> None:
    """Write a specialist's file, and the settings that another program serves it with.

    One that is a mask is cut out of its parent. A program gets what the roster says: sampling, context, length of
    answers, system prompt, whether it thinks.
    """
    from .commands.export.command import Program
    from .commands.export.command import export as run

    if program not in list(Program):
        raise typer.BadParameter(f"{program!r} is none of: {', '.join(Program)}.", param_hint="--for")
    raise typer.Exit(run(known_roster(roster), name, Program(program), folder, _out, _err, copied=copy))


@app.command()
def doctor(
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure as well, for some minutes, and write all of it to a file that can be sent to others: build, "
            "devices, memory predicted and taken, changes in place, coe bench. No paths, names or keys are in it.",
        ),
    ] = None,
) -> None:
    """Say what llama.cpp sees on this machine, what is missing, and how to get it."""
    if report is not None:
        from .commands.report import write_report

        raise typer.Exit(write_report(report, _out, _err))
    from .commands.doctor import doctor as run

    raise typer.Exit(run(_out))


surgery_commands.register(app)
router_commands.register(app)


def main() -> None:
    """Entry point of the `coe` command."""
    app()


if __name__ == "__main__":
    main()

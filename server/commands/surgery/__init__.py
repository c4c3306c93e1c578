"""The surgery commands of `coe`: one file a command, from profiling a mixture of experts to a released specialist.

Each reads its arguments, lets one function of coe.surgery work, shows its progress and prints its result. llama.cpp
runs in this process or in workers of it, never in the server. Heavy imports happen within the commands, so that
`coe --help` is quick.
"""

from __future__ import annotations

import typer

from . import build, compare, cut, eval, inspect, mask, mask_of, plan, profile, verify


def register(app: typer.Typer) -> None:
    """Add the commands to `coe`, in the order in which a specialist is made."""
    app.command()(profile.profile)
    app.command()(plan.plan)
    app.command()(mask.mask)
    app.command("mask-of")(mask_of.mask_of)
    app.command()(cut.cut)
    app.command()(verify.verify)
    app.command()(compare.compare)
    app.command()(inspect.inspect)
    app.command("eval")(eval.evaluate)
    app.command()(build.build)

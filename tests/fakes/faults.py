"""Processes of a server that are killed, stop for ever, or meet a fault of ours, at a named step of their work: once,
when a test says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

Act = Literal["SIGKILL", "SIGSTOP", "FAULT"]

# What Python runs when it starts. Source: Python's docs, site, "sitecustomize". A step strikes where a file of its name
# lies, whose text is the signal; it takes the file away, so that whoever comes to that step next is spared.
_STRIKE: Final = """
import os, signal, sys

def strike(step):
    armed = os.path.join({folder!r}, step)
    try:
        with open(armed) as file:
            act = file.read()
        os.unlink(armed)
    except FileNotFoundError:
        return
    if act == "FAULT":
        raise KeyError("what a user " + "said")  # not as one: a traceback quotes this line
    os.kill(os.getpid(), signal.Signals[act])

if "coe.engine.worker.worker" in sys.orig_argv:
    from coe.engine.llama.context import Context
    from coe.engine.llama.model import Model

    load = Model.__init__

    def loading(self, spec, *, dry_run=False, progress=None):
        def half(fraction):
            if fraction > 0.5:
                strike("load")
            return progress is None or progress(fraction)

        load(self, spec, dry_run=dry_run, progress=half)

    Model.__init__ = loading

    read, reads = os.preadv, []

    def preadv(*arguments):
        reads.append(1)
        if len(reads) % 2 == 0:  # not with the first of a swap: something is written by then
            strike("swap")
        return read(*arguments)

    os.preadv = preadv

    decode = Context.decode

    def decoding(self, entries):
        strike("decode")
        return decode(self, entries)

    Context.decode = decoding

    restore = Context.restore

    def restoring(self, sequence, state, *, partial):
        strike("restore")
        return restore(self, sequence, state, partial=partial)

    Context.restore = restoring

if "coe.surgery.build.process" in sys.orig_argv:
    from coe.surgery.build.job import Job

    begin = Job.begin

    def beginning(self, step):
        before = begin(self, step)
        strike(step)
        return before

    Job.begin = beginning
"""


class Faults:
    """What befalls the processes of a server that runs in `environment`."""

    def __init__(self, folder: Path) -> None:
        """folder: of the test's own."""
        self._armed, site = folder / "armed", folder / "site"
        self._armed.mkdir()
        site.mkdir()
        (site / "sitecustomize.py").write_text(_STRIKE.format(folder=str(self._armed)))
        self.environment = {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}

    def arm(self, step: str, act: Act) -> None:
        """The next process that comes to the step gets the signal there: load, swap, restore, or a build's step."""
        beside = self._armed / f".{step}"
        beside.write_text(act)
        beside.rename(self._armed / step)

    def struck(self, step: str) -> bool:
        """Whether a process has come to it."""
        return not (self._armed / step).exists()

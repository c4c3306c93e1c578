"""The child process that reads GGUF headers and groups the specialists that can share a resident.

Run by engine.child for `groups.find_groups`: ggml may abort on a damaged header, and takes this process down alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..child import Report
from ..errors import EngineError
from .fingerprints import HeaderReader, member_stamp, read_weights
from .groups import Contender, Grouping, group
from .plan import Weights


def read_groups(contenders: Sequence[Contender], threads: int, report: Report) -> Grouping:
    """Read every file once and group the contenders; those that cannot be read are unshared, with the reason.

    report: called with {"begin": FILE} and {"end": FILE} around the reading of each file, from several threads.
    """
    reader = HeaderReader()
    failed: dict[Path, str] = {}
    own = {contender.spec.path for contender in contenders}

    def one(path: Path) -> None:
        report({"begin": str(path)})
        try:
            reader.headers(path)
            if path in own:
                reader.metadata(path)
        except EngineError as error:
            failed[path] = str(error)
        report({"end": str(path)})

    files = dict.fromkeys(path for contender in contenders for path in contender.files)
    with ThreadPoolExecutor(threads, "headers") as pool:
        list(pool.map(one, files))
    read: dict[str, Weights] = {}
    stamps: dict[str, str] = {}
    unread: dict[str, str] = {}
    for contender in contenders:
        why = next((failed[path] for path in contender.files if path in failed), None)
        try:
            if why is None:
                stamp = member_stamp(contender.member, reader)
                weights = read_weights(contender.spec.path, contender.parent, contender.kept, reader=reader)
                read[contender.name], stamps[contender.name] = weights, stamp
        except EngineError as error:
            why = error.message
        if why is not None:
            unread[contender.name] = why
    found = group(contenders, read, stamps)
    return replace(found, unshared={**found.unshared, **unread})


def main(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """What the child answers: a `Grouping`."""
    contenders = list(map(Contender.from_json, job["contenders"]))
    return read_groups(contenders, job["threads"], report).to_json()

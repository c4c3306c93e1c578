"""A model that is loaded in a process of its own: `python -m fakes.card_load SPEC`, which sees the devices that its
environment names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from coe.engine.llama.context import Context
from coe.engine.llama.log import start
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec
from coe.engine.worker.trial import buffers_by_place

_TOKENS = (10, 11, 12, 13)
_WITHIN_S = 600  # a software device compiles its shaders first


def loaded_elsewhere(spec: LoadSpec) -> dict[str, Any]:
    """buffers: what llama.cpp logs of the load, place -> what for -> bytes. logits: of some tokens' last."""
    command = [sys.executable, "-m", __name__, json.dumps(spec.to_json())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main(spec: LoadSpec) -> dict[str, Any]:
    log = start()
    model = Model(spec)
    context = Context(model, spec)
    last = len(_TOKENS) - 1
    assert context.decode([(token, at, 0, at == last) for at, token in enumerate(_TOKENS)]) == 0
    return {"buffers": buffers_by_place(log.lines), "logits": context.logits(last).tolist()}


if __name__ == "__main__":
    print(json.dumps(main(LoadSpec.from_json(json.loads(sys.argv[1])))))

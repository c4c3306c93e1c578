"""Sound files of each kind, which the mutations begin with. Run in a process of its own: writing models loads ggml.

python -m fuzz.seeds FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from coe.router import training_prompts
from coe.router.domains import DOMAINS
from coe.router.thresholds import save_thresholds
from coe.surgery.cut.cut import cut
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.random_moe import write_random_moe
from fakes.synthetic_profile import routed

KEEP = 4
PROMPTS = "prompts"  # a folder of few training prompts: fitting a head on all of them takes minutes
PROMPTS_OF_EACH = 6


def write_seeds(folder: Path) -> None:
    """Write them all. Names are those that `commands` uses."""
    folder.mkdir(parents=True, exist_ok=True)
    parent_path = write_random_moe(folder / "parent.gguf", architecture="qwen3moe")
    parent = Parent.open(parent_path)
    identity = parent.identity()
    mask = Mask(identity, {layer: tuple(range(KEEP)) for layer in identity.layers})
    mask.save(folder / "mask.json")
    (folder / "drop.json").write_text(json.dumps({"drop": {str(layer): [5, 6, 7] for layer in identity.layers}}))
    np.save(folder / "matrix.npy", mask.matrix().astype(np.int8))
    cut(parent, mask, folder / "specialist.gguf")
    routed(identity, 200, np.random.default_rng(0)).save(folder / "profile.npz")
    for name in ("head.npz", "head.json"):
        shipped = Path(sys.modules["coe.router.domains"].__file__ or "").with_name(name)
        (folder / name).write_bytes(shipped.read_bytes())
    save_thresholds(folder / "thresholds.json", {DOMAINS[0]: 0.5}, {"n": 1})
    (folder / "corpus.txt").write_text("A sentence of a corpus.\n\nAnother paragraph, with some words in it.\n" * 3)
    rows = ({"question": "What is 2 + 2?", "answer": "4", "class": "math"}, {"text": "Some text.", "class": "law"})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (
        {"question": "What is 2 + 2?", "answer": "4"},
        {"question": "Which?", "options": ["x", "y"], "answer": "B"},
    )
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    labelled = [{"label": domain, "text": f"A question of {domain}?"} for domain in (*DOMAINS, *DOMAINS[:2] * 24)]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    (folder / "asked.jsonl").write_text(
        '{"text": "What is 2 + 2?"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n'
    )
    prompts = folder / PROMPTS
    prompts.mkdir(exist_ok=True)
    for path in training_prompts.PROMPTS.glob("*.txt"):
        (prompts / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:PROMPTS_OF_EACH]))
    (folder / "roster.yaml").write_text(ROSTER)


ROSTER = """\
version: 1
models_dir: .
server: {port: 0, max_wait_s: 120, max_body_bytes: 8 MiB}
pool: {vram_budget: 2 GiB, idle_ttl_s: 600}
router: {encoder: none, threshold: 0.4}
defaults: &d
  thinking: {budget: 64}
  context_tokens: 512
parent: {file: parent.gguf, model: someone/model}
fallback: general
specialists:
  - {name: general, file: specialist.gguf, domains: [general], aliases: [g, h]}
  - {name: maths, mask: mask.json, domains: [math, physics], share: false}
  - name: law
    build: {corpus: [corpus.jsonl], experts: 4, recipe: top-k}
    domains: [law]
"""

if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))

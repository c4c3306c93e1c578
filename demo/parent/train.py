"""Pre-train the tiny parent (Muon and AdamW): `python -m coe.demo.parent.train --folder FOLDER`, then export it.

The run is seeded, keeps a checkpoint a minute in the folder and goes on from it when started again.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

from ..curriculum import DOMAINS
from .exam import accuracy, next_tokens
from .examples import Examples, Mix, all_questions, make_tokenizer
from .gemma4 import ModelShape
from .model import TinyParent
from .muon import Muon
from .specialisation import Specialisation, drop_experts, gate_mass, router_losses
from .tokenizer import Tokenizer

CHECKPOINT: Final = "checkpoint.pt"


@dataclass(frozen=True)
class TrainingPlan:
    """How to train."""

    seed: int = 0
    steps: int = 5000
    rate: float = 3e-3
    matrix_rate: float = 0.02
    matrix_decay: float = 0.05
    warmup: int = 100  # steps
    cooldown: float = 0.5  # share of the steps, at the end, over which the rates fall to nothing
    mix: Mix = field(default_factory=Mix)
    specialisation: Specialisation = field(default_factory=Specialisation)


def rate_share(step: int, plan: TrainingPlan) -> float:
    """What share of the learning rates a step uses: up, level, and down to nothing at the end."""
    left = (plan.steps - step) / (plan.cooldown * plan.steps)
    return min(1.0, (step + 1) / plan.warmup, max(left, 0.0))


class Trainer:
    """A run: the network, its optimiser and everything else that a checkpoint has to hold."""

    def __init__(self, folder: Path, plan: TrainingPlan, shape: ModelShape, device: str = "cpu") -> None:
        torch.manual_seed(plan.seed)
        self.folder, self.plan, self.device = folder, plan, torch.device(device)
        self.questions = all_questions()
        self.tokenizer = make_tokenizer(self.questions, shape.vocabulary)
        self.model = TinyParent(replace(shape, vocabulary=len(self.tokenizer))).to(self.device)
        shape = self.model.shape
        within = {n: p for n, p in self.model.named_parameters() if p.ndim > 1 and "blk" in n and "gate_inp" not in n}
        rest = [p for n, p in self.model.named_parameters() if n not in within]
        self.matrices = Muon(list(within.values()), plan.matrix_decay)
        self.rest = torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.mass = torch.full((shape.layers, len(DOMAINS), shape.experts), 1 / shape.experts)
        self.step = 0
        self.seconds = 0.0
        self._examples = Examples(self.questions, self.tokenizer, plan.mix)

    def train_step(self) -> dict[str, float]:
        """One step; its losses."""
        plan, special = self.plan, self.plan.specialisation
        # Drawn from the step's number, so that a run that goes on sees what it would have seen.
        batch = self._examples.batch(random.Random(f"{plan.seed} {self.step}")).to(self.device)
        blocked = None
        if self.step >= special.dropout_from:
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + self.step)
            blocked = drop_experts(self.mass, batch.domains, special, generator).to(self.device)
        logits, targets, routings = next_tokens(self.model, batch, blocked)
        answers = functional.cross_entropy(logits, targets)
        domain_of_token = batch.domains[batch.documents.flatten()]
        narrowing, balance = router_losses(routings, domain_of_token, special.domain_experts)
        loss = answers + special.narrowing * narrowing + special.balance * balance
        share = rate_share(self.step, plan)
        self.rest.param_groups[0]["lr"] = share * plan.rate
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.rest.step()
        self.matrices.step(share * plan.matrix_rate)
        self.model.zero_grad()
        mass = gate_mass(routings, domain_of_token, self.model.shape.experts).cpu()
        seen = mass.sum(-1, keepdim=True) > 0
        self.mass = torch.where(seen, self.mass.lerp(mass, 0.02), self.mass)
        self.step += 1
        return {"loss": answers.item(), "narrowing": narrowing.item(), "balance": balance.item()}

    def save(self) -> None:
        """Write the checkpoint beside and rename it: a run may be stopped at any moment."""
        state = {
            "model": self.model.state_dict(),
            "rest": self.rest.state_dict(),
            "matrices": self.matrices.momenta,
            "mass": self.mass,
            "step": self.step,
            "seconds": self.seconds,
            "plan": asdict(self.plan),
            "shape": asdict(self.model.shape),
            "pieces": list(self.tokenizer.pieces),
        }
        beside = self.folder / (CHECKPOINT + ".part")
        torch.save(state, beside)
        beside.replace(self.folder / CHECKPOINT)

    def resume(self) -> bool:
        """Go on from the folder's checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if list(self.tokenizer.pieces) != state["pieces"] or asdict(self.model.shape) != state["shape"]:
            raise SystemExit(f"{path} is of another curriculum or shape; give another --folder.")
        self.model.load_state_dict(state["model"])
        self.rest.load_state_dict(state["rest"])
        self.matrices.momenta = state["matrices"]
        self.mass, self.step, self.seconds = state["mass"].cpu(), state["step"], state["seconds"]
        return True

    def report(self, count: int = 100) -> dict[str, float]:
        """Accuracy on some held-out questions of each domain."""
        draw = random.Random(self.plan.seed)
        result = {}
        for domain in DOMAINS:
            held_out = [q for q in self.questions[domain] if q.held_out]
            asked = draw.sample(held_out, min(count, len(held_out)))
            right = accuracy(self.model, self.tokenizer, asked)
            result[domain] = sum(right) / len(right)
        return result


def load_checkpoint(path: Path) -> tuple[TinyParent, Tokenizer]:
    """A checkpoint's network and tokenizer."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = TinyParent(ModelShape(**state["shape"]))
    model.load_state_dict(state["model"])
    return model, Tokenizer(state["pieces"])


def run(trainer: Trainer, *, say: Callable[[str], None], report_every_s: float = 120.0) -> None:
    """Train to the end of the plan, with a checkpoint a minute and a report every few."""
    said = saved = reported = time.monotonic()
    while trainer.step < trainer.plan.steps:
        start = time.monotonic()
        losses = trainer.train_step()
        now = time.monotonic()
        trainer.seconds += now - start
        if now - said > 10:
            said = now
            rest = (trainer.plan.steps - trainer.step) * trainer.seconds / trainer.step
            figures = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            say(f"step {trainer.step}/{trainer.plan.steps}  {figures}  {rest / 60:.0f} min left")
        if now - saved > 60:
            saved = now
            trainer.save()
        if now - reported > report_every_s:
            reported = now
            say("held-out, right: " + "  ".join(f"{k} {v:.0%}" for k, v in trainer.report().items()))
    trainer.save()
    say("held-out, right: " + "  ".join(f"{k} {v:.1%}" for k, v in trainer.report(1000).items()))


def _keep_freed_memory() -> None:
    """glibc gives large blocks back to the system and takes them again each step, which costs a fifth of the time."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in ((-1, 2**30), (-3, 2**30)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            if hasattr(libc, "mallopt"):
                libc.mallopt(option, value)


def _plain(settings: Any) -> dict[str, int | float]:
    """Settings that a command line can give."""
    return {name: value for name, value in asdict(settings).items() if isinstance(value, int | float)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/tiny-parent"), help="checkpoint and report go here")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch likes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--report-every", type=float, default=120.0, help="seconds between reports")
    parts: dict[str, Any] = {
        "plan": TrainingPlan(),
        "mix": Mix(),
        "specialisation": Specialisation(),
        "shape": ModelShape(),
    }
    for title, defaults in parts.items():
        group = parser.add_argument_group(title)
        for name, value in _plain(defaults).items():
            group.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    _keep_freed_memory()
    plan, mix, specialisation, shape = (
        replace(defaults, **{name: given[name] for name in _plain(defaults)}) for defaults in parts.values()
    )
    folder: Path = given["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(folder, replace(plan, mix=mix, specialisation=specialisation), shape, given["device"])
    resumed = trainer.resume()
    start = f", from step {trainer.step}" if resumed else ""
    print(f"{trainer.model.count():,} parameters on {given['device']}{start}", flush=True)
    try:
        run(trainer, say=lambda line: print(line, flush=True), report_every_s=given["report_every"])
    except KeyboardInterrupt:
        raise SystemExit("\nStopped; started again it goes on from the last checkpoint.") from None


if __name__ == "__main__":
    main()

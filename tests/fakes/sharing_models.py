"""Specialists of one parent that share a resident, and what a fresh load of them says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.demo.curriculum import questions
from coe.demo.parent.chat import prompt
from coe.engine.generate.prompt import PromptReader
from coe.engine.generate.renderer import InProcess
from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.request import GenerateRequest
from coe.engine.spec import Kept, LoadSpec, Member, Sharing
from coe.engine.swap.swapper import Swapper
from coe.engine.worker.batch import BatchLoop
from coe.surgery.cut.cut import cut, kept_experts, write_skeleton
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.profile.tap import TappedContext
from fakes.local_engine import GREEDY, Answer, LocalEngine
from fakes.random_moe import random_mask, write_random_moe

PROMPT = (2, 20, 30, 40, 50, 60, 70)


class College:
    """A parent and its specialists, files of their own or (`masks_only`) masks that have a skeleton in common."""

    def __init__(self, folder: Path, parent: Path, masks: Mapping[str, Mask], masks_only: Sequence[str] = ()) -> None:
        self.folder = folder
        self.parent = Parent.open(parent)
        self.masks = dict(masks)
        members = []
        for name, mask in masks.items():
            if name in masks_only:
                path = folder / f"skeleton-{mask.n_keep}.gguf"
                write_skeleton(self.parent, mask.n_keep, path)
                members.append(Member(name, path, parent, kept=kept_of(self.parent, mask)))
            else:
                path = folder / f"{name}.gguf"
                cut(self.parent, mask, path)
                members.append(Member(name, path))
        self.members = tuple(members)

    @classmethod
    def random(cls, folder: Path, *, keep: int = 4, names: str = "abc", masks_only: str = "", **shape: Any) -> College:
        """Specialists that keep random experts of a random parent."""
        path = write_random_moe(folder / "parent.gguf", **shape)
        parent = Parent.open(path)
        masks = {name: random_mask(parent, keep, seed=seed) for seed, name in enumerate(names)}
        return cls(folder, path, masks, masks_only)

    def spec(self, first: str = "a", *, check: bool = True, **fields: Any) -> LoadSpec:
        """How the resident is loaded, beginning as one of the specialists."""
        values = {"context_tokens": 256, "parallel": 1, "threads": 1, **fields}
        sharing = values.pop("sharing", Sharing(self.members, check=check))
        return LoadSpec(self.folder / "none.gguf", sharing=sharing, **values).loaded_as(first)

    def fresh(self, name: str, order: Mapping[int, Sequence[int]], **fields: Any) -> NDArray[np.float32]:
        """Logits of a fresh load of a file that has the specialist's experts in the resident's slots.

        fields: of its spec, those that the resident was loaded with.
        """
        keep = self.masks[name].keep
        slots = {layer: [keep[layer][index] for index in order[layer]] for layer in keep}
        path = self.folder / "fresh.gguf"
        cut(self.parent, self.masks[name], path, slots=slots)
        spec = self.spec(name, **fields, sharing=Sharing((Member(name, path),)))
        model = Model(spec)
        try:
            return logits(model, spec)
        finally:
            model.close()


def kept_of(parent: Parent, mask: Mask) -> Kept:
    """What a member keeps that is a mask."""
    return tuple(sorted(kept_experts(parent.experts, mask).items()))


def logits(model: Model, spec: LoadSpec) -> NDArray[np.float32]:
    """After a fixed prompt, in a context of its own."""
    context = Context(model, spec)
    try:
        last = len(PROMPT) - 1
        assert context.decode([(token, at, 0, at == last) for at, token in enumerate(PROMPT)]) == 0
        return np.array(context.logits(last))
    finally:
        context.close()


class SharedEngine(LocalEngine):
    """A batch loop whose resident becomes what requests ask for, by a clock that only told times advance."""

    def __init__(self, model: Model, spec: LoadSpec, *, swap_s: float = 0.0, step_s: float = 0.0) -> None:
        """swap_s, step_s: what a swap and a decode take."""
        self.model = model
        self.swapper = Swapper(model, spec)
        self.context = Context(model, spec)
        self.events = []
        self.time_s = 0.0
        self.slices: list[tuple[float, int]] = []  # when a time slice began, and of which specialist
        self._spend(self.context, "decode", step_s)
        self._spend(self.swapper, "swap", swap_s)
        prompts = PromptReader(model, spec, renderer=InProcess)  # no stranger's template
        self.loop = BatchLoop(
            model,
            self.context,
            spec,
            self.events.append,
            swapper=self.swapper,
            now=lambda: self.time_s,
            prompts=prompts,
        )
        self._ids = itertools.count()

    def _spend(self, owner: Any, name: str, seconds: float) -> None:
        whole = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            self.time_s += seconds
            result = whole(*arguments)
            if name == "swap":
                self.slices.append((self.time_s, arguments[0]))
            return result

        setattr(owner, name, timed)

    def submit_to(self, specialist: str, text: str | list[dict[str, str]], **fields: Any) -> str:
        """Queue a request for one of the specialists."""
        request_id = f"r{next(self._ids)}"
        what: dict[str, Any] = {"prompt": text} if isinstance(text, str) else {"messages": text}
        defaults = {"sampling": GREEDY, "max_tokens": 16, "loop_guard": None}
        self.loop.submit(GenerateRequest(request_id, specialist, **what, **{**defaults, **fields}))
        return request_id

    def ask_of(self, specialist: str, text: str | list[dict[str, str]], **fields: Any) -> Answer:
        """Queue, run, and give the answer."""
        request_id = self.submit_to(specialist, text, **fields)
        self.run()
        return self.answer(request_id)


def domain_masks(parent: Path, domains: Sequence[str], keep: int, *, of: int = 48) -> dict[str, Mask]:
    """For each domain the experts that the router weighs most while it reads some questions and their answers."""
    found = Parent.open(parent)
    model = Model(LoadSpec(parent))
    spec = LoadSpec(parent, context_tokens=512, parallel=1, threads=1)
    tapped = TappedContext(model, spec, found.experts)
    masks = {}
    try:
        for domain in domains:
            mass = np.zeros((len(found.experts.layers), found.experts.n_expert))
            taught = [question for question in questions(domain) if not question.held_out]
            for question in taught[:: max(1, len(taught) // of)]:
                conversation = [{"role": "user", "content": question.text}]
                text = prompt(conversation, thinking=False) + question.answer
                _, observed = tapped.evaluate(model.vocab.tokenize(text))
                for row, (chosen, weights) in enumerate(zip(observed.chosen, observed.weights, strict=True)):
                    np.add.at(mass[row], chosen[chosen >= 0], weights[chosen >= 0])
            kept = {
                layer: tuple(sorted(int(expert) for expert in np.argsort(-row)[:keep]))
                for layer, row in zip(found.experts.layers, mass, strict=True)
            }
            masks[domain] = Mask(found.identity(), kept)
    finally:
        tapped.close()
        model.close()
    return masks

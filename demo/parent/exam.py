"""Evaluation in torch: greedy exact-match accuracy on questions, and the gate mass of each expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..curriculum import DOMAINS, CurriculumQuestion
from .chat import prompt
from .examples import Batch, document_of, pack
from .model import Routing, TinyParent
from .specialisation import gate_mass
from .tokenizer import END_OF_TURN, Tokenizer


def next_tokens(model: TinyParent, batch: Batch, blocked: Tensor | None = None) -> tuple[Tensor, Tensor, list[Routing]]:
    """Logits at the positions before each learnt token, those tokens, and the routing of every token."""
    before = torch.zeros_like(batch.learnt)
    before[:, :-1] = batch.learnt[:, 1:]
    logits, routings = model(batch.tokens, documents=batch.documents, wanted=before, blocked=blocked)
    return logits, batch.tokens[batch.learnt], routings


def accuracy(
    model: TinyParent, tokenizer: Tokenizer, asked: Sequence[CurriculumQuestion], *, keep: Tensor | None = None
) -> list[bool]:
    """For each question, whether greedy decoding, thinking closed, gives the taught answer word for word.

    One pass with the right answer given tells: greedy decoding gives it if and only if each of its tokens is the
    likeliest after those before. keep: [L, E] bool, experts that are left.
    """
    right: list[bool] = []
    for batch in _asked(model, tokenizer, asked):
        blocked = None if keep is None else ~keep[:, None].expand(-1, len(batch.domains), -1).to(batch.tokens.device)
        with torch.no_grad():
            logits, targets, _ = next_tokens(model, batch, blocked)
        wrong = torch.zeros(len(batch.domains), dtype=torch.long, device=batch.tokens.device)
        wrong.index_add_(0, batch.documents[batch.learnt], (logits.argmax(-1) != targets).long())
        right += (wrong[1:] == 0).tolist()
    return right


def mass_of(model: TinyParent, tokenizer: Tokenizer, asked: Sequence[CurriculumQuestion]) -> Tensor:
    """Mean router weight [L, E] of each expert over questions and their answers, thinking closed."""
    total, tokens = torch.zeros(model.shape.layers, model.shape.experts), 0
    for batch in _asked(model, tokenizer, asked):
        with torch.no_grad():
            _, _, routings = next_tokens(model, batch)
        read = batch.documents.flatten() > 0
        total += gate_mass(routings, read.long() - 1, model.shape.experts)[:, 0].cpu() * read.sum().cpu()
        tokens += int(read.sum())
    return total / tokens


def _asked(model: TinyParent, tokenizer: Tokenizer, asked: Sequence[CurriculumQuestion]) -> Iterator[Batch]:
    """Questions with their answers to be learnt, one a row."""
    for start in range(0, len(asked), 128):
        documents = [
            document_of(
                tokenizer,
                prompt([{"role": "user", "content": question.text}], thinking=False),
                question.answer + END_OF_TURN,
                DOMAINS.index(question.domain),
            )
            for question in asked[start : start + 128]
        ]
        yield pack([[d] for d in documents], max(len(d.tokens) for d in documents)).to(model.token_embd.device)

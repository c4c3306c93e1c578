"""Router losses and expert dropout that give a tiny parent experts for its domains, so that half of them can go.

A large parent has experts to spare and domains that found experts of their own. A tiny one has to be given both, in
three ways; once training is over the router's choice alone decides.
- Narrowing: a domain whose tokens spread over more experts than `domain_experts` (by the entropy of its mean router
  probabilities) is penalised; which experts it takes, and which it shares with other domains, is left to the task.
- Balance: all domains together are to use all experts, a weak pull on the mean over the whole batch.
- Expert dropout: for half of the conversations the experts that their domain uses least are blocked, a random number
  of them, so that the rest learn to do without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..curriculum import DOMAINS
from .model import Routing


@dataclass(frozen=True)
class Specialisation:
    """How strongly, and from when on."""

    domain_experts: float = 20.0  # perplexity
    narrowing: float = 0.1  # weight of the loss
    balance: float = 0.2  # weight of the loss
    dropout_from: int = 300  # step
    dropout: float = 0.5  # share of conversations
    dropout_keep: int = 28  # experts at least
    dropout_noise: float = 0.5  # spread of the ranking, in log gate mass


def gate_mass(routings: Sequence[Routing], domain_of_token: Tensor, experts: int) -> Tensor:
    """Mean router weight of each expert for each domain's tokens [L, D, E]; zero for a domain without tokens."""
    member = functional.one_hot(domain_of_token + 1, len(DOMAINS) + 1)[:, 1:].float()
    share = member / member.sum(0).clamp_min(1)
    masses = []
    for routing in routings:
        used = torch.zeros(len(member), experts, device=member.device)
        masses.append(share.T @ used.scatter(1, routing.chosen, routing.weights.detach()))
    return torch.stack(masses)


def entropy(distribution: Tensor) -> Tensor:
    """In nats, over the last axis."""
    return -(distribution * distribution.clamp_min(1e-9).log()).sum(-1)


def router_losses(routings: Sequence[Routing], domain_of_token: Tensor, domain_experts: float) -> tuple[Tensor, Tensor]:
    """How far domains spread beyond `domain_experts`, and how far all of them together are from using all experts.

    Both in nats, means over layers. A domain counts as much as any other, however many tokens it has.
    """
    member = functional.one_hot(domain_of_token + 1, len(DOMAINS) + 1)[:, 1:].float()
    member = member[:, member.sum(0) > 0]
    share = member / member.sum(0)
    probabilities = torch.stack([share.T @ routing.probabilities for routing in routings])  # [L, D, E]
    narrowing = (entropy(probabilities) - math.log(domain_experts)).clamp_min(0).mean()
    balance = (math.log(probabilities.shape[-1]) - entropy(probabilities.mean(1))).mean()
    return narrowing, balance


def drop_experts(mass: Tensor, domains: Tensor, plan: Specialisation, generator: torch.Generator) -> Tensor:
    """Experts to block [L, documents, E]: of a document's domain the least used, none for a share of the documents.

    mass: [L, D, E].
    """
    layers, _, experts = mass.shape
    drawn = torch.rand(layers, len(domains), experts, generator=generator).clamp(1e-6, 1 - 1e-6)
    noise = -plan.dropout_noise * (-drawn.log()).log()  # Gumbel
    score = mass[:, domains.clamp_min(0).cpu()].clamp_min(1e-5).log().cpu() + noise
    rank = score.argsort(-1, descending=True).argsort(-1)
    keep = torch.randint(plan.dropout_keep, experts + 1, (len(domains),), generator=generator)
    keep[torch.rand(len(domains), generator=generator) >= plan.dropout] = experts
    return rank >= keep[None, :, None]

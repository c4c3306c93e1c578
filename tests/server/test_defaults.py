"""Defaults that stand in two places, held equal: all others are read from where they are used.

The second place is a type that takes no other module's word (a Literal), or a command's option, which is shown before
any module of the engine is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from coe.engine.spec import LoadSpec, Thinking
from coe.router.training import thresholds
from coe.server.commands import router as commands
from coe.server.commands.surgery.eval import evaluate
from coe.server.commands.surgery.plan import plan
from coe.server.commands.surgery.profile import profile
from coe.server.roster.models import RouterSection, SpecialistSettings, ThinkingSection
from coe.surgery.build.job import BuildOrder
from coe.surgery.judge.generation import DEFAULT
from coe.surgery.plan.criteria import score
from coe.surgery.plan.recipes import Recipe
from coe.surgery.profile.fitting import CONTEXT_TOKENS


def test_the_roster_has_the_defaults_of_the_engine() -> None:
    assert SpecialistSettings().kv_type == LoadSpec.kv_type
    assert ThinkingSection().mode == Thinking().mode


def default(function: Callable[..., Any], parameter: str) -> Any:
    return inspect.signature(function).parameters[parameter].default


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (commands.train_router, "encoder", RouterSection().encoder),
        (commands.fit_thresholds, "most_wrong", default(thresholds.fit_thresholds, "most_wrong")),
        (plan, "recipe", Recipe.name),
        (plan, "seed", BuildOrder.seed),
        (profile, "criterion", default(score, "criterion")),
        (profile, "context", CONTEXT_TOKENS),
        (profile, "max_tokens", BuildOrder.max_tokens),
        (evaluate, "max_tokens", DEFAULT.max_tokens),
        (evaluate, "seed", DEFAULT.seed),
        *(
            (command, option, getattr(LoadSpec, option))
            for command in (profile, evaluate)
            for option in ("gpu_layers", "cpu_expert_layers", "threads")
        ),
    ],
)
def test_an_option_of_the_command_line_has_the_default_of_what_it_sets(
    command: Callable[..., Any], option: str, value: Any
) -> None:
    assert default(command, option) == value

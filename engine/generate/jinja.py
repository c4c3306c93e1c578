"""Chat templates in Jinja: the sandbox they run in, what they find there, and literals that stay known as theirs.

A template is a program by strangers. What it may reach is the sandbox's matter, what it may cost that of the process it
runs in: see render_process.
"""

from __future__ import annotations

import datetime
import functools
import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Environment, Template
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import do_trim, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .origin import Own, between, joined

# Names of roles are ours and not a client's: some templates make a control token of one.
ROLES: Final = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


class RefusedError(Exception):
    """A template called raise_exception."""


class _LiteralsAreOwn(CodeGenerator):
    """Writes each text that stands in a template as one of its own, and joins texts without forgetting that."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(f"environment.own({node.data!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({''.join(map(str, group))!r})"


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _LiteralsAreOwn
    concat = staticmethod(joined)
    own = staticmethod(functools.lru_cache(maxsize=None)(Own.literal))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped: Callable[..., str] | None = super().wrap_str_format(value)
        text = getattr(value, "__self__", None)
        if wrapped is None or not isinstance(text, Own) or value.__name__ != "format":
            return wrapped
        plain = wrapped

        def format_(*values: Any, **named: Any) -> str:
            made = plain(*values, **named)
            return made if named else text.filled("{}", values, made)

        return format_


class _Generation(Extension):
    """`{% generation %}` marks what a model was trained to write; a prompt has no use for it."""

    tags = {"generation"}  # noqa: RUF012 -- as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compiled(source: str) -> Template:
    """A template, ready to render. Raises TemplateError when the source is none; it may take any time."""
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[LoopControlExtension, _Generation],
        optimized=False,  # folded lists of constants would be plain texts
        cache_size=0,
    )
    environment.filters["tojson"] = _to_json
    environment.filters["safe"] = lambda value: value  # nothing is escaped
    environment.filters["trim"] = lambda value, chars=None: do_trim(_as_text(value), chars)
    environment.filters["join"] = _join
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def rendered(
    template: Template, messages: Sequence[Mapping[str, Any]], own: Mapping[str, str], flags: Mapping[str, Any]
) -> str:
    """A conversation as the template writes it: an Own, or a plain text where nothing of it is the template's.

    own: texts that are as good as the template's, such as bos_token. flags: other variables.
    Raises whatever the template does: RefusedError for what it refuses itself.
    """
    return template.render(
        messages=[_message(message) for message in messages],
        **{name: Own.literal(text) for name, text in own.items()},
        **flags,
    )


def told(error: Exception) -> str:
    """What went wrong and in which line of the template."""
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == "<template>"]
    said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return f"line {lines[-1]}: {said}" if lines else said


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    return {**message, "role": Own.literal(role)} if role in ROLES else dict(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Source: transformers, utils/chat_template_utils.py, whose filter templates are written for."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    parts = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return joined(between(d, parts))


def _refuse(message: Any = "") -> None:
    raise RefusedError("" if isinstance(message, Undefined) else str(message))

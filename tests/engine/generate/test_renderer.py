"""Templates that are made to hurt cost their own process and nothing else, and say what they did."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from coe.engine.errors import ModelTemplateError, TemplateError
from coe.engine.generate.origin import spans_of
from coe.engine.generate.renderer import InProcess, Limits, RenderProcess

pytestmark = pytest.mark.slow

QUICK = Limits(cpu_s=1, memory_bytes=128 * 2**20)
HI = [{"role": "user", "content": "Hi"}]
LATER = "{% if messages | length > 2 %}LATE{% endif %}{{ messages[-1].content }}<end>"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"
)


@pytest.fixture
def render(request: pytest.FixtureRequest) -> Iterator[RenderProcess]:
    with closing(RenderProcess(request.param, QUICK)) as process:
        yield process


@pytest.mark.parametrize(
    ("render", "how"),
    [
        (ENDLESS, "takes more than 1 s of processor time"),
        ("{{ 10**(10**9) }}", "takes more than 1 s of processor time|needs more than"),
        (DOUBLED, "needs more than 128 MiB of memory"),
        ("{{ 'x' * 10**11 }}", "needs more than 128 MiB of memory"),
        ("{{ [0] * 10**10 }}", "needs more than 128 MiB of memory"),
        (
            "{{ messages[0].content * 5000000 }}",
            "grows beyond bounds: it makes 10000000 characters of a conversation of",
        ),
    ],
    indirect=["render"],
)
def test_a_template_over_its_bounds_is_stopped(render: RenderProcess, how: str) -> None:
    with pytest.raises(ModelTemplateError, match=how):
        render.render(HI, {}, {})


@pytest.mark.parametrize(
    "render", [LATER.replace("LATE", ENDLESS), LATER.replace("LATE", "{{ 'x' * 10**11 }}")], indirect=True
)
def test_one_that_misbehaves_only_later_spoils_that_conversation_alone(render: RenderProcess) -> None:
    assert render.render(HI, {}, {}) == "Hi<end>"
    with pytest.raises(ModelTemplateError):
        render.render(HI * 3, {}, {})
    text = render.render(HI, {}, {})
    assert text == "Hi<end>"
    assert spans_of(text) == ((2, 7),)


@pytest.mark.parametrize("render", ["{{ messages[0].content }}"], indirect=True)
def test_a_process_that_dies_is_replaced(render: RenderProcess) -> None:
    assert render.render(HI, {}, {}) == "Hi"
    assert render._process is not None
    os.kill(render._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, render._process.pid, os.WEXITED | os.WNOWAIT)
    assert render.render(HI, {}, {}) == "Hi"


def test_all_renderings_together_may_be_bounded_too() -> None:
    source = "{% for a in range(60) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"
    over = pytest.raises(ModelTemplateError, match="takes more than 1 s of processor time")
    with closing(RenderProcess(source, Limits(cpu_s=60, total_cpu_s=1))) as process, over:
        _ = [process.render(HI, {}, {}) for _ in range(100)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a\n\n{% for %}", "broken: line 3: Expected an expression"),
        ("{{ 'a }}", "broken: line 1: unexpected char"),
        ("a\n{{ \x1b[2J }}", r"broken: line 2: .*\\x1b"),
        ("{{ \x00 }}", r"broken: line 1: .*\\x00"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "broken: RecursionError"),
        ("\n{{ messages.nothing.more }}", "fails on this conversation: line 2: .*has no attribute 'nothing'"),
        ("\n\n{{ 1 / 0 }}", "fails on this conversation: line 3: ZeroDivisionError: division by zero"),
        ("{{ raise_exception('no\x1b[31m\nway') }}", r"refuses this conversation: no\\x1b\[31m\\nway"),
        ("{{ raise_exception() }}", "refuses this conversation: it does not say why"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
@pytest.mark.parametrize("kind", [RenderProcess, InProcess])
def test_what_is_wrong_with_a_template_is_said_in_one_line(
    kind: type[RenderProcess | InProcess], source: str, said: str
) -> None:
    with closing(kind(source)) as renderer, pytest.raises((TemplateError, ModelTemplateError), match=said) as caught:
        renderer.render(HI, {}, {})
    assert caught.value.message.isprintable()


def test_the_process_knows_none_of_the_keys_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with closing(RenderProcess("x")) as process:
        process.compile()
        assert process._process is not None
        with open(f"/proc/{process._process.pid}/environ", "rb") as environment:
            assert b"hf_secret" not in environment.read()
        assert 0 < process.rss_bytes < 64 * 2**20

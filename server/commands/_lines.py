"""Lines on a terminal: printed as they are meant, whatever a file or a client has in the texts that they name."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from coe.engine.text import printable


class PlainConsole(Console):
    """A console that prints control characters of whatever is printed, in a table as well, as escapes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich.console.Console. The line breaks are rich's own and ours: names go by way of `print_line`."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                text = "\n".join(printable(line, len(line)) for line in segment.text.split("\n"))
                yield Segment(text, segment.style)


def console(*, stderr: bool = False) -> Console:
    """Standard output, or the error stream, as the commands write to it."""
    return PlainConsole(stderr=stderr, highlight=False, emoji=False)


def print_line(out: Console, text: str, style: str | None = None) -> None:
    """Print one line: no markup, no escape sequences or line breaks out of names, wrapped by the terminal."""
    out.print(printable(text, len(text)), style=style, markup=False, highlight=False, soft_wrap=True)

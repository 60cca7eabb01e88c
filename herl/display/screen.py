"""rich's console for herl: it shows texts literally, without control characters and without markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style

from herl.prompt_text import visible


class Screen(Console):
    """A console whose texts, table cells and titles need no escaping. Styles are given as styles.

    Args:
        stderr: Whether to write to standard error.
        width: In characters; None for that of the terminal.
        file: Where to write instead.
    """

    def __init__(
        self, *, stderr: bool = False, width: int | None = None, file: IO[str] | None = None
    ) -> None:
        super().__init__(stderr=stderr, width=width, file=file, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yields what rich draws, segment by segment."""
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own, such as moving up a line
                yield segment
            else:
                yield Segment(visible(segment.text), _without_link(segment.style))


def _without_link(style: Style | None) -> Style | None:
    return style.update_link(None) if style is not None and style.link else style

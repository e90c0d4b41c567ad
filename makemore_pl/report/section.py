"""What a page is made of: sections of blocks, rendered by templates that know one block each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from makemore_pl.figures.canvas import inline, svg


@dataclass(slots=True)
class Picture:
    name: str
    """Unique in the page; file name where it is kept."""
    figure: Figure
    alt: str
    """What it says, for those who can't see it."""
    caption: str = ""
    kept: bool = True
    """Whether it is also saved as PNG and SVG."""

    _svg: str = ""

    @property
    def svg(self) -> str:
        """As a file of its own."""
        self._svg = self._svg or svg(self.figure)
        return self._svg

    @property
    def inline(self) -> Markup:
        """As a part of the page."""
        return Markup(inline(self.svg, self.name, str(escape(self.alt))))


@dataclass(slots=True)
class Frame:
    """Pictures of one step."""

    step: int
    pictures: list[Picture]
    key: bool
    """Whether it is shown where there is no slider: on paper, without JavaScript."""


@dataclass(slots=True)
class Note:
    kind: ClassVar = "note"
    text: str
    missing: bool = False
    """Says why there is nothing to see."""


@dataclass(slots=True)
class Tiles:
    """Numbers worth large type: label, number, remark."""

    kind: ClassVar = "tiles"
    tiles: list[tuple[str, str, str]]


@dataclass(slots=True)
class Table:
    """Cells are text, or (text, number to sort by). The first column heads its row."""

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[str]
    rows: list[list[Any]]
    sortable: bool = False
    best: int | None = None
    """A row to be marked."""

    def cells(self) -> list[list[tuple[str, float | str]]]:
        return [[cell if isinstance(cell, tuple) else (cell, cell) for cell in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """By column: whether its cells are numbers, or the dash of a missing one."""
        columns = zip(*self.cells(), strict=True)
        return [all(re.fullmatch(r"[-+−–\d][-−\d.,e→± ]*k?", text) for text, _ in column) for column in columns]


@dataclass(slots=True)
class Pictures:
    kind: ClassVar = "pictures"
    pictures: list[Picture]


@dataclass(slots=True)
class Frames:
    """The same pictures at several steps: a slider, or small multiples of the key frames."""

    kind: ClassVar = "frames"
    label: str
    frames: list[Frame]
    small: bool = False
    """Three beside each other, where there is room."""


@dataclass(slots=True)
class Names:
    """Generated names by step."""

    kind: ClassVar = "names"
    columns: list[tuple[str, list[str]]]


@dataclass(slots=True)
class Code:
    kind: ClassVar = "code"
    text: str
    summary: str = ""
    """Folded behind this, where given."""


Block = Note | Tiles | Table | Pictures | Frames | Names | Code


@dataclass(slots=True)
class Section:
    title: str
    blocks: list[Block]

    @property
    def id(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(slots=True)
class Page:
    title: str
    lead: str
    sections: list[Section]
    kept: list[Picture] = field(default_factory=list)
    """Pictures to be saved that the page itself does not show."""

    def pictures(self) -> list[Picture]:
        """Every picture that is to be saved."""
        shown = [
            picture
            for section in self.sections
            for block in section.blocks
            for picture in (
                block.pictures
                if isinstance(block, Pictures)
                else [each for frame in block.frames for each in frame.pictures]
                if isinstance(block, Frames)
                else []
            )
        ]
        return [picture for picture in [*shown, *self.kept] if picture.kept]

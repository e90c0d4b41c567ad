"""What a page is made of: sections of blocks, rendered by templates that know one block each."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from makemore_pl.figures.canvas import coloured, inline, svg
from makemore_pl.figures.film import Film, panel


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
class Scene:
    """A picture that moves with the slider. Its axes are in the page once, each step refers to them."""

    name: str
    """Unique in the page."""
    film: Film
    alts: Mapping[int, str]
    """What it says, by step."""

    @property
    def stage(self) -> Markup:
        """What stays: an SVG without size, to refer to."""
        whole = inline(svg(self.film.stage), self.name, "")
        inside = whole[whole.index(">") + 1 : whole.rindex("</svg>")]
        x, y, width, height = panel(self.film.stage.axes[0])
        clip = f'<rect x="{x:.1f}" y="{y - 3:.1f}" width="{width:.1f}" height="{height + 3:.1f}"/>'
        return Markup(
            f'<svg class="stage" aria-hidden="true"><defs><clipPath id="{self.name}-panel">{clip}</clipPath>'
            f'<g id="{self.name}-stage">{inside}</g></defs></svg>'
        )

    def at(self, step: int) -> Markup:
        """The picture at a step; at one that it has not, the last before it, or the first."""
        shown = max((each for each in self.film.moves if each <= step), default=min(self.film.moves))
        width, height = self.film.stage.get_size_inches() * 72
        return Markup(
            f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(self.alts[shown])}">'
            f'<use href="#{self.name}-stage"/>'
            f'<g clip-path="url(#{self.name}-panel)">{coloured(self.film.moves[shown])}</g></svg>'
        )


@dataclass(slots=True)
class Note:
    kind: ClassVar = "note"
    text: str
    missing: bool = False
    """Says why there is nothing to see."""


@dataclass(slots=True)
class Finding:
    """One of the doctor's, and below it those that follow from it."""

    id: str
    title: str
    """In words; nothing where no rule has this id."""
    severity: str
    colour: str
    """Severity among those that the page has a colour for."""
    message: str
    details: str
    link: str
    remedies: list[tuple[str, str]]
    """What to type, which may be nothing, and why."""
    followers: list["Finding"]


@dataclass(slots=True)
class Verdict:
    kind: ClassVar = "verdict"
    lead: str
    findings: list[Finding]
    abstained: list[str]


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
        return [all(re.fullmatch(r"[-+−–\d][-+−\d.,e→± ]*k?", text) for text, _ in column) for column in columns]


@dataclass(slots=True)
class Pictures:
    kind: ClassVar = "pictures"
    pictures: list[Picture]


@dataclass(slots=True)
class Frames:
    """Scenes at several steps, under one slider; where there is none, on paper or without JavaScript, at the keys."""

    kind: ClassVar = "frames"
    label: str
    steps: Sequence[int]
    scenes: Sequence[Scene]
    keys: Sequence[int]
    opening: int
    """The step at which the slider stands at first."""


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


Block = Note | Verdict | Tiles | Table | Pictures | Frames | Names | Code


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
    kept: Callable[[], list[Picture]] = list
    """Draws pictures to be saved that the page itself does not show."""

    def pictures(self) -> list[Picture]:
        """Every picture that is to be saved."""
        shown = [
            picture
            for section in self.sections
            for block in section.blocks
            for picture in (block.pictures if isinstance(block, Pictures) else [])
        ]
        return [picture for picture in [*shown, *self.kept()] if picture.kept]

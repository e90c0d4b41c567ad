"""The parts of a page: sections with blocks. For each kind of block there is a template."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from makemore_pl.figures.encoding import coloured, inline, svg
from makemore_pl.figures.film import Film, panel


@dataclass(slots=True)
class Picture:
    name: str
    """Unique in the page. It is also the file name if the picture is saved."""
    figure: Figure
    alt: str
    """The alternative text."""
    caption: str = ""
    kept: bool = True
    """Whether it is also saved as PNG and SVG."""

    _svg: str = ""

    @property
    def svg(self) -> str:
        """The picture as an SVG file."""
        self._svg = self._svg or svg(self.figure)
        return self._svg

    @property
    def inline(self) -> Markup:
        """The picture as SVG within the page."""
        return Markup(inline(self.svg, self.name, str(escape(self.alt))))


@dataclass(slots=True)
class Scene:
    """A picture that changes with the slider. Its axes are in the page once, and each step refers to them."""

    name: str
    """Unique in the page."""
    film: Film
    alts: Mapping[int, str]
    """Step -> alternative text."""

    @property
    def stage(self) -> Markup:
        """The part that does not change: an SVG without size, which each step refers to."""
        whole = inline(svg(self.film.stage), self.name, "")
        inside = whole[whole.index(">") + 1 : whole.rindex("</svg>")]
        x, y, width, height = panel(self.film.stage.axes[0])
        clip = f'<rect x="{x:.1f}" y="{y - 3:.1f}" width="{width:.1f}" height="{height + 3:.1f}"/>'
        return Markup(
            f'<svg class="stage" aria-hidden="true"><defs><clipPath id="{self.name}-panel">{clip}</clipPath>'
            f'<g id="{self.name}-stage">{inside}</g></defs></svg>'
        )

    def at(self, step: int) -> Markup:
        """The picture at a step. If it has none for this step: the last one before it, or the first one."""
        shown = max((drawn for drawn in self.film.moves if drawn <= step), default=min(self.film.moves))
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
    """Whether the text says that something is missing."""


@dataclass(slots=True)
class Finding:
    """A finding of the doctor, with the findings that follow from it."""

    id: str
    title: str
    """The title of the rule; empty if no rule has this id."""
    severity: str
    colour: str
    """The severity, or info if the page has no colour for it."""
    message: str
    details: str
    link: str
    remedies: list[tuple[str, str]]
    """Overrides to type, which may be empty, and the reason."""
    followers: list["Finding"]


@dataclass(slots=True)
class Verdict:
    kind: ClassVar = "verdict"
    lead: str
    findings: list[Finding]
    abstained: list[str]


@dataclass(slots=True)
class Tiles:
    """Numbers in large type: label, number, remark."""

    kind: ClassVar = "tiles"
    tiles: list[tuple[str, str, str]]


@dataclass(slots=True)
class Table:
    """Cells are text, or (text, number to sort by). The first cell is the heading of its row."""

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[str]
    rows: list[list[Any]]
    sortable: bool = False
    best: int | None = None
    """Index of a row to mark."""

    def cells(self) -> list[list[tuple[str, float | str]]]:
        return [
            [cell if isinstance(cell, tuple) else (cell, Markup(cell).striptags()) for cell in row] for row in self.rows
        ]

    def numeric(self) -> list[bool]:
        """For each column, whether all cells are numbers or dashes."""
        columns = zip(*self.cells(), strict=True)
        return [all(re.fullmatch(r"[-+−–\d][-+−\d.,e→± ]*k?", text) for text, _ in column) for column in columns]


@dataclass(slots=True)
class Pictures:
    kind: ClassVar = "pictures"
    pictures: list[Picture]


@dataclass(slots=True)
class Frames:
    """Scenes at several steps, under one slider. On paper and without JavaScript they are shown at the steps `keys`."""

    kind: ClassVar = "frames"
    label: str
    steps: Sequence[int]
    scenes: Sequence[Scene]
    keys: Sequence[int]
    opening: int
    """The step at which the slider starts."""


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
    """If given, the code is folded, and this is shown instead."""


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
    """Draws the pictures that are saved but not shown on the page."""

    def pictures(self) -> list[Picture]:
        """All pictures to save."""
        shown = [
            picture
            for section in self.sections
            for block in section.blocks
            for picture in (block.pictures if isinstance(block, Pictures) else [])
        ]
        return [picture for picture in [*shown, *self.kept()] if picture.kept]

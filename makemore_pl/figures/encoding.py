"""How a figure becomes a file or a part of a page: as SVG, as SVG in the page's colours, as PNG."""

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

from makemore_pl.figures.canvas import BAND, EMBEDDING, FAINT, GRID, INK, LAYERS, MUTED, OUTPUT, RULE
from makemore_pl.figures.fonts import choose_fonts

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    BAND: "--band",
    RULE: "--rule",
    **{colour: f"--layer-{place}" for place, colour in enumerate(LAYERS)},
    OUTPUT: "--output",
    EMBEDDING: "--embedding",
    FAINT: "--faint",
}
"""Colour -> CSS variable of the page, which is different in light and dark mode."""


def svg(figure: Figure) -> str:
    """The figure as SVG text on white; equal figures give equal text."""
    choose_fonts(figure)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "makemore_pl"}):
        figure.savefig(
            buffer,
            format="svg",
            facecolor="white",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return buffer.getvalue()


def inline(text: str, name: str, alt: str) -> str:
    """The SVG prepared for a page: transparent, in the page's font and colours, with ids that are unique in the page.

    Args:
        text: what svg() made.
        name: prefix of all ids; unique in the page.
        alt: the alternative text of the picture, already escaped.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r'<metadata>.*?</metadata>|<g id="patch_1">.*?</g>', "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    viewbox = re.search(r'viewBox="[^"]+"', text)
    assert viewbox
    text = f'<svg {viewbox.group()} role="img" aria-label="{alt}">' + text[text.index(">") + 1 :]
    text = re.sub(r'<g id="hover:([^"]*)">', r"<g><title>\1</title>", text)
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referred else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ((?:\w+ )?)([\d.]+px) [^;\"]+", _font, text)
    text = re.sub(r' d="([^"]+)"', lambda m: f' d="{_rounded(m[1])}"', text)
    return re.sub(r">\s+<", "><", coloured(text))


def coloured(text: str) -> str:
    """SVG in the page's colours."""
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _font(found: re.Match[str]) -> str:
    weight = f"; font-weight: {found[1].strip()}" if found[1].strip() else ""
    return f"font-size: {found[2]}{weight}"


def _rounded(path: str) -> str:
    path = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s+", " ", path).strip()


def png(figure: Figure) -> bytes:
    choose_fonts(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return file.getvalue()

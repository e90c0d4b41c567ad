"""Fonts for any alphabet: of those that are installed, one that has the character, else its code point."""

from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text


@cache
def _family(character: str) -> str | None:
    """An installed font that has this character, the usual one first; None where there is none."""
    usual = font_manager.findfont(font_manager.FontProperties())
    others = [font.fname for font in font_manager.fontManager.ttflist if "Last" not in font.name]  # Apple's last resort
    for path in (usual, *others):
        try:
            font = font_manager.get_font(path)
        except (OSError, RuntimeError):  # gone since the list was made, or of coloured bitmaps
            continue
        if font.get_char_index(ord(character)):
            return font.family_name
    return None


def drawable(text: str) -> str:
    """The text with the code point, such as U+4E2D, for each character that no installed font has."""
    return "".join(each if each.isascii() or _family(each) else f"U+{ord(each):04X}" for each in text)


def choose_fonts(figure: Figure) -> None:
    """Characters of any alphabet are drawn by fonts that have them, or as code points."""
    for text in figure.findobj(Text):
        content = text.get_text()
        if not content.isascii():
            families = [_family(each) for each in content if not each.isascii()]
            others = [family for family in dict.fromkeys(families) if family not in (None, _family("a"))]
            text.set_text(drawable(content))
            text.set_fontfamily([*text.get_fontfamily(), *others])

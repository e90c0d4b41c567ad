"""Fonts for any alphabet: an installed font that has the character; if there is none, its code point is drawn."""

from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text


@cache
def _family(character: str) -> str | None:
    """An installed font that has this character, preferably the default one; None if no font has it."""
    usual = font_manager.findfont(font_manager.FontProperties())
    others = [font.fname for font in font_manager.fontManager.ttflist if "Last" not in font.name]  # Apple's last resort
    for path in (usual, *others):
        try:
            font = font_manager.get_font(path)
        except (OSError, RuntimeError):  # the file is gone since the list was made, or has coloured bitmaps
            continue
        if font.get_char_index(ord(character)):
            return font.family_name
    return None


def drawable(text: str) -> str:
    """The text, with a code point such as U+4E2D in place of each character that no installed font has."""
    return "".join(each if each.isascii() or _family(each) else f"U+{ord(each):04X}" for each in text)


def choose_fonts(figure: Figure) -> None:
    """Let each text of the figure use fonts that have its characters, and code points for those that no font has."""
    for text in figure.findobj(Text):
        content = text.get_text()
        if not content.isascii():
            families = [_family(each) for each in content if not each.isascii()]
            others = [family for family in dict.fromkeys(families) if family not in (None, _family("a"))]
            text.set_text(drawable(content))
            text.set_fontfamily([*text.get_fontfamily(), *others])

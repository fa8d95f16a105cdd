"""Text from outside as a terminal may show it."""

import unicodedata

_KEPT = "\n\t"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Controls, formats (direction overrides among them), lone surrogates, line separators."""
_JOINERS = "\u200c\u200d"  # parts of words and of emoji


def printable(text: object, *, keep: str = _KEPT) -> str:
    """The text with control and format characters written as escapes, except those in `keep`.

    A caption, a prompt or a file name cannot move the cursor, set colours or title, or reorder
    what stands beside it.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep) for character in text)


def one_line(text: object) -> str:
    """The same, on one line."""
    return printable(text, keep="")


def _shown(character: str, keep: str) -> str:
    if character in keep or character in _JOINERS:
        return character
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")

"""Makes prose comparable: full-width characters as ASCII, apostrophes and blanks of one kind."""

from __future__ import annotations

#: Full-width forms (Chinese punctuation and digits), typographic apostrophes, hard blanks.
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_ASCII |= {0x2018: 0x27, 0x2019: 0x27, 0x00A0: 0x20, 0x3000: 0x20}


def plain(text: str) -> str:
    """Return *text*, of the same length, with one spelling for what looks alike."""
    return text if text.isascii() else text.translate(_ASCII)

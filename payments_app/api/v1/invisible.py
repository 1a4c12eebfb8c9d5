"""Invisible characters: two references of one order must not look the same and differ."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# C0, DEL, C1, and line separators: no line of text has them. Then the characters that change the
# order of letters (UAX 9): a reader sees a different text than the stored one.
_NEVER: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
# All spaces but U+0020, the characters that fonts leave out (Default_Ignorable_Code_Point), and the
# others without ink. Only those that a \u with four digits can write.
_INVISIBLE: Final = (
    r"\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u202f"
    r"\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
)
# Musical and shorthand controls, tags, and more variation selectors.
_INVISIBLE_BEYOND: Final = "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"

# In JSON Schema's syntax.
TEXT_PATTERN: Final = rf"^[^{_NEVER}]+$"
REFERENCE_PATTERN: Final = (
    rf"^[^ {_NEVER}{_INVISIBLE}]([^{_NEVER}{_INVISIBLE}]*[^ {_NEVER}{_INVISIBLE}])?$"
)

_NOT_IN_TEXT: Final = re.compile(f"[{_NEVER}]")
_NOT_IN_REFERENCE: Final = re.compile(f"[{_NEVER}{_INVISIBLE}{_INVISIBLE_BEYOND}]|^ | $")


def objection_to_text(value: str) -> str | None:
    """Names the character that one line of text may not hold; None if there is none."""
    found = _NOT_IN_TEXT.search(value)
    return found and f"must be one line without control characters, but holds {name_of(found[0])}"


def objection_to_reference(value: str) -> str | None:
    """Names the character that would let two references look the same; None if there is none."""
    if found := _NOT_IN_REFERENCE.search(value):
        where = "begins or ends with" if found[0] == " " else "holds"
        return f"must show as it is, but {where} {name_of(found[0])}"
    composed = unicodedata.normalize("NFC", value)
    if composed == value:
        return None
    # If one text is a prefix of the other, the difference is at the longer one's next character.
    at = next((at for at, one in enumerate(value) if composed[at : at + 1] != one), len(value) - 1)
    end = at + 2 if at + 1 < len(value) and unicodedata.combining(value[at + 1]) else at + 1
    names = " and ".join(name_of(one) for one in value[at:end])
    return f"must be in Unicode's composed form (NFC), but holds {names}"


def name_of(character: str) -> str:
    """Its code point and its name in Unicode, such as "U+00A0 (NO-BREAK SPACE)"."""
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X}" + (f" ({name})" if name else "")

"""Names are those of the field, so that a payments engineer can grep for them. No old names."""

from __future__ import annotations

import tokenize

from tests.shape.source_tree import ROOT

# What each is called now: docs/decisions/0041-the-fields-words.md.
OLD_NAMES = frozenset(
    [
        "bear",
        "birth",
        "born",
        "Newborn",
        "BORN",
        "trail",
        "on_trail_of",
        "back_on_trail_of",
        "Asker",
        "asker",
        "rails",
        "Wire",
        "Silence",
        "Departure",
        "departure",
        "Came",
        "note_callback",
        "Vault",
        "VaultClosed",
        "Box",
        "box_of",
        "InvariantBreak",
        "BreaksOpen",
        "BreakNotFound",
        "list_breaks",
        "resolve_break",
        "survey",
        "Heard",
        "providers_heard",
        "execute_alone",
        "ALONE",
        "narrow",
        "await_first",
        "give_back",
        "Shelf",
        "SHELVES",
        "Minted",
        "mint",
        "take_turn",
        "Pulse",
        "PULSE",
        "is_felt",
        "HANDED_BACK",
        "choose_route",
        "forget_deliveries",
        "expire_answers",
        "Courier",
        "Clockwork",
        "Bell",
        "ring",
        "Hands",
        "Errand",
    ]
)


def test_no_old_name_is_used() -> None:
    files = sorted((ROOT / "payments_app").rglob("*.py"))
    assert len(files) > 100
    found = set()
    for path in files:
        with path.open("rb") as source:
            names = {
                t.string for t in tokenize.tokenize(source.readline) if t.type == tokenize.NAME
            }
        found |= {f"{path.name}: {name}" for name in (names | {path.stem}) & OLD_NAMES}
    assert not found

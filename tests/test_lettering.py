"""Text that fits, in letters that the font has."""

import pytest

from wsi_mil.lettering import fitted, font, plain


def test_names_become_what_the_font_has() -> None:
    assert plain("  Tumeur\n étendue → 5 µm ") == "Tumeur etendue ? 5 ?m"


@pytest.mark.parametrize("width", [40, 100, 300])
def test_a_long_text_loses_its_middle_only(width: int) -> None:
    letters = font(18)
    text = "TCGA-AA-0000-01Z-00-DX1.0123456789abcdef0123456789"
    shown = fitted(text, letters, width)
    assert letters.getlength(shown) <= width
    start, end = shown.split("...")
    assert text.startswith(start)
    assert text.endswith(end)
    assert fitted("short", letters, 300) == "short"

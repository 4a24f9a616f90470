"""Text that a spreadsheet would run as a formula."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.utils.tables import escape_formula, is_formula, unescape_formula


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1.png", "'=1+1.png"),
        ("+ve", "'+ve"),
        ("-x", "'-x"),
        ("-", "'-"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-1+1", "'-1+1"),
        ("-1\n=1", "'-1\n=1"),
        ("'=1", "''=1"),
        ("'s-Gravenhage", "'s-Gravenhage"),
        ("a=b", "a=b"),
        ("-1", "-1"),
        ("+0.5", "+0.5"),
        ("", ""),
    ],
)
def test_an_apostrophe_is_put_before_formulas_only(text: str, written: str) -> None:
    assert escape_formula(text) == written
    assert is_formula(text) == (written[:2] in ("'=", "'+", "'-", "'@", "'\t"))
    assert unescape_formula(written) == text


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="'=+-@1a\t\n.", max_size=6))
def test_escaping_is_undone_exactly(text: str) -> None:
    assert unescape_formula(escape_formula(text)) == text
    assert not is_formula(escape_formula(text))

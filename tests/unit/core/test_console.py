"""Words of a file, before a terminal."""

from __future__ import annotations

import pytest

from pal_dist.core.console import listed, printable, quoted, say

ESCAPES = "a\x1b[2J\x1b]0;title\x07\r\x9b31m\u202eb\ud83d"


def test_nothing_of_a_file_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (printable(ESCAPES), quoted(ESCAPES), listed([ESCAPES], "`")):
        assert shown.isprintable()
        assert "\\x1b[2J" in shown
        assert "\\u202eb\\ud83d" in shown
    say(f"two\nlines {ESCAPES}")
    said = capsys.readouterr().err
    assert said.startswith("two\nlines a\\x1b[2J")
    assert said.rstrip("\n").replace("\n", "").isprintable()


def test_what_is_not_a_command_stays() -> None:
    words = "Größe 10 €, 電影 🎬, شيء"
    assert printable(words) == words
    assert quoted("a\nb\tc") == "'a\\nb\\tc'"
    assert quoted("label\ufeff\xa0", "`") == "`label\\ufeff\\xa0`", "what is not seen is shown"


def test_long_words_and_lists_are_shortened() -> None:
    assert quoted("x" * 5000) == "'" + "x" * 80 + "'... (5,000 characters)"
    assert listed(range(1000)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 988 more"
    assert listed(["a", "b"], "`") == "`a`, `b`"

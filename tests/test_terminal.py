"""What comes out of foreign files and names cannot act on the terminal."""

import pytest

from concertormer_jax.runtime.errors import UserError, printable, reported


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photo ü 写真.png", "photo ü 写真.png"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("two\r\nlines\tand\bback", r"two\r\nlines\tand\x08back"),
        ("\x9b2J", r"\x9b2J"),  # the same as escape and [, in one character
        ("gpj.\u202egnp", r"gpj.\u202egnp"),  # would turn the direction of writing
        ("no text \udcff", r"no text \udcff"),  # a byte of a file's name that is no UTF-8
    ],
)
def test_characters_that_a_terminal_acts_on_are_shown(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_errors_are_reported_without_them(capsys):
    for error in (UserError("a\x1b[2J.png: \nbad"), OSError(2, "No such file", "b\x1b[2J\udcff.png")):
        with pytest.raises(SystemExit), reported():
            raise error
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert line.isprintable()

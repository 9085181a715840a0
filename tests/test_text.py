"""Text from outside is shown as it is and acted on by nothing: real markdown, shell and Python read it here."""

import ast
import doctest
import subprocess

import pytest
from markdown_it import MarkdownIt

import hf_unlearn.text
from hf_unlearn.text import (
    markdown_code,
    markdown_line,
    markdown_text,
    printable,
    python_string,
    shell_word,
    spreadsheet_cell,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[certified](https://evil.example)",
    "![seal](https://evil.example/seal.png)",
    "https://evil.example and www.evil.example and me@evil.example",
    "**certified** _really_ ~~not~~ `code` $x$",
    "&lt;b&gt; &#60;b&#62;",
    "a\n# heading\n- item",
    "# heading",
    "1. first",
    "--- rule",
    "| a | b |",
    "quote \" and ' and `backtick` and \\ backslash\\",
    "caf\udce9.png",
    "\x1b[2J\x1b[31mholds\x07\r\n\u202etxt.exe\u200b\U000e0041",
]


def tags(html: str) -> set[str]:
    return {part.split(">")[0].split()[0].strip("/") for part in html.split("<")[1:]}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("make", [markdown_text, markdown_line, markdown_code])
def test_markdown_acts_on_nothing_and_shows_everything(text: str, make) -> None:
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rendered = markdown.render(f"before {make(text)}" if make is not markdown_line else make(text))
    assert tags(rendered) <= ({"p", "code"} if make is markdown_code else {"p"})
    assert "\n" not in make(text)
    if make is not markdown_code:  # what GitHub and the Hub would make a link by itself
        assert not any(sign in make(text) for sign in ("://", "www.", "@"))


@pytest.mark.parametrize("text", ["num_train_epochs", "CPU, 2 cores (x86_64)", "rate 1e-3, at 0.5", "-1"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert markdown_text(text) == printable(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_sees_one_line_that_any_encoding_can_hold(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and shown.encode("utf-8")
    assert printable("caf\udce9") == "caf\\udce9" and printable("a\nb", keep="\n") == "a\nb"


@pytest.mark.parametrize("text", HOSTILE)
def test_programs_and_commands_to_copy_hold_the_text_as_one_word(text: str) -> None:
    assert ast.literal_eval(python_string(text)) == printable(text)
    echoed = subprocess.run(["sh", "-c", f"printf %s {shell_word(text)}"], capture_output=True, text=True, check=True)
    assert echoed.stdout == printable(text)
    assert (python_string("org/clip"), shell_word("org/clip")) == ('"org/clip"', "org/clip")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-1.5", "-1.5"),
        ("+x", "'+x"),
        ("a", "a"),
    ],
)
def test_a_spreadsheet_finds_no_formula(text: str, cell: str) -> None:
    assert spreadsheet_cell(text) == cell


def test_examples() -> None:
    assert doctest.testmod(hf_unlearn.text).failed == 0

"""Text from outside made inert: on a terminal, in markdown, in a command or a program to copy, in a spreadsheet."""

import json
import re
import shlex

# Control characters, halves of surrogate pairs, and the marks that turn the direction of what follows.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_MARKDOWN = re.compile(r"[\\`*\[\]<>$~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|!(?=\[)")
_BLOCK = re.compile(r"^\s*(\d*)(?=[#+|=.)-])")
_LINK = re.compile(r"(?i)(?<=[a-z])://|\bwww\.|@|\b(?:mailto|xmpp):")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: object, keep: str = "") -> str:
    """Escape what a terminal would act on or hide: control characters, line ends, turned directions, surrogates.

    Args:
        text: What is to be shown.
        keep: Characters that are let through, such as line ends.

    >>> print(printable("a\\x1b[2Jb\\n"))
    a\\x1b[2Jb\\n
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), str(text))


def markdown_text(text: object) -> str:
    """Make a text show as it is inside a line of markdown: no HTML, link, picture, emphasis or formula.

    >>> markdown_text("<b>[x](https://a.b)</b>")
    '&lt;b&gt;\\\\[x\\\\](https&#58;//a.b)&lt;/b&gt;'
    """
    line = " ".join(printable(text, keep="\n\r").split("\n")).replace("\r", " ")
    line = _MARKDOWN.sub(lambda found: {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(found[0], "\\" + found[0]), line)
    return _LINK.sub(lambda found: found[0].translate({58: "&#58;", 46: "&#46;", 64: "&#64;"}), line)


def markdown_line(text: object) -> str:
    """Make a text show as it is on a line of its own, where markdown would begin a heading, a list or a rule.

    >>> markdown_line("# 1")
    '\\\\# 1'
    """
    return _BLOCK.sub(r"\1\\", markdown_text(text))


def markdown_code(text: object) -> str:
    """Set a text as code in a line of markdown, where nothing in it is acted on."""
    inner = printable(text).replace("`", "'")
    return f"`{inner}`"


def python_string(text: object) -> str:
    """Write a text as a string of Python, for a program that readers copy."""
    return json.dumps(printable(text), ensure_ascii=False)


def shell_word(text: object) -> str:
    """Write a text as one word of a shell, for a command that readers copy."""
    return shlex.quote(printable(text))


def spreadsheet_cell(text: object) -> str:
    """Keep a spreadsheet from taking a text for a formula: an apostrophe goes before what would begin one."""
    shown = str(text)
    return f"'{shown}" if shown.startswith(_FORMULA) and not _is_number(shown) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _escaped(character: str) -> str:
    """As Python writes it: `\\n`, `\\x1b`, `\\u202e`."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

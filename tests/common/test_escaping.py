"""Text of other people is text wherever it is written: on a terminal, in Markdown, in a shell."""

import shlex
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import model_card.escaping
import model_card.files
import training.common.config
import training.common.escaping
from training.common.escaping import code_span, markdown_cell, mask_passwords, shell_line, terminal_line

PIECES = [
    *(
        "<b>",
        "<!--",
        "|",
        "`",
        "```",
        "~~",
        "*",
        "_",
        "__",
        "\\",
        "[x](y)",
        "![x](y)",
        "&lt;",
        "&#124;",
        "<http://a.b>",
    ),
    *("\n", "\r", "\x85", "\u2028", "\t", "\x1b[2J", "\x9b", "\u202e", "\ud800", "\ue000", "\U000e0041"),
    *("# ", "- ", "---", "> ", "1. ", "    ", "===", "a", "word", " ", "$x$", "1", "\u00e9", "[^1]", ":"),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def test_both_packages_escape_in_the_same_way():
    bodies = [
        Path(module.__file__).read_text().split('\n"""\n', 1)[1]
        for module in (model_card.escaping, training.common.escaping)
    ]
    assert bodies[0] == bodies[1]


@settings(deadline=None)
@given(TEXTS)
def test_a_terminal_line_has_no_control_character_and_no_line_end(text):
    line = terminal_line(text)
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Co", "Zl", "Zp")]
    assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    assert line.encode() and line.splitlines() == [line] if line else not text.strip()
    assert terminal_line(line) == line


@settings(deadline=None)
@given(TEXTS)
@example("Letters | CC0-1.0")
@example("Poems\n\n```python\nprint(1)\n```")
@example("`a` <img src=x onerror=y> [x](javascript:y) **b** \\| \\")
def test_a_cell_of_a_markdown_table_is_shown_as_the_text_itself(text):
    table = f"| name | n |\n|---|---|\n| {markdown_cell(text)} | 1 |\n"
    tokens = PARSER.parse(table)
    assert [token.type for token in tokens] == [token.type for token in PARSER.parse("|a|n|\n|---|---|\n|b|1|\n")]
    *_, cell, number = (token for token in tokens if token.type == "inline")
    assert {child.type for child in cell.children} <= {"text", "text_special"} and number.content == "1"
    assert "".join(child.content for child in cell.children) == terminal_line(text).strip()


@settings(deadline=None)
@given(TEXTS)
def test_a_code_span_in_a_paragraph_is_shown_as_the_text_itself(text):
    line = terminal_line(text)
    if line.strip():
        (inline,) = (token for token in PARSER.parse(f"Command: {code_span(text)}.") if token.type == "inline")
        assert [child.type for child in inline.children] == ["text", "code_inline", "text"]
        assert inline.children[1].content.strip() == line.strip()


@pytest.mark.parametrize(
    "text", ["CC-BY-4.0", "bits_per_byte", "R&D (2nd ed.)", "-0.250", "chrF2++", "1,5 %", "a > b"]
)
def test_ordinary_names_are_unchanged(text):
    assert markdown_cell(text) == text.strip() and terminal_line(text) == text


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), max_size=4))
def test_a_shell_reads_the_same_arguments_from_a_command_line(arguments):
    line = shell_line(arguments)
    assert "\n" not in line and "\r" not in line
    script = f"printf '%s\\0' x {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.decode().split("\0")[1:-1] == arguments


def test_an_ordinary_command_is_quoted_as_by_shlex():
    command = ["python", "-m", "training.shards", "--out", "my data", "--x={a: 1}"]
    assert shell_line(command) == shlex.join(command)


@pytest.mark.parametrize(
    "address, masked",
    [
        ("http://ann:secret@host:80/v1", "http://***@host:80/v1"),
        ("https://secret@host", "https://***@host"),
        ("http://ann:se@cret@host", "http://***@host"),
        ("http://ann:se/cret@host/v1", "http://***@host/v1"),
        ("see git+https://ann:secret@host/x.git now", "see git+https://***@host/x.git now"),
        ("https://host/x?a=1&api_key=secret&b=2", "https://host/x?a=1&api_key=***&b=2"),
        ("https://host/x?X-Amz-Signature=secret", "https://host/x?X-Amz-Signature=***"),
        ("https://host:8000/@name/x", None),
        ("https://host/package@1.2/file", None),
        ("mail ann@host, 12:30", None),
    ],
)
def test_users_passwords_and_keys_in_addresses_are_masked(address, masked):
    assert mask_passwords({"a": [address]}) == {"a": [masked or address]}
    assert shell_line(["--url", address]) == shlex.join(["--url", masked or address])


@pytest.mark.parametrize("package", [training.common.config, model_card.files])
def test_an_error_is_printed_on_one_line_without_escape_codes_and_passwords(package, capsys):
    def main():
        raise OSError("in.parquet has \x1b[2Ja\nerror: none at http://ann:s3cret@host")

    with pytest.raises(SystemExit) as end:
        package.run_main(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: in.parquet has \\x1b[2Ja error: none at http://***@host\n"

"""Values with their source: templates that print them, and the JSON pointers that lead back to the files.

`card.json` of a folder lists every value that its README.md prints:

    {command, evidence {file: sha256},
     numbers [{line, column, text: as printed, source: FILE#POINTER, value, format}],
     metadata [{pointer: in the metadata, source, value}]}
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .escaping import CONTROL, code_span, markdown_cell, shell_line, terminal_line, visible
from .files import ReleaseError, inside, read_json

MARK = re.compile("\ue000(\\d+)\ue001")  # stands for a traced value until its line and column are known
DIGIT = re.compile(r"\d")
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1`*[ \t]*$", re.M | re.S)  # the groups: backticks, language, code
# Escape codes and half surrogate pairs in text that is shown as it is.
UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Key(str):
    """A key of a JSON file, which a template prints escaped."""

    def __str__(self) -> str:
        return markdown_cell(str.__str__(self))


class TracedValue:
    """A value from a JSON file that knows its source; its items are traced values, too, and its keys are escaped.

    Args:
        value: The value.
        source: FILE#POINTER.
        traced: List that records each printed value, and whether card.json lists it. All values of a card share it.
    """

    def __init__(self, value, source: str, traced: list[tuple[dict, bool]]):
        self._value, self._source, self._traced = value, source, traced

    def __getitem__(self, key) -> "TracedValue":
        step = str(unwrap(key)).replace("~", "~0").replace("/", "~1")
        return TracedValue(self._value[key], f"{self._source}/{step}", self._traced)

    def __getattr__(self, name: str) -> "TracedValue":
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]  # a missing key ends the rendering

    def __iter__(self) -> Iterator:
        return map(Key, self._value) if isinstance(self._value, dict) else (self[i] for i in range(len(self._value)))

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other) -> bool:
        return self._value == unwrap(other)

    def __contains__(self, key) -> bool:
        return key in self._value

    def __str__(self) -> str:
        return print_traced(self)


def unwrap(value):
    """Return the value of a `TracedValue`, the text of a `Key`, or `value` unchanged."""
    if isinstance(value, Key):
        return str.__str__(value)
    return value._value if isinstance(value, TracedValue) else value


def block_text(text: str) -> str:
    """Return text for a fenced block: unchanged, except that escape codes are visible."""
    return UNPRINTABLE.sub(visible, text)


ESCAPES = (markdown_cell, terminal_line, code_span, block_text)  # for words, a line of a block, inline code, a block


def print_traced(
    value: TracedValue, format: str | None = None, *, always: bool = False, escape: Callable = markdown_cell
) -> str:
    """Return a mark that `locate` replaces by the value, and record the value and its source.

    Args:
        value: The value.
        format: Format specification. Default: integers with thousands separators, other values as they are.
        always: Whether card.json lists the value even if it contains no digit.
        escape: One of ESCAPES.

    Raises:
        ReleaseError: If the value is neither number nor text.
    """
    plain = unwrap(value)
    if isinstance(plain, dict | list) or plain is None:
        raise ReleaseError(f"The template prints {value._source}, which is neither number nor text.")
    if format is None:
        format = "," if isinstance(plain, int) and not isinstance(plain, bool) else ""
    text = escape(plain.__format__(format))
    note = {"text": text, "source": value._source, "value": plain, "format": format}
    value._traced.append((note, always or bool(DIGIT.search(text))))
    return f"\ue000{len(value._traced) - 1}\ue001"


def verbatim(value: TracedValue) -> str:
    """Print text of a fenced block and always record its source."""
    return print_traced(value, "", always=True, escape=block_text)


def escaped(escape: Callable) -> Callable:
    """Return a filter that prints a traced value or other text escaped."""

    def print_escaped(value) -> str:
        return print_traced(value, escape=escape) if isinstance(value, TracedValue) else escape(value)

    return print_escaped


def python_string(text: str) -> str:
    """Return text as a string literal of Python, in double quotes."""
    return CONTROL.sub(visible, json.dumps(text, ensure_ascii=False))


FILTERS = {
    "f": print_traced,
    "verbatim": verbatim,
    "plain": unwrap,
    "words": escaped(markdown_cell),
    "line": escaped(terminal_line),
    "code": escaped(code_span),
    "shell": lambda argument: shell_line([argument]),
    "python": python_string,
}


def fence(texts: Iterable[str]) -> str:
    """Return more backticks than any of the texts contains, to open and close a block that shows them verbatim."""
    return "`" * max(3, 1 + max((len(run) for text in texts for run in re.findall("`+", text)), default=0))


def render_with_marks(template: Path, values: dict, **context) -> str:
    """Render a template, with a mark for each traced value.

    Args:
        template: Path of the template; it may include templates of this package.
        values: Name in the template -> `TracedValue`.
        context: Further names, which must not contain numbers.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent / "templates"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template.name).render(**values, **context))


def locate(marked: str, traced: list[tuple[dict, bool]]) -> tuple[str, list[dict]]:
    """Replace the marks of `render` by the values, and locate each value that card.json must list.

    Args:
        marked: The rendered template.
        traced: What its values recorded.

    Returns:
        The text, and the `numbers` of card.json.
    """
    numbers, written, line, column = [], [], 1, 1
    for i, piece in enumerate(MARK.split(marked)):
        if i % 2:  # the index of a recorded value
            note, listed = traced[int(piece)]
            numbers += [{"line": line, "column": column, **note}] if listed else []
            piece = note["text"]
        line += piece.count("\n")
        column = len(piece) - piece.rfind("\n") if "\n" in piece else column + len(piece)
        written.append(piece)
    return "".join(written), numbers


def unwrap_metadata(value, pointer: str, traced: list[dict]):
    """Return metadata with plain values, and record the pointer and the source of each traced value."""
    if isinstance(value, dict):
        return {key: unwrap_metadata(item, f"{pointer}/{key}", traced) for key, item in value.items()}
    if isinstance(value, list):
        return [unwrap_metadata(item, f"{pointer}/{i}", traced) for i, item in enumerate(value)]
    if isinstance(value, TracedValue):
        traced.append({"pointer": pointer, "source": value._source, "value": value._value})
        return value._value
    return unwrap(value)


def resolve_pointer(content, pointer: str):
    """Return the value at a JSON pointer; of a `TracedValue`, the traced value.

    Raises:
        KeyError: If there is none.
    """
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        try:
            content = content[int(step)] if isinstance(unwrap(content), list) else content[step]
        except (IndexError, ValueError, TypeError) as error:
            raise KeyError(pointer) from error
    return content


class EvidenceFiles:
    """The JSON files below a folder, each read once."""

    def __init__(self, folder: Path):
        self.folder, self.contents = folder, {}

    def value(self, source: str):
        """Return the value at FILE#POINTER.

        Raises:
            KeyError: If there is none.
            ReleaseError: If the file is not below the folder.
        """
        name, _, pointer = source.partition("#")
        if name not in self.contents:
            self.contents[name] = read_json(inside(self.folder, name))
        return resolve_pointer(self.contents[name], pointer)

"""Conversations: the chat template, rows from one's own messages and from the other tasks, the metric, and `reply`."""

import copy
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import InputError, typed
from ..data.split import hash_fraction
from ..generation import complete
from ..intervals import Metric, ratio
from .markers import escape, unescape
from .sources import read_rows

NAME = "instruct"
HIGHER_IS_BETTER = True
START, END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
DECODING = {"max_new_tokens": 256, "stop": END, "repetition_penalty": 1.1}

# ChatML, after the beginning of text. Between the marks of generation stands what is learnt: an assistant's turn with
# the token that ends it.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What is asked for, in the language of the text; of a translation, in the language that is wanted.
REQUESTS = {
    "ocr": {
        "en": "Correct the OCR errors in this text.",
        "fr": "Corrige les erreurs d'OCR de ce texte.",
        "es": "Corrige los errores de OCR de este texto.",
        "de": "Korrigiere die OCR-Fehler in diesem Text.",
        "it": "Correggi gli errori di OCR di questo testo.",
        "nl": "Verbeter de OCR-fouten in deze tekst.",
        "la": "Emenda errores huius textus.",
        "pt": "Corrige os erros de OCR deste texto.",
    },
    "translation": {
        "en": "Translate this text into English.",
        "fr": "Traduis ce texte en français.",
        "es": "Traduce este texto al español.",
        "de": "Übersetze diesen Text ins Deutsche.",
        "it": "Traduci questo testo in italiano.",
        "nl": "Vertaal deze tekst naar het Nederlands.",
        "la": "Verte hunc textum in Latinum.",
        "pt": "Traduz este texto para português.",
    },
    "rag": {
        "en": "Answer from these sources, and quote them.",
        "fr": "Réponds d'après ces sources, en les citant.",
        "es": "Responde a partir de estas fuentes, citándolas.",
        "de": "Antworte nach diesen Quellen und zitiere sie.",
        "it": "Rispondi in base a queste fonti, citandole.",
        "nl": "Antwoord op grond van deze bronnen en citeer ze.",
        "la": "Responde ex his fontibus et eos cita.",
        "pt": "Responde a partir destas fontes, citando-as.",
    },
}
LANGUAGE_TOKEN = re.compile(r"<\|(en|fr|es|de|it|nl|la|pt)\|>")
SPECIAL = re.compile(r"<\|[a-z_0-9]+\|>")


@dataclass
class InstructData:
    """What conversations are made of.

    Args:
        path: Parquet or JSON lines, a file or a folder, with a column messages: a list of {"role", "content"}, roles
            system, user and assistant, the last turn the assistant's. Columns id, language, source and license are
            kept.
        tasks: whose rows become conversations.
        rows: most of each task, of those to learn from; a tenth as many are held out.
        settings: of the tasks' data, by task, as under --data for the task itself.
        held_out: share of the conversations in `path` that is not learnt; equal first turns stay together.
        seed: decides which.
    """

    path: Path | None = None
    tasks: list[Literal["ocr", "translation", "rag"]] = field(default_factory=list)
    rows: int = 2000
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    held_out: float = 0.1
    seed: int = 0


# The format ---------------------------------------------------------------------------------------


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that has the chat template; the tokenizer itself stays without."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def format_instruct(messages: Sequence[dict[str, str]]) -> tuple[str, str]:
    """(prompt, completion): all turns up to the assistant's last, and that one; as the template has it, without BOS.

    Raises:
        ValueError: when the last turn is not the assistant's.
    """
    *asked, answer = messages
    if answer["role"] != "assistant":
        raise ValueError("the last turn is not the assistant's")
    turns = (f"{START}{turn['role']}\n{escape(turn['content'])}{END}\n" for turn in asked)
    return f"{''.join(turns)}{START}assistant\n", f"{escape(answer['content'])}{END}"


def parse_instruct(text: str) -> list[dict[str, str]]:
    """The messages of a prompt and its completion.

    Raises:
        ValueError: when the text is none.
    """
    turns = text.split(START)
    if turns.pop(0):
        raise ValueError(f"no conversation: {text[:80]!r}")
    messages = []
    for turn in turns:
        role, _, rest = turn.partition("\n")
        messages.append({"role": role, "content": unescape(rest.partition(END)[0])})
    return messages


# Rows ---------------------------------------------------------------------------------------------


def rows(data: InstructData) -> dict[str, list[dict]]:
    """{"train": rows, "held_out": rows}; a row's messages are escaped, as a template must be given them.

    Raises:
        InputError: when nothing is asked for, or a file is not as it should be.
    """
    if data.path is None and not data.tasks:
        raise InputError("instruct has no data: give --data.path, with conversations, or --data.tasks, such as [ocr].")
    made: dict[str, list[dict]] = {"train": [], "held_out": []}
    for row in _read(data.path) if data.path else ():
        first = next(turn["content"] for turn in row["messages"] if turn["role"] == "user")
        made["held_out" if hash_fraction(f"{data.seed}/{first}") < data.held_out else "train"].append(_row(row))
    for task in data.tasks:
        for name, some in _of_task(task, data).items():
            made[name] += some
    return {
        name: sorted(some, key=lambda row: hash_fraction(f"{data.seed}/{row['id']}")) for name, some in made.items()
    }


def _row(row: dict) -> dict:
    prompt, completion = format_instruct(row["messages"])
    escaped = [{"role": turn["role"], "content": escape(turn["content"])} for turn in row["messages"]]
    return row | {"messages": escaped, "prompt": prompt, "completion": completion}


def _read(path: Path) -> Iterator[dict]:
    """Checked conversations of a file or folder."""
    files = [path] if path.is_file() else sorted([*path.rglob("*.parquet"), *path.rglob("*.jsonl")])
    if not files:
        raise InputError(f"{path} holds no .parquet or .jsonl file: give conversations in one of the two.")
    for file in files:
        for i, row in enumerate(read_rows(file)):
            usual = {"id": f"{file.name}/{i}", "language": "", "source": file.name, "license": "unknown"}
            yield usual | _checked(row, f"{file}, row {i}")


def _checked(row: dict, named: str) -> dict:
    if not isinstance(row, dict) or not row.get("messages"):
        columns = ", ".join(row) if isinstance(row, dict) else "none"
        raise InputError(f"{named} has no messages (columns: {columns}): name the column of the turns messages.")
    for turn in row["messages"]:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise InputError(f"{named} has a turn {turn!r}: turns have role ({', '.join(ROLES)}) and content, a text.")
    roles = [turn["role"] for turn in row["messages"]]
    if "user" not in roles or roles[-1] != "assistant":
        raise InputError(f"{named} ends with a turn of the {roles[-1]}: it needs a user's, and the assistant's last.")
    if not all(turn["content"].strip() for turn in row["messages"] if turn["role"] == "assistant"):
        raise InputError(f"{named} has an empty turn of the assistant, which teaches nothing: leave it out.")
    return {key: value for key, value in row.items() if value is not None}


def _of_task(name: str, data: InstructData) -> dict[str, list[dict]]:
    """Rows of another task as conversations of two turns."""
    from . import load, settings

    found = load(name).rows(typed(settings(name), data.settings.get(name, {}), f"data.settings.{name}"))
    most = {"train": data.rows, "held_out": max(1, data.rows // 10)}
    return {part: [_row(conversation(row, name)) for row in some[: most[part]]] for part, some in found.items()}


def conversation(row: dict, task: str) -> dict:
    """A task's row as a request in plain words and its answer, without the task's own markers."""
    wanted = LANGUAGE_TOKEN.findall(row["prompt"])
    language = wanted[-1] if wanted and task == "translation" else row["language"]
    request = REQUESTS[task].get(language, REQUESTS[task]["en"])
    answer = row["completion"]
    if task == "rag":
        answer = answer.rpartition("<|answer_start|>")[2]
    kept = {key: row[key] for key in ("id", "language", "source", "license")}
    turns = [
        {"role": "user", "content": f"{request}\n\n{plain(row['prompt'])}"},
        {"role": "assistant", "content": plain(answer)},
    ]
    return kept | {"task": task, "messages": turns}


def plain(text: str) -> str:
    """A task's text with its markers taken out, each a line end where it stood between words."""
    return unescape(re.sub(r"\s*\n\s*", "\n", SPECIAL.sub("\n", text)).strip())


# The metric ---------------------------------------------------------------------------------------


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """`answer_f1`: how many words answers and right answers share; also of each task by itself (`ocr_answer_f1`)."""
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        both = row["completion"].partition(END)[0], output
        right, made = (Counter(unescape(text).lower().split()) for text in both)
        counts.append([2 * (right & made).total(), right.total() + made.total()])
    named = {"answer_f1": range(len(rows))}
    for task in sorted({row["task"] for row in rows if row.get("task")}):
        named[f"{task}_answer_f1"] = [i for i, row in enumerate(rows) if row.get("task") == task]
    return {name: ratio([counts[i][0] for i in some], [counts[i][1] for i in some]) for name, some in named.items()}


# Use ----------------------------------------------------------------------------------------------


def reply(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """The assistant's next turn.

    Args:
        messages: {"role", "content"}, the last of them the user's.
    """
    prompt, _ = format_instruct([*messages, {"role": "assistant", "content": ""}])
    return unescape(complete(model, tokenizer, [prompt], **DECODING)[0])

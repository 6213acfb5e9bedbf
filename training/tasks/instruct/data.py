"""Training and evaluation data of conversations: rows from user-provided messages and from other tasks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...common.config import InputError, dataclass_from_dict
from ...data.split import hash_fraction
from .. import load_task, settings
from ..markers import escape, unescape
from ..sources import order_by_hash, read_user_files
from .format import ROLES, format_instruct

# Requests in the language of the text; for translation, in the target language.
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
    """Training and evaluation data of conversations.

    Args:
        path: Parquet or JSON Lines file or folder with a column messages: a list of {"role", "content"}. Roles are
            system, user and assistant; the last turn is the assistant's. Columns id, language, source and license are
            preserved. Default: none.
        tasks: Tasks whose rows are converted to conversations.
        rows: Maximum number of training rows per task; a tenth as many are held out.
        settings: Data settings per task, as under --data for the task itself.
        held_out: Fraction of the conversations in `path` that is not trained on; equal first user turns stay together.
        seed: Seed of the held-out split and of the order.
    """

    path: Path | None = None
    tasks: list[Literal["ocr", "translation", "rag"]] = field(default_factory=list)
    rows: int = 2000
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    held_out: float = 0.1
    seed: int = 0


def rows(data: InstructData) -> dict[str, list[dict]]:
    """Return {"train": rows, "held_out": rows}; the messages of a row are escaped, as the chat template requires.

    Raises:
        InputError: If neither path nor tasks are set, or a file is invalid.
    """
    if data.path is None and not data.tasks:
        raise InputError("instruct has no data: pass --data.path, with conversations, or --data.tasks, such as [ocr].")
    parts: dict[str, list[dict]] = {"train": [], "held_out": []}
    for row in _read_conversations(data.path) if data.path else ():
        first = next(turn["content"] for turn in row["messages"] if turn["role"] == "user")
        parts["held_out" if hash_fraction(f"{data.seed}/{first}") < data.held_out else "train"].append(_row(row))
    for task in data.tasks:
        for name, task_rows in _task_rows(task, data).items():
            parts[name] += task_rows
    return {name: order_by_hash(part, data.seed) for name, part in parts.items()}


def _row(row: dict) -> dict:
    prompt, completion = format_instruct(row["messages"])
    escaped = [{"role": turn["role"], "content": escape(turn["content"])} for turn in row["messages"]]
    return row | {"messages": escaped, "prompt": prompt, "completion": completion}


def _read_conversations(path: Path) -> Iterator[dict]:
    """Yield the validated conversations of a file or folder."""
    for file, i, row in read_user_files(path, "conversations in one of the two formats"):
        defaults = {"id": f"{file.name}/{i}", "language": "", "source": file.name, "license": "unknown"}
        yield defaults | _validate(row, f"{file}, row {i}")


def _validate(row: object, place: str) -> dict:
    if not isinstance(row, dict) or not row.get("messages"):
        columns = ", ".join(row) if isinstance(row, dict) else "none"
        raise InputError(f"{place} has no messages (columns: {columns}): name the column of the turns messages.")
    if not isinstance(row["messages"], list):
        raise InputError(f"{place} has messages of type {type(row['messages']).__name__}: provide a list of turns.")
    for turn in row["messages"]:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise InputError(
                f"{place} has a turn {repr(turn)[:80]}: turns have role ({', '.join(ROLES)}) and content, a text."
            )
    roles = [turn["role"] for turn in row["messages"]]
    if "user" not in roles or roles[-1] != "assistant":
        raise InputError(
            f"{place} ends with a turn of the {roles[-1]}: add a user turn, and end with the assistant's."
        )
    if not all(turn["content"].strip() for turn in row["messages"] if turn["role"] == "assistant"):
        raise InputError(f"{place} has an empty assistant turn, which is useless for training: remove the row.")
    return {key: value for key, value in row.items() if value is not None}


def _task_rows(name: str, data: InstructData) -> dict[str, list[dict]]:
    """Return rows of another task as conversations of two turns."""
    parts = load_task(name).rows(
        dataclass_from_dict(settings(name), data.settings.get(name, {}), f"data.settings.{name}")
    )
    limits = {"train": data.rows, "held_out": max(1, data.rows // 10)}
    return {part: [_row(conversation(row, name)) for row in rows[: limits[part]]] for part, rows in parts.items()}


def conversation(row: dict, task: str) -> dict:
    """Convert a task's row to a request in natural language and its answer, without the task's markers."""
    target_languages = LANGUAGE_TOKEN.findall(row["prompt"])
    language = target_languages[-1] if target_languages and task == "translation" else row["language"]
    request = REQUESTS[task].get(language, REQUESTS[task]["en"])
    answer = row["completion"]
    if task == "rag":
        answer = answer.rpartition("<|answer_start|>")[2]
    turns = [
        {"role": "user", "content": f"{request}\n\n{remove_markers(row['prompt'])}"},
        {"role": "assistant", "content": remove_markers(answer)},
    ]
    return {key: row[key] for key in ("id", "language", "source", "license")} | {"task": task, "messages": turns}


def remove_markers(text: str) -> str:
    """Remove the markers from a task's text; between words each becomes a line break."""
    return unescape(re.sub(r"(?<!\s)\s*\n\s*", "\n", SPECIAL.sub("\n", text)).strip())

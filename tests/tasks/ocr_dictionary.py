"""A small corrector for tests, which replaces the phrases of a table; worker processes import it."""

import os
import signal
from dataclasses import dataclass, field

from training.tasks.ocr.changes import Change

TABLE = {
    "hamne": ("house", "word", 0.97),
    "mult": ("mill", "word", 0.92),
    "mitler": ("miller", "word", 0.9),
    "Le pt": ("kept", "merge", 0.99),
    "ane wits": ("and with", "word", 0.8),
    "carrier": ("car rier", "split", 0.7),
    "neves iz": ("news of", "word", 0.6),
    "brows!": ("brought", "punctuation", 0.75),
    "vil-\nlage": ("village", "merge", 0.95),
}


class Dictionary:
    """Corrector with a table: phrase -> (correction, kind, probability)."""

    def __init__(self, table: dict[str, tuple[str, str, float]], languages: tuple[str, ...] = ("en",)):
        self.table, self.languages = table, languages

    def changes(self, text: str, language: str, *, threshold: float = 1.0) -> list[Change]:
        """Return the changes whose probability is at least half of `threshold`."""
        changes = []
        for before, (after, kind, probability) in self.table.items():
            start = text.find(before)
            while start >= 0 and probability >= threshold / 2:
                changes.append(Change(start, start + len(before), before, after, kind, probability))
                start = text.find(before, start + len(before))
        return sorted(changes)


@dataclass(frozen=True)
class DictionaryLoader:
    """Loads `Dictionary`, as `training.ocr.CorrectorLoader` loads the real corrector."""

    model: object = None
    languages: tuple[str, ...] = ("en",)
    table: dict = field(default_factory=lambda: TABLE, hash=False)

    def fingerprint(self) -> str:
        """Return the hash of the corrector."""
        return "dictionary"

    def __call__(self) -> Dictionary:
        return Dictionary(self.table, self.languages)


class KillingLoader(DictionaryLoader):
    """Loads a corrector that kills its process, as a machine that fails, at the 20th document."""

    def __call__(self) -> Dictionary:
        dictionary, count = Dictionary(self.table, self.languages), 0
        original = dictionary.changes

        def changes(*arguments, **keywords) -> list[Change]:
            nonlocal count
            count += 1
            if count == 20:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        dictionary.changes = changes
        return dictionary

"""Word counts of a corpus: the lexicon of each language, without the words of code and of other languages."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ...common.language import CODES
from ...data.documents import read_documents
from ...data.split import work_id
from .candidates import LONGEST
from .lexicon import Lexicon
from .units import UNIT, fold

SOFTWARE = "Open Source"  # manuals: their words count where they are frequent
SOFTWARE_COUNT = 12
FOREIGN = 40.0  # times that a word is more frequent in another language or in code than in this one
FREQUENT = 20  # words per million, that are retained whatever other languages say
WORK_COUNT = 400  # words of at most this count change noticeably when one work is forgotten
COLUMNS = ["identifier", "open_type", "language", "text"]


class WordCounts(NamedTuple):
    """Counts of folded words in a language, of those that are capitalised, and of the words of single works."""

    counts: Counter
    capitals: Counter
    works: dict[str, Counter]


def count_words(corpus: Path, language: str | None, works: Iterable[str]) -> WordCounts:
    """Count the words of a language in a corpus (None: of source code).

    Args:
        works: Works whose lone counts are retained.
    """
    wanted = frozenset(works)
    books: Counter = Counter()
    manuals: Counter = Counter()
    single: dict[str, Counter] = defaultdict(Counter)
    for document in read_documents(corpus, languages=[language] if language else None, columns=COLUMNS):
        if language or document["language"] not in CODES:
            spellings = UNIT.findall(document["text"])
            is_manual = bool(language) and document["open_type"] == SOFTWARE
            (manuals if is_manual else books).update(spellings)
            work = work_id(document["identifier"])
            if work in wanted and not is_manual:
                single[work].update(spellings)
    (counts, capitals), (software, software_capitals) = _folded(books), _folded(manuals)
    for word, count in software.items():
        if count >= SOFTWARE_COUNT or word in counts:
            counts[word] += count
            capitals[word] += software_capitals[word]
    lone = {}
    for work, spellings in single.items():
        lone[work] = Counter({word: n for word, n in _folded(spellings)[0].items() if counts[word] <= WORK_COUNT})
    return WordCounts(counts, capitals, lone)


def _folded(spellings: Counter) -> tuple[Counter, Counter]:
    """Return the counts of folded words, and of the capitalised ones; no names of code, no words with digits."""
    counts: Counter = Counter()
    capitals: Counter = Counter()
    for spelling, count in spellings.items():
        if len(spelling) <= LONGEST and (spelling[1:].islower() or len(spelling) == 1 or spelling.isupper()):
            word = fold(spelling)
            if word.isalpha():
                counts[word] += count
                if spelling[0].isupper():
                    capitals[word] += count
    return counts, capitals


def build_lexicons(counts: dict[str, Counter], capitals: dict[str, Counter], code: Counter) -> dict[str, Lexicon]:
    """Build the lexicon of each language from its counts and those of the other languages and of code."""
    sizes = {language: counter.total() / 1e6 for language, counter in counts.items()}
    lexicons = {}
    for language, counter in counts.items():
        others = [(other, sizes[name]) for name, other in counts.items() if name != language]
        others.append((code, max(code.total() / 1e6, 1e-6)))
        retained = Counter()
        for word, count in counter.items():
            rate = count / sizes[language]
            if count < 2 or rate < FREQUENT and any(o.get(word, 0) / size > FOREIGN * rate for o, size in others):
                continue
            retained[word] = count
        lexicons[language] = Lexicon.from_counts(retained, capitals[language])
    return lexicons

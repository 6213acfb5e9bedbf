"""The growth benchmark runs every function, and flags one whose work is the square of the text's length."""

import pytest

from training.bench import growth
from training.bench.growth import (
    FUNCTIONS,
    TEXTS,
    Growth,
    GrowthBench,
    adversarial_text,
    is_superlinear,
    measure_growth,
)
from training.common.config import InputError


def count_work(function, text: str, runs: int = 1) -> int:
    """Return the work of a call, which the functions below return."""
    return function(text)


@pytest.mark.parametrize(
    ("work", "superlinear"),
    [
        (lambda text: len(text), False),
        (lambda text: len(text) * len(bin(len(text))), False),  # n log n
        (lambda text: len(text) ** 2, True),
        (lambda text: sum(1 for i in range(0, len(text), 64) for _ in text[i:]), True),
        (lambda text: 10**9, False),
    ],
)
def test_work_that_is_the_square_of_the_length_is_flagged(work, superlinear):
    result = measure_growth(work, "a".__mul__, largest=4096, cost=count_work)
    assert is_superlinear(result, GrowthBench.limit) == superlinear


def test_texts_become_longer_until_the_function_needs_enough():
    result = measure_growth(lambda text: 0, "a".__mul__, largest=4096, cost=count_work)
    assert result.sizes == [256, 1024, 4096]
    assert measure_growth(len, "a".__mul__, largest=1 << 20, cost=count_work).sizes == [256, 1024]


def test_a_time_that_is_noise_is_not_flagged():
    assert not is_superlinear(Growth([256, 1024], [1e-5, 1e-3]), 8)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_has_about_the_requested_length_and_is_the_same_each_time(name):
    for size in (256, 5000):
        assert size * 0.9 <= len(adversarial_text(name, size)) <= size * 1.5 + 2000
    assert adversarial_text.__wrapped__(name, 300) == adversarial_text(name, 300)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_accepts_text_of_many_kinds(name):
    for text in ("random paragraphs", "words divided by hyphens", "citations", "telephone directory", "blank lines"):
        FUNCTIONS[name](adversarial_text(text, 600))


def test_the_program_prints_each_function_and_fails_for_the_quadratic_one(monkeypatch, capsys):
    monkeypatch.setattr(growth, "FUNCTIONS", {"linear": len, "quadratic": lambda text: len(text) ** 2})
    monkeypatch.setattr(growth, "cpu_seconds", count_work)
    failed = growth.measure_all(GrowthBench(texts=["one letter", "blanks"], characters=1024))
    assert [(name, text, ratio) for name, text, _, _, ratio in failed] == [
        ("quadratic", "one letter", "16.0"),
        ("quadratic", "blanks", "16.0"),
    ]
    printed = capsys.readouterr().out
    assert "| linear |" in printed and "2 functions on 2 texts: 2 above a ratio of 8" in printed


def test_an_unknown_name_is_rejected():
    with pytest.raises(InputError, match="no text is called commas2"):
        growth.measure_all(GrowthBench(texts=["commas2"]))

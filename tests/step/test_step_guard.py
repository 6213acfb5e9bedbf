"""Skipped steps: what counts as not finite or as a spike, and that a checkpoint restores the guard."""

import json
import math

import numpy as np
import pytest
import torch

from training.common.config import InputError
from training.step import step_guard as module
from training.step.step_guard import StepGuard

CPU = torch.device("cpu")
CALM = [2.0, 2.1, 1.9, 2.05, 1.95, 2.02]


@pytest.fixture(autouse=True)
def short_window(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 8)


def judge(guard: StepGuard, *steps: tuple[float, float]) -> list[float]:
    return [guard.check(torch.tensor(loss), torch.tensor(norm)).item() for loss, norm in steps]


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (2.0, math.nan), (math.inf, 1.0), (2.0, math.inf)])
def test_a_step_with_a_non_finite_loss_or_norm_is_skipped_and_logged(bad):
    guard = StepGuard(3, CPU)
    assert judge(guard, (2.0, 1.0), bad, (2.0, 1.0)) == [0.0, 1.0, 0.0]
    (line,) = guard.collect_events()
    assert line["step"] == 2 and line["event"]["kind"] == "not finite" and line["event"]["skipped"]
    assert [line["event"]["loss"], line["event"]["gradient_norm"]] == [x if math.isfinite(x) else None for x in bad]
    assert (guard.step, guard.skipped, guard.spikes, guard.in_a_row) == (3, 1, 0, 0)
    assert guard.collect_events() == []


def test_only_consecutive_non_finite_steps_count_towards_the_limit():
    guard = StepGuard(3, CPU)
    judge(guard, (math.nan, 1.0), (2.0, 1.0), (math.nan, 1.0), (2.0, math.inf))
    guard.collect_events()
    assert (guard.skipped, guard.in_a_row) == (3, 2)


@pytest.mark.parametrize("measure", [0, 1])
def test_a_spike_exceeds_the_mean_of_the_window_by_sigma_deviations(measure):
    limit = np.mean(CALM) + module.SIGMA * np.std(CALM, ddof=1)
    for value, spikes in ((limit - 1e-4, 0), (limit + 1e-4, 1)):
        guard = StepGuard(3, CPU)
        pair = [1.0, 1.0]
        for calm in CALM:
            pair[measure] = calm
            judge(guard, tuple(pair))
        pair[measure] = value
        assert judge(guard, tuple(pair)) == [0.0]  # logged, and not skipped
        events = guard.collect_events()
        assert [(line["event"]["kind"], line["event"]["skipped"]) for line in events] == [("spike", False)] * spikes
        assert (guard.spikes, guard.skipped) == (spikes, 0)


def test_nothing_is_a_spike_before_half_a_window_is_recorded():
    guard = StepGuard(3, CPU)
    judge(guard, (2.0, 1.0), (2.1, 1.0), (1.9, 1.0), (90.0, 1.0))
    assert guard.collect_events() == []


def test_steps_at_a_new_level_soon_are_no_spikes():
    guard = StepGuard(3, CPU)
    judge(guard, *((loss, 1.0) for loss in [*CALM, *[4.0] * 8]))
    spikes = [line["step"] for line in guard.collect_events()]
    assert spikes[0] == 7 and not set(spikes) & set(range(9, 15))
    assert guard.spikes == len(spikes) and guard.skipped == guard.in_a_row == 0


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_guard_resumes_from_its_state_as_if_uninterrupted(cut):
    draw = np.random.default_rng(0)
    steps = [tuple(map(float, pair)) for pair in draw.lognormal(0, 0.1, (24, 2)).astype(np.float32)]
    steps[7], steps[12], steps[20] = (9.0, 1.0), (math.nan, 1.0), (1.0, 50.0)
    unbroken, first, second = StepGuard(3, CPU), StepGuard(3, CPU), StepGuard(3, CPU)
    decisions = judge(unbroken, *steps)
    judged = judge(first, *steps[:cut])
    events = first.collect_events()
    second.load(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert judged + judge(second, *steps[cut:]) == decisions
    expected = unbroken.collect_events()
    kinds = {(line["step"], line["event"]["kind"]) for line in expected}
    assert kinds >= {(8, "spike"), (13, "not finite"), (21, "spike")}
    assert events + second.collect_events() == expected
    assert second.state() == unbroken.state()


def test_an_impossible_limit_is_rejected():
    with pytest.raises(InputError, match="^max_nonfinite_steps must be at least 1, got 0"):
        StepGuard(0, CPU)

"""Steps left out: what counts as not finite or as a spike, and that a checkpoint carries the judgement on."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.config import InputError
from training.guard import Guard, GuardConfig

CPU = torch.device("cpu")
CONFIG = GuardConfig(stop_after=3, window=8)
CALM = [2.0, 2.1, 1.9, 2.05, 1.95, 2.02]


def judge(guard: Guard, *steps: tuple[float, float]) -> list[float]:
    return [guard.judge(torch.tensor(loss), torch.tensor(norm)).item() for loss, norm in steps]


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (2.0, math.nan), (math.inf, 1.0), (2.0, math.inf)])
def test_a_loss_or_norm_that_is_no_number_is_left_out_and_told_with_its_step(bad):
    guard = Guard(CONFIG, CPU)
    assert judge(guard, (2.0, 1.0), bad, (2.0, 1.0)) == [0.0, 1.0, 0.0]
    (line,) = guard.settle()
    assert line["step"] == 2 and line["event"]["kind"] == "not finite" and line["event"]["skipped"]
    assert [line["event"]["loss"], line["event"]["gradient_norm"]] == [x if math.isfinite(x) else None for x in bad]
    assert (guard.step, guard.skipped, guard.spikes, guard.in_a_row) == (3, 1, 0, 0)
    assert guard.settle() == []


def test_only_steps_in_a_row_count_towards_the_end():
    guard = Guard(CONFIG, CPU)
    judge(guard, (math.nan, 1.0), (2.0, 1.0), (math.nan, 1.0), (2.0, math.inf))
    guard.settle()
    assert (guard.skipped, guard.in_a_row) == (3, 2)


@pytest.mark.parametrize("measure", [0, 1])
def test_a_spike_is_what_lies_above_the_mean_and_sigma_deviations_of_the_window(measure):
    limit = np.mean(CALM) + 6 * np.std(CALM, ddof=1)
    for value, spikes in ((limit - 1e-4, 0), (limit + 1e-4, 1)):
        guard = Guard(CONFIG, CPU)
        pair = [1.0, 1.0]
        for calm in CALM:
            pair[measure] = calm
            judge(guard, tuple(pair))
        pair[measure] = value
        assert judge(guard, tuple(pair)) == [0.0]  # told, and taken
        events = guard.settle()
        assert [line["event"]["kind"] for line in events] == ["spike"] * spikes
        assert (guard.spikes, guard.skipped) == (spikes, 0)


def test_nothing_is_a_spike_before_half_a_window_is_there():
    guard = Guard(CONFIG, CPU)
    judge(guard, (2.0, 1.0), (2.1, 1.0), (1.9, 1.0), (90.0, 1.0))
    assert guard.settle() == []


def test_spikes_are_left_out_on_demand_and_a_new_level_soon_is_none():
    guard = Guard(replace(CONFIG, skip_spikes=True), CPU)
    verdicts = judge(guard, *((loss, 1.0) for loss in [*CALM, *[4.0] * 8]))
    assert verdicts[:6] == [0.0] * 6 and verdicts[6] == 1.0 and verdicts[-6:] == [0.0] * 6
    guard.settle()
    assert guard.skipped == guard.spikes == sum(verdicts) and guard.in_a_row == 0


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_guard_goes_on_from_its_state_as_if_nothing_had_happened(cut):
    draw = np.random.default_rng(0)
    steps = [tuple(map(float, pair)) for pair in draw.lognormal(0, 0.1, (24, 2)).astype(np.float32)]
    steps[7], steps[12], steps[20] = (9.0, 1.0), (math.nan, 1.0), (1.0, 50.0)
    config = replace(CONFIG, skip_spikes=True)
    whole, first, second = Guard(config, CPU), Guard(config, CPU), Guard(config, CPU)
    verdicts = judge(whole, *steps)
    assert sum(verdicts) >= 3
    judged = judge(first, *steps[:cut])
    events = first.settle()
    second.load(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert judged + judge(second, *steps[cut:]) == verdicts
    assert events + second.settle() == whole.settle()
    assert second.state() == whole.state()


@pytest.mark.parametrize("change", [{"stop_after": 0}, {"window": 3}, {"sigma": 0.0}])
def test_settings_without_sense_are_refused(change):
    with pytest.raises(InputError, match="^guard: "):
        Guard(replace(CONFIG, **change), CPU)

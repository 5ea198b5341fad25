"""A run's final numbers say what they are of, and runs that differ by their seed are one method with an interval."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook.cookbook.diagnose.history import History
from lossbook.cookbook.diagnose.intervals import mean_of, student_t
from lossbook.cookbook.diagnose.numbers import compare, final_number, final_numbers


def run(values: list[float], key: str = "reward", **settings: Any) -> History:
    return History([{"step": step, key: value} for step, value in enumerate(values, start=1)], settings)


def test_a_batchs_number_is_a_mean_of_the_last_fifth_and_a_measured_one_the_last() -> None:
    number = final_number(run([*range(50)]), "reward")
    assert number is not None
    assert (number.value, number.where) == (44.5, "mean of steps 41–50")
    assert (number.first, number.first_where) == (4.5, "mean of steps 1–10")
    measured = final_number(run([*range(50)], "held_out_score"), "held_out_score")
    assert measured is not None
    assert (measured.value, measured.where, measured.first_where) == (49.0, "step 50", "step 1")


def test_the_most_telling_numbers_come_first_and_noise_is_left_out() -> None:
    row = {"step": 1, "loss": 1.0, "nll": 1.0, "reward": 0.5, "held_out_taste": 2.0, "held_out_score": 0.5}
    assert [number.key for number in final_numbers(History([row]))] == ["held_out_score", "reward", "held_out_taste"]
    plain = History([{"step": 1, "loss": 1.0, "nll": 1.0}], {"loss": "cross_entropy"})
    assert [number.key for number in final_numbers(plain)] == ["nll"]


#: 97.5 % quantiles of Student's t: NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (100, 1.984)]
)
def test_the_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=6e-4)


def test_the_interval_of_a_mean_is_students() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert (mean.value, mean.count) == (2.0, 3)
    assert mean.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)  # the deviation is 1
    assert mean_of([2.0]).half_width is None


def test_runs_that_differ_by_their_seed_are_one_row_named_by_what_differs_between_rows() -> None:
    histories = {
        f"{loss}{seed}": run([seed + value], "held_out_nll", loss=loss, seed=seed, out=f"runs/{loss}{seed}", rank=4)
        for loss, value in (("dpo", 1.0), ("simpo", 0.0))
        for seed in (0, 1)
    }
    compared = compare(histories)
    assert [(row.name, row.runs) for row in compared.rows] == [
        ("loss=dpo (2 runs)", ("dpo0", "dpo1")),
        ("loss=simpo (2 runs)", ("simpo0", "simpo1")),
    ]
    assert [row.numbers["held_out_nll"].value for row in compared.rows] == [1.5, 0.5]
    assert compared.best == {"held_out_nll": 1}
    assert compared.labels == {"held_out_nll": "held-out nll"}


def test_values_of_different_losses_and_runs_without_settings_are_not_put_together() -> None:
    compared = compare({"a": run([1.0], "loss", loss="dpo"), "b": run([1.0], "loss", loss="ipo")})
    assert compared.labels == {}
    bare = compare({"a": run([1.0]), "b": run([3.0])})
    assert [row.runs for row in bare.rows] == [("a",), ("b",)]
    assert bare.best == {"reward": 1}
    only_one_has_it = compare({"a": run([1.0]), "b": run([3.0], "nll")})
    assert only_one_has_it.best == {}


def test_the_metrics_can_be_chosen() -> None:
    compared = compare({"a": run([1.0, 2.0], "grad_norm")}, ["grad_norm", "nothing"])
    assert compared.labels == {"grad_norm": "grad norm"}
    assert compared.rows[0].numbers["grad_norm"].value == 2.0

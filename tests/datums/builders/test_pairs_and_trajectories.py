"""Preference pairs and sampled trajectories become datums; every number stays with its token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import (
    Datum,
    Trajectory,
    build_datums,
    check_aligned,
    datum_from_tokens_weights,
    datums_from_pairs,
    datums_from_trajectories,
)
from lossbook.datums.errors import (
    BiasedLogprobError,
    DatumDropped,
    DtypeError,
    EmptyLossError,
    LengthMismatchError,
    NonFiniteLossInput,
    TruncationError,
)

TOKENS = st.lists(st.integers(0, 99), min_size=1, max_size=12)


def inputs(datum: Datum) -> dict[str, Any]:
    return {key: value.tolist() for key, value in datum.loss_fn_inputs.items()}


class TestPairs:
    """datums_from_pairs: chosen and rejected alternate."""

    def test_token_lists_become_chosen_then_rejected(self) -> None:
        chosen, rejected, *rest = datums_from_pairs([[1, 2], [5]], [[3], [6]], [[4, 4], [7]])
        assert chosen.model_input.to_ints() == [1, 2]
        assert inputs(chosen) == {"target_tokens": [2, 3], "weights": [0.0, 1.0]}
        assert inputs(rejected) == {"target_tokens": [2, 4, 4], "weights": [0.0, 1.0, 1.0]}
        assert [datum.loss_fn_inputs["target_tokens"].data for datum in rest] == [[6], [7]]

    def test_datums_are_taken_as_they_are(self) -> None:
        datums = [datum_from_tokens_weights([1, 2, last], [0, 0, 1]) for last in range(4)]
        assert datums_from_pairs([(datums[0], datums[1]), (datums[2], datums[3])]) == datums

    @given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4))
    def test_every_target_is_the_next_token_and_only_answers_are_learned(self, pairs: list[Any]) -> None:
        datums = datums_from_pairs(*map(list, zip(*pairs, strict=True)))
        for index, (prompt, *answers) in enumerate(pairs):
            for datum, answer in zip(datums[2 * index : 2 * index + 2], answers, strict=True):
                check_aligned(datum)
                learned = np.array(datum.loss_fn_inputs["weights"].data) == 1
                assert learned.sum() == len(answer)
                assert np.array(datum.loss_fn_inputs["target_tokens"].data)[learned].tolist() == answer
                assert datum.model_input.length == len(prompt) + len(answer) - 1

    def test_reference_logprobs_are_spread_over_the_answer_or_taken_whole(self) -> None:
        chosen, rejected = datums_from_pairs([[1, 2]], [[3, 4]], [[5]], ref_logprobs=[([-1.0, -2.0], [-9.0, -3.0])])
        assert inputs(chosen)["ref_logprobs"] == [0.0, -1.0, -2.0]
        assert inputs(rejected)["ref_logprobs"] == [-9.0, -3.0]

    def test_reference_logprobs_are_cut_with_their_tokens(self) -> None:
        chosen, rejected = datums_from_pairs(
            [[1, 2]], [[3, 4]], [[5]], ref_logprobs=[([-1.0, -2.0], [-3.0])], max_length=3, truncation="right"
        )
        assert inputs(chosen) == {"target_tokens": [2, 3], "weights": [0.0, 1.0], "ref_logprobs": [0.0, -1.0]}
        assert inputs(rejected)["ref_logprobs"] == [0.0, -3.0]

    def test_reference_logprobs_for_datums(self) -> None:
        pair = (datum_from_tokens_weights([1, 2, 3], [0, 0, 1]), datum_from_tokens_weights([1, 2, 4], [0, 0, 1]))
        made = datums_from_pairs([pair], ref_logprobs=[([-1.0], [math.nan, -2.0])])
        assert inputs(made[0])["ref_logprobs"] == [0.0, -1.0]
        with pytest.raises(LengthMismatchError, match="pair 0: chosen: the datum already carries ref_logprobs"):
            datums_from_pairs([made], ref_logprobs=[([-1.0], [-2.0])])

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([],), EmptyLossError, "there are no pairs"),
            (([[1]], [[2]]), LengthMismatchError, "give prompts, chosen and rejected, or only pairs of datums"),
            (([[1]], [[2]], []), LengthMismatchError, "1 prompts, 1 chosen and 0 rejected answers"),
            (([[1], [1]], [[2], [2]], [[3], []]), EmptyLossError, "pair 1: rejected: the answer has no tokens"),
            (([[]], [[2]], [[3]]), EmptyLossError, "pair 0: chosen: the prompt has no tokens"),
            (([[1]], [[2]], [[3.5]]), DtypeError, "pair 0: rejected: tokens must be integers"),
            (([(1, 2, 3)],), LengthMismatchError, r"pair 0 and its ref_logprobs must both be \(chosen, rejected\)"),
        ],
    )
    def test_mistakes_name_the_pair_and_the_side(self, arguments: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            datums_from_pairs(*arguments)

    def test_an_answer_without_weight_is_refused(self) -> None:
        good, empty = datum_from_tokens_weights([1, 2], [0, 1]), datum_from_tokens_weights([1, 2], [0, 0])
        with pytest.raises(EmptyLossError, match="pair 0: rejected: every weight is 0"):
            datums_from_pairs([(good, empty)])

    def test_reference_logprobs_of_a_wrong_length_name_both_accepted_lengths(self) -> None:
        with pytest.raises(
            LengthMismatchError, match=r"ref_logprobs has 3 entries for 1 answer tokens \(of 2 positions\)"
        ):
            datums_from_pairs([[1, 2]], [[3]], [[4]], ref_logprobs=[([0.0, 0.0, 0.0], [0.0])])
        with pytest.raises(LengthMismatchError, match="ref_logprobs has 0 entries for 1 pairs"):
            datums_from_pairs([[1, 2]], [[3]], [[4]], ref_logprobs=[])

    def test_max_length_does_not_apply_to_datums(self) -> None:
        datum = datum_from_tokens_weights([1, 2], [0, 1])
        with pytest.raises(LengthMismatchError, match="max_length is for token lists"):
            datums_from_pairs([(datum, datum)], max_length=5)

    def test_drop_leaves_out_both_sides(self) -> None:
        datums = datums_from_pairs([[1], [1]], [[2], [2]], [[3, 3, 3], [4]], max_length=3, truncation="drop")
        assert [datum.loss_fn_inputs["target_tokens"].data for datum in datums] == [[2], [4]]
        with pytest.raises(DatumDropped) as caught:
            datums_from_pairs([[1]], [[2, 2]], [[3, 3, 3]], max_length=3, truncation="drop")
        assert caught.value.labels == 5

    def test_d13_pairs_whose_answers_are_cut_away_are_refused_or_dropped_with_a_count(self) -> None:
        rows = [([1] * 5, [2, 2], [3]), ([1], [2], [3])]

        def make(row: Any) -> list[Datum]:
            prompt, chosen, rejected = row
            return datums_from_pairs([prompt], [chosen], [rejected], max_length=4, truncation="right")

        with pytest.raises(TruncationError, match=r"row 0: pair 0: chosen: 7 tokens are longer .* remove all 2 label"):
            build_datums(rows, make)
        datums, report = build_datums(rows, make, on_error="drop")
        assert len(datums) == 2
        assert (report.kept, report.dropped, report.labels_kept, report.labels_lost) == (1, 1, 2, 3)


def trajectory(**changes: Any) -> Trajectory:
    given: dict[str, Any] = {
        "prompt_tokens": [1, 2],
        "response_tokens": [3, 4],
        "sampling_logprobs": [-0.5, -0.25],
        "advantages": 2.0,
    }
    return Trajectory(**{**given, **changes})


class TestTrajectories:
    """datums_from_trajectories: zeros on the prompt, the response's numbers at the positions that predict it."""

    def test_inputs_have_all_positions(self) -> None:
        (datum,) = datums_from_trajectories([trajectory()])
        assert datum.model_input.to_ints() == [1, 2, 3]
        assert inputs(datum) == {
            "target_tokens": [2, 3, 4],
            "weights": [0.0, 1.0, 1.0],
            "sampling_logprobs": [0.0, -0.5, -0.25],
            "advantages": [0.0, 2.0, 2.0],
        }

    def test_tokens_of_a_tool_are_masked_and_may_lack_logprobs(self) -> None:
        given = trajectory(
            weights=[1, 0],
            sampling_logprobs=[-0.5, math.nan],
            advantages=[2.0, math.nan],
            ref_logprobs=[-1.0, math.nan],
        )
        (datum,) = datums_from_trajectories([given])
        assert inputs(datum)["weights"] == [0.0, 1.0, 0.0]
        assert inputs(datum)["ref_logprobs"][:2] == [0.0, -1.0]

    @given(TOKENS, TOKENS, st.integers(2, 30), st.sampled_from(["right", "left", "middle"]))
    def test_numbers_stay_with_their_tokens(
        self, prompt: list[int], response: list[int], max_length: int, truncation: Any
    ) -> None:
        response = [100 + i for i in range(len(response))]
        numbers = [-float(token) for token in response]
        given = trajectory(
            prompt_tokens=prompt, response_tokens=response, sampling_logprobs=numbers, advantages=numbers
        )
        try:
            (datum,) = datums_from_trajectories([given], max_length=max_length, truncation=truncation)
        except TruncationError:
            return
        check_aligned(datum)
        arrays = inputs(datum)
        for target, logprob, advantage in zip(
            arrays["target_tokens"], arrays["sampling_logprobs"], arrays["advantages"], strict=True
        ):
            assert logprob == advantage == (-target if target >= 100 else 0)

    @pytest.mark.parametrize("temperature", [0.0, 0.6, 1.2])
    def test_d20_raw_logprobs_of_another_temperature_are_refused(self, temperature: float) -> None:
        with pytest.raises(BiasedLogprobError, match=f"trajectory 1: sampled at temperature {temperature}, but"):
            datums_from_trajectories([trajectory(), trajectory(temperature=temperature)])

    def test_d20_the_bias_can_be_accepted(self) -> None:
        assert datums_from_trajectories([trajectory(temperature=0.6)], allow_biased=True)

    @pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
    def test_an_invalid_temperature_is_always_refused(self, temperature: float) -> None:
        with pytest.raises(BiasedLogprobError, match="temperature must be a finite number >= 0"):
            datums_from_trajectories([trajectory(temperature=temperature)], allow_biased=True)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"prompt_tokens": []}, EmptyLossError, "prompt_tokens is empty, so nothing predicts the first"),
            ({"response_tokens": []}, EmptyLossError, "response_tokens is empty"),
            (
                {"sampling_logprobs": [0.0]},
                LengthMismatchError,
                "sampling_logprobs has 1 entries for 2 response tokens",
            ),
            ({"sampling_logprobs": None}, LengthMismatchError, "sampling_logprobs has 0 entries for 2 response tokens"),
            ({"advantages": [1.0] * 4}, LengthMismatchError, "advantages has 4 entries for 2 response tokens"),
            ({"weights": [1.0]}, LengthMismatchError, "weights has 1 entries for 2 response tokens"),
            ({"sampling_logprobs": [0.0, math.nan]}, NonFiniteLossInput, "sampling_logprobs is nan at position 2"),
            ({"advantages": math.inf}, NonFiniteLossInput, "advantages is inf at position 1"),
        ],
    )
    def test_mistakes_name_the_trajectory(self, changes: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"trajectory 0: .*{message}"):
            datums_from_trajectories([trajectory(**changes)])

    def test_an_empty_list_is_refused(self) -> None:
        with pytest.raises(EmptyLossError, match="there are no trajectories"):
            datums_from_trajectories([])

    def test_drop_leaves_out_trajectories_that_are_too_long(self) -> None:
        long = trajectory(response_tokens=[3] * 9, sampling_logprobs=[0.0] * 9)
        assert len(datums_from_trajectories([long, trajectory()], max_length=4, truncation="drop")) == 1
        with pytest.raises(DatumDropped) as caught:
            datums_from_trajectories([long, long], max_length=4, truncation="drop")
        assert caught.value.labels == 18

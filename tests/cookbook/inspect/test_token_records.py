"""Token losses are the values and gradients that the trainer used, and token records hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lossbook as lb
from lossbook.cookbook.inspect.token_losses import token_losses
from lossbook.cookbook.inspect.token_records import LONGEST, read_loss, read_sequences, record_loss, record_sequences
from lossbook.cookbook.run.runs import open_run
from lossbook.datums.errors import DataFileError, LengthMismatchError, LossContractError
from lossbook.datums.types import Datum


def rollout(weights: Sequence[float], advantage: float = 1.0, start: int = 5, **inputs: Any) -> Datum:
    """A sampled sequence of as many positions as there are weights."""
    count = len(weights)
    tokens = [start + 3 * i for i in range(count + 1)]
    carried = {
        "target_tokens": tokens[1:],
        "weights": list(weights),
        "sampling_logprobs": [-5.0 - 0.4 * i for i in range(count)],
        "ref_logprobs": [-5.5 - 0.1 * i for i in range(count)],
        "advantages": [advantage] * count,
    }
    return Datum(lb.ModelInput.from_ints(tokens[:-1]), {**carried, **inputs})


def with_candidates(start: int) -> Datum:
    """Three positions with two candidates each, as in distillation."""
    tokens = [start, start + 1, start + 2]
    targets = [[t + 1, t + 7] for t in tokens]
    teacher = np.log([[0.7, 0.2], [0.1, 0.6], [0.5, 0.3]])
    inputs = {"target_tokens": targets, "weights": [0.0, 1.0, 2.0], "teacher_logprobs": teacher.tolist()}
    return Datum(lb.ModelInput.from_ints(tokens), inputs)


def many_targets(start: int) -> Datum:
    """Cross-entropy on two weighted targets a position, one of which counts for nothing."""
    tokens = [start, start + 1]
    inputs = {"target_tokens": [[t + 1, t + 7] for t in tokens], "weights": [[0.5, 0.5], [1.0, 0.0]]}
    return Datum(lb.ModelInput.from_ints(tokens), inputs)


def squares(data: Sequence[Any], logprobs_list: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """A loss in the hosted APIs' style, which couples the whole batch."""
    total = torch.cat([logprobs.reshape(-1) for logprobs in logprobs_list]).sum()
    return total.square() / 100, {}


ROLLOUTS = [
    rollout([0.0, 0.0, 1.0, 1.0, 0.5], 1.0),
    rollout([0.0, 1.0, 1.0], -0.7, 9),
    rollout([0.0, 0.0, 0.0], 1.0, 30),
    rollout([0.0, 1.0, 1.0, 1.0], 0.2, 12),
]
PAIRS = [rollout([0.0, 1.0, 1.0], start=start) for start in (5, 9, 14, 20)]
WIDE = [many_targets(5), many_targets(9), many_targets(40)]
CASES: dict[str, tuple[Callable[[], Any], list[Datum]]] = {
    "a token loss": (lambda: lb.get_loss("ppo", reduction="token-mean"), ROLLOUTS),
    "a token loss averaged over sequences": (lambda: lb.get_loss("ppo", reduction="seq-mean-token-mean"), ROLLOUTS),
    "a sequence loss": (lambda: lb.get_loss("gspo"), ROLLOUTS),
    "a pair loss": (lambda: lb.get_loss("dpo"), PAIRS),
    "several targets a position": (lambda: lb.get_loss("cross_entropy", reduction="token-mean"), WIDE),
    "candidates": (lambda: lb.get_loss("topk_forward_kl"), [with_candidates(5), with_candidates(60)]),
    "a mixture with two denominators": (
        lambda: (
            lb.get_loss("ppo", reduction="seq-mean-token-mean")
            + 0.1 * lb.get_loss("cross_entropy", reduction="token-mean")
        ),
        ROLLOUTS,
    ),
    "a mixture of a pair loss and a token loss": (
        lambda: lb.get_loss("dpo") + 0.2 * lb.get_loss("cross_entropy", reduction="token-mean"),
        PAIRS,
    ),
    "a function of the whole batch": (lambda: squares, ROLLOUTS),
    "a loss that reads entropy": (
        lambda: lb.get_loss("ppo", reduction="token-mean") + 0.1 * lb.get_loss("entropy_bonus"),
        ROLLOUTS,
    ),
}


def client(folder: Path | str = "checkpoints") -> lb.TrainingClient:
    """Small micro-batches, so that a denominator of one micro-batch alone would show."""
    service = lb.ServiceClient(tokens_per_micro_batch=4, checkpoint_dir=folder)
    return service.create_lora_training_client("tiny", rank=4, seed=0, train_unembed=True)


def parameter_gradients(training: lb.TrainingClient) -> dict[str, torch.Tensor]:
    """Of the last forward_backward, as Adam's first moments after one step: 0.1 times the gradient."""
    training.optim_step(lb.AdamParams(learning_rate=0.0)).result()
    folder = Path(training.save_state("state").result().path)
    moments = load_file(folder / "optimizer.safetensors")
    return {name: value for name, value in moments.items() if name.startswith("exp_avg.")}


def weighted_sum(logprobs: torch.Tensor, logprob_gradient: torch.Tensor) -> torch.Tensor:
    """A loss whose d loss / d logprob is given."""
    return logprob_gradient * logprobs


def weighted_sum_with_entropy(
    logprobs: torch.Tensor, entropy: torch.Tensor, logprob_gradient: torch.Tensor, entropy_gradient: torch.Tensor
) -> torch.Tensor:
    """The same, with a given d loss / d entropy."""
    return logprob_gradient * logprobs + entropy_gradient * entropy


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_that_the_trainer_sends_back(name: str, tmp_path: Path) -> None:
    """A loss that is linear in the model's outputs, with these gradients as coefficients, moves the parameters alike."""
    make, data = CASES[name]
    training = client(tmp_path / "loss")
    output = training.forward_backward(data, make()).result()
    assert output.metrics["micro_batches"] > 1
    results = token_losses(make(), data, output.loss_fn_outputs)
    assert any(np.nan_to_num(result.columns["gradient"]).any() for result in results)
    linear = []
    for datum, result in zip(data, results, strict=True):
        inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"]}
        for column, values in result.columns.items():
            if column.endswith("gradient"):
                key = "logprob_gradient" if column == "gradient" else column
                inputs[key] = lb.TensorData(np.nan_to_num(values).astype(np.float32))
        linear.append(Datum(datum.model_input, inputs))
    loss = weighted_sum_with_entropy if "entropy_gradient" in results[0].columns else weighted_sum
    again = client(tmp_path / "linear")
    again.forward_backward(linear, lb.get_loss(loss, reduction="sum")).result()
    expected = parameter_gradients(training)
    assert expected
    for key, value in parameter_gradients(again).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in CASES if "entropy" not in name])
def test_gradients_are_finite_differences_of_the_loss(name: str) -> None:
    make, data = CASES[name]
    generator = torch.Generator().manual_seed(1)
    logprobs = [
        -5.2
        - 0.3 * torch.rand(tuple(d.loss_fn_inputs["target_tokens"].shape), generator=generator, dtype=torch.float64)
        for d in data
    ]
    loss = lb.get_loss(make())
    results = token_losses(loss, data, [{"logprobs": each} for each in logprobs])
    step = 1e-6
    for i, result in enumerate(results):
        for place in np.ndindex(*logprobs[i].shape):
            values = []
            for sign in (1, -1):
                moved = [each.clone() for each in logprobs]
                moved[i][place] += sign * step
                values.append(float(loss(data, moved)[0]))
            difference = (values[0] - values[1]) / (2 * step)
            assert np.nan_to_num(result.columns["gradient"])[place] == pytest.approx(difference, abs=2e-8)


def test_a_clipped_token_of_ppo_has_gradient_0_and_its_neighbour_the_policy_gradient() -> None:
    # ratios 1.5, 1, 1.5 and 0.5 by construction; bounds 0.8 and 1.2; two learned tokens a sequence
    up, down = math.log(1.5), math.log(0.5)
    data = [
        rollout([0.0, 1.0, 1.0], 2.0, sampling_logprobs=[math.nan, -1.0 - up, -1.0]),
        rollout([0.0, 1.0, 1.0], -1.0, sampling_logprobs=[math.nan, -1.0 - up, -1.0 - down]),
    ]
    outputs = [{"logprobs": torch.tensor([0.0, -1.0, -1.0])}] * 2
    rewarded, punished = token_losses(lb.get_loss("ppo", reduction="token-mean"), data, outputs)
    columns = rewarded.columns
    np.testing.assert_allclose(columns["ratio"], [np.nan, 1.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(columns["loss"], [np.nan, -2.4, -2.0], rtol=1e-6)  # -1.2 A where clipped, else -r A
    np.testing.assert_allclose(columns["gradient"], [np.nan, 0.0, -2.0 / 4], rtol=1e-6)  # over 4 learned tokens
    np.testing.assert_allclose(columns["advantage"], [np.nan, 2.0, 2.0])
    np.testing.assert_allclose(punished.columns["loss"], [np.nan, 1.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(punished.columns["gradient"], [np.nan, 1.5 / 4, 0.0], rtol=1e-6)
    assert rewarded.losses == {"ppo": (pytest.approx(-2.2), "token")}


def test_a_pair_loss_has_one_value_for_both_of_its_datums() -> None:
    data = [rollout([1.0], ref_logprobs=[-2.0]) for _ in range(4)]
    outputs = [{"logprobs": torch.tensor([value])} for value in (-1.0, -3.0, -2.0, -2.0)]
    values = [result.losses["dpo"] for result in token_losses(lb.get_loss("dpo", beta=0.5), data, outputs)]
    # margins 0.5 (1 + 1) = 1 and 0: -log sigmoid
    one, zero = math.log1p(math.exp(-1)), math.log(2)
    assert values == [(pytest.approx(value), "pair") for value in (one, one, zero, zero)]


def test_each_part_of_a_mixture_has_its_own_value_and_token_losses_are_added_up() -> None:
    mixture = 0.5 * lb.get_loss("dpo") + 2.0 * lb.get_loss("cross_entropy", reduction="token-mean")
    data = [rollout([0.0, 1.0], ref_logprobs=[-1.0, -1.0]) for _ in range(2)]
    result = token_losses(mixture, data, [{"logprobs": torch.tensor([-9.0, -1.0])}] * 2)[0]
    assert result.losses == {
        "dpo": (pytest.approx(math.log(2)), "pair"),
        "cross_entropy": (pytest.approx(1.0), "token"),
    }
    np.testing.assert_allclose(result.columns["loss"], [np.nan, 2.0])


def test_embedding_losses_have_a_value_and_the_gradient_norm_but_no_token_numbers() -> None:
    data = [Datum(lb.ModelInput.from_ints([i, i + 1])) for i in range(4)]
    vectors = torch.eye(4)
    results = token_losses("info_nce", data, [{"embedding": row} for row in vectors])
    loss = lb.get_loss("info_nce")
    leaf = [row.clone().requires_grad_() for row in vectors]
    loss(data, leaf)[0].backward()
    for result, own in zip(results, leaf, strict=True):
        assert set(result.columns) == {"weight"}
        assert own.grad is not None
        assert result.embedding_gradient == pytest.approx(float(own.grad.norm()))
    assert [result.losses["info_nce"][1] for result in results] == ["datum"] * 4


def test_outputs_of_another_loss_or_of_fewer_datums_are_refused() -> None:
    outputs = [{"logprobs": torch.zeros(3)}] * 2
    data = [rollout([1.0, 1.0, 1.0])] * 2
    with pytest.raises(
        LossContractError, match=r"reads 'entropy', which the outputs of datum 0 do not hold .* logprobs"
    ):
        token_losses(lb.get_loss("ppo") + lb.get_loss("entropy_bonus"), data, outputs)
    with pytest.raises(LengthMismatchError, match="outputs of 1 datums for 2 datums"):
        token_losses("ppo", data, outputs[:1])


def test_token_losses_leave_the_random_state_alone() -> None:
    def noisy(data: Sequence[Any], logprobs_list: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return torch.cat(list(logprobs_list)).sum() * torch.rand(()), {}

    before = torch.get_rng_state()
    token_losses(noisy, ROLLOUTS[:1], [{"logprobs": torch.zeros(5)}])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", CASES)
def test_recorded_sequences_are_read_back(name: str, tmp_path: Path) -> None:
    make, data = CASES[name]
    training = client()
    output = training.forward_backward(data, make()).result()
    run = open_run(tmp_path / "run", {})
    record_sequences(run, 3, make(), data, output, training.get_tokenizer())
    rows = read_sequences(run.path)
    assert len(rows) == (4 if "pair" in name else 2)
    assert [row["side"] for row in rows] == (["chosen", "rejected"] * 2 if "pair" in name else ["", ""])
    for row in rows:
        assert row["step"] == 3
        result = token_losses(make(), data, output.loss_fn_outputs)[row["datum"]]
        lengths = {len(column) for column in row["tokens"].values()}
        assert lengths == {len(result.columns["weight"]) + 1}
        assert row["tokens"]["weight"][0] is None  # the first token is not a target
        own = result.columns["gradient"]
        sums = own if own.ndim == 1 else np.where(np.isnan(own).all(1), np.nan, np.nansum(own, 1))
        written = np.array([np.nan if value is None else value for value in row["tokens"]["gradient"][1:]])
        np.testing.assert_allclose(written, sums, rtol=1e-4)
        assert ("candidates" in row) == (own.ndim == 2)


def test_a_position_with_several_targets_lists_them_likeliest_first(tmp_path: Path) -> None:
    data, loss = [with_candidates(65)], lb.get_loss("topk_forward_kl")
    output = lb.trainer.responses.ForwardBackwardOutput(
        [{"logprobs": lb.TensorData(np.log([[0.2, 0.3], [0.2, 0.3], [0.4, 0.1]]).astype(np.float32))}]
    )
    run = open_run(tmp_path / "run", {})
    record_sequences(run, 1, loss, data, output, client().get_tokenizer())
    (row,) = read_sequences(run.path)
    assert row["tokens"]["text"] == ["A", "B", "C", "D"]
    assert row["candidates"][:2] == [None, None]  # the first token, and a position of weight 0
    assert [one[0] for one in row["candidates"][2]] == ["I", "C"]
    assert row["tokens"]["logprob"][2] == pytest.approx(math.log(0.2), rel=1e-4)  # of C, which stands in the text


def test_an_unread_last_position_of_several_targets_has_no_token(tmp_path: Path) -> None:
    tokens = [65, 66, 67]
    inputs = {"target_tokens": [[66, 90], [67, 90], [0, 0]], "weights": [[1.0, 0.5], [1.0, 0.5], [0.0, 0.0]]}
    output = lb.trainer.responses.ForwardBackwardOutput(
        [{"logprobs": lb.TensorData(np.full((3, 2), -1.0, np.float32))}]
    )
    run = open_run(tmp_path / "run", {})
    data = [Datum(lb.ModelInput.from_ints(tokens), inputs)]
    record_sequences(run, 1, "cross_entropy", data, output, client().get_tokenizer())
    (row,) = read_sequences(run.path)
    assert row["tokens"]["text"] == ["A", "B", "C"]
    assert row["tokens"]["gradient"] == [None, -1.5, -1.5]
    assert len(row["candidates"]) == 3


def test_the_rollouts_of_lowest_and_highest_advantage_are_recorded(tmp_path: Path) -> None:
    data = [rollout([0.0, 1.0], advantage) for advantage in (0.1, -2.0, 0.3, 1.5, 0.2)]
    output = lb.trainer.responses.ForwardBackwardOutput([{"logprobs": lb.TensorData([-1.0, -1.0])}] * 5)
    run = open_run(tmp_path / "run", {})
    record_sequences(run, 1, "ppo", data, output, client().get_tokenizer())
    assert [row["datum"] for row in read_sequences(run.path)] == [1, 3]


def test_a_long_sequence_keeps_the_end_of_its_prompt_and_records_how_much_was_cut(tmp_path: Path) -> None:
    data = [rollout([0.0] * 1000 + [1.0] * 1000, start=0, target_tokens=[7] * 2000)]
    output = lb.trainer.responses.ForwardBackwardOutput([{"logprobs": lb.TensorData(np.full(2000, -1.0, np.float32))}])
    run = open_run(tmp_path / "run", {})
    small = [Datum(lb.ModelInput.from_ints([7] * 2000), data[0].loss_fn_inputs)]
    record_sequences(run, 1, "ppo", small, output, client().get_tokenizer())
    (row,) = read_sequences(run.path)
    before, behind = row["cut"]
    weights = row["tokens"]["weight"]
    assert len(weights) == LONGEST
    assert before + LONGEST + behind == 2001
    assert weights.index(1.0) == 60


def test_a_loss_that_raises_when_called_again_ends_no_run_and_the_record_says_why(tmp_path: Path) -> None:
    def once(data: Sequence[Any], logprobs_list: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        raise RuntimeError("called twice")

    run = open_run(tmp_path / "run", {})
    output = lb.trainer.responses.ForwardBackwardOutput([{"logprobs": lb.TensorData(np.zeros(5, np.float32))}])
    record_sequences(run, 2, once, ROLLOUTS[:1], output, None)
    assert read_sequences(run.path) == [{"step": 2, "refused": "RuntimeError: called twice"}]


def test_every_kind_of_loss_has_a_record_of_its_card(tmp_path: Path) -> None:
    def undocumented(data, logprobs_list):
        raise RuntimeError("a card calls no loss")

    run = open_run(tmp_path / "run", {})
    for loss in (undocumented, *(make() for make, _ in CASES.values()), "trl:dapo"):
        record_loss(run, loss)
        recorded = read_loss(run.path)
        assert recorded["loss"] == str(lb.get_loss(loss))
        assert all(part["name"] for part in recorded["parts"])


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1}',
        '{"step": 1, "tokens": {"text": ["a"], "id": [1, 2]}, "losses": {"ppo": [1, "token"]}, "datum": 0, "of": 1}',
        '{"step": 1, "tokens": {"text": ["a"], "id": [1]}, "losses": {}, "datum": 0, "of": 1}',
        '{"step": 1, "tokens": 3}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "sequences.jsonl").write_text('{"step": 1, "refused": "so"}\n' + line + "\n")
    with pytest.raises(DataFileError, match=r"sequences.jsonl, line 2: not a recorded sequence"):
        read_sequences(tmp_path)


def test_a_run_without_the_file_has_no_sequences(tmp_path: Path) -> None:
    assert read_sequences(tmp_path) == []


def test_the_earlier_path_of_token_losses_still_works() -> None:
    from lossbook.cookbook.reports.microscope import examine

    assert examine is token_losses

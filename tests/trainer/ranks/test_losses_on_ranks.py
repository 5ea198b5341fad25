"""Every loss on several ranks: the loss, the metrics, the outputs and the gradients of one process.

Where the plan of one process is that of the ranks too, float32 differs by the order in which gradients are added up. Where it
is another one, products of other shapes are rounded differently: that is looked at in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lossbook import Datum, ModelInput, list_losses
from lossbook.trainer.ranks import ALONE
from tests.losses.cases import shipped, with_needed

from .calls import Call, Differences, Setup, call_of, differences, run_calls
from .processes import RankProcesses

#: Relative; of the gradients of a loss in float32, as issue and docs promise, and of anything in float64.
FLOAT32, FLOAT64 = 1e-6, 1e-12
ALL_WEIGHTS = Setup(value_head=True)
LORA = Setup(value_head=True, lora={"rank": 4, "seed": 0})
PADDED = {"batching": "padded"}
SETUPS = {
    "all weights, packed": ALL_WEIGHTS,
    "all weights, padded": replace(ALL_WEIGHTS, settings=PADDED),
    "LoRA, packed": LORA,
    "LoRA, padded": replace(LORA, settings=PADDED),
}
#: One of each kind that the engine treats differently: linear, ratios, pairs, datums, batches, of each output; and losses made
#: of losses, with each kind of metric.
KINDS = ("cross_entropy", "grpo", "dpo", "gspo", "kto", "info_nce", "triplet", "value_mse", "entropy_bonus")
KINDS += ("ppo+sequence_clamp", "grpo+top_entropy", "maxsim", "lambda_loss", "adr_mse")
MIXTURES = [
    call_of("grpo", "entropy_bonus", "value_mse", cuts=4),
    call_of("dpo", "cross_entropy", cuts=4),
    call_of("kto", "z_loss", cuts=4),
    call_of("info_nce", "cross_entropy", cuts=4),
]


OVER_LAYERS = call_of("layers of info_nce", cuts=4)
OVER_THE_VOCABULARY = replace(call_of("flops", cuts=4), pooling="splade")


def with_a_key_of_its_own() -> Call:
    """REINFORCE, and cross-entropy of other positions."""
    call, rng = call_of("reinforce", cuts=4, reduction="token-mean"), np.random.default_rng(1)
    parts = [*call.loss, (0.25, "cross_entropy", {"reduction": "token-mean", "weights": "observed"})]
    lengths = [datum.model_input.length for datum in call.data]
    own = [{"observed": rng.integers(0, 2, length).astype(np.float32)} for length in lengths]
    both = [{**datum.loss_fn_inputs, **more} for datum, more in zip(call.data, own, strict=True)]
    data = [Datum(datum.model_input, inputs) for datum, inputs in zip(call.data, both, strict=True)]
    return replace(call, loss=parts, data=data)


def compared(ranks: RankProcesses, setup: Setup, calls: list[Call], size: int) -> list[Differences]:
    """Each call's differences between `size` ranks and one process."""
    alone = run_calls(ALONE, setup, calls)
    several = ranks.run(run_calls, setup, calls, size=size)
    return [differences([own[k] for own in several], result) for k, result in enumerate(alone)]


def assert_same(ranks: RankProcesses, setup: Setup, calls: list[Call], size: int, tolerance: float) -> None:
    names = [" + ".join(name for _, name, _ in call.loss) for call in calls]
    for name, one in zip(names, compared(ranks, setup, calls, size), strict=True):
        assert max(one.loss, one.metrics, one.outputs, one.gradients) <= tolerance, f"{name}: {one}"


@pytest.mark.parametrize(
    ("kind", "losses"),
    [("all weights, packed", KINDS), ("LoRA, padded", ("cross_entropy", "dpo", "info_nce"))],
    ids=["all weights, packed", "LoRA, padded"],
)
def test_two_ranks_give_the_numbers_of_one_process(ranks: RankProcesses, kind: str, losses: tuple[str, ...]) -> None:
    assert_same(
        ranks,
        SETUPS[kind],
        [
            *(call_of(name, cuts=4) for name in losses),
            MIXTURES[0],
            with_a_key_of_its_own(),
            OVER_THE_VOCABULARY,
            OVER_LAYERS,
        ],
        2,
        FLOAT32,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"),
    [("all weights, packed", 2), ("LoRA, padded", 4)],
    ids=lambda value: str(value),
)
def test_every_loss_and_mixture_has_one_process_numbers_on_two_and_four_ranks(
    ranks: RankProcesses, kind: str, size: int
) -> None:
    # whole distributions of a teacher are refused on ranks
    names = [name for name in list_losses() if name in shipped() and not with_needed(name).spec.reads_vocabulary]
    assert_same(ranks, SETUPS[kind], [*(call_of(name, cuts=4) for name in names), *MIXTURES], size, FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETUPS)
def test_ranks_that_cut_a_call_otherwise_give_its_numbers_too(ranks: RankProcesses, kind: str) -> None:
    setup = replace(SETUPS[kind], dtype=torch.float64, settings=SETUPS[kind].settings | {"tokens_per_micro_batch": 20})
    assert_same(ranks, setup, [call_of(name, count=18) for name in KINDS], 3, FLOAT64)


def few(name: str, datums: int) -> Call:
    """A call of so few datums that there is not one for each rank."""
    whole = call_of(name)
    return replace(whole, data=whole.data[-datums:])


def test_a_rank_without_a_datum_takes_part(ranks: RankProcesses) -> None:
    calls = [
        few("cross_entropy", 1),
        few("dpo", 2),
        few("value_mse", 1),
        few("entropy_bonus", 1),
        few("cross_entropy", 2),
    ]
    assert_same(ranks, replace(ALL_WEIGHTS, dtype=torch.float64), calls, 2, FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETUPS)
def test_three_of_four_ranks_may_have_no_datum(ranks: RankProcesses, kind: str) -> None:
    several = ("info_nce", "triplet", "maxsim", "lambda_loss", "adr_mse")  # these need more datums than two
    calls = [few(name, 2) for name in KINDS if name not in several]
    calls += [few("siglip", 2), few("margin_mse", 6), few("cross_entropy", 5)]
    assert_same(ranks, replace(SETUPS[kind], dtype=torch.float64), calls, 4, FLOAT64)


def masked(call: Call) -> Call:
    """The call with datums in which nothing counts before and behind its own."""
    first = call.data[0]
    nothing = Datum(first.model_input, {**first.loss_fn_inputs, "weights": [0.0] * first.model_input.length})
    return replace(call, data=[nothing, nothing, *call.data[-1:], nothing, nothing, nothing])


def test_a_rank_whose_datums_do_not_count_takes_part(ranks: RankProcesses) -> None:
    setup = replace(ALL_WEIGHTS, dtype=torch.float64, settings={"tokens_per_micro_batch": 1})
    assert_same(ranks, setup, [masked(call_of("cross_entropy")), masked(call_of("grpo"))], 2, FLOAT64)


def test_an_encoder_on_ranks_gives_the_numbers_of_one_process(ranks: RankProcesses) -> None:
    calls = [call_of(name, cuts=4) for name in ("info_nce", "margin_mse", "cosent")]
    calls += [replace(calls[0], pooling="cls"), replace(few("siglip", 2), cuts=1)]
    assert_same(ranks, Setup(base="tiny-encoder"), calls, 2, FLOAT32)


def test_ranks_that_read_one_sequence_at_a_time_make_as_many_forwards(ranks: RankProcesses) -> None:
    setup = replace(ALL_WEIGHTS, dtype=torch.float64, settings={"batching": "single"})
    calls = [call_of("cross_entropy", count=5), call_of("dpo", count=6), few("dpo", 2), call_of("info_nce", count=6)]
    assert_same(ranks, setup, calls, 2, FLOAT64)


def groups(call: Call, size: int = 4) -> Call:
    """The call with a beginning of 20 tokens that each `size` datums share, as samples of one prompt do."""
    data: list[Datum] = []
    for i, datum in enumerate(call.data):
        prompt, inputs = [i // size + 1] * 20, dict(datum.loss_fn_inputs)
        for name, value in inputs.items():
            array = value.to_numpy()
            inputs[name] = np.concatenate([np.zeros((20, *array.shape[1:]), array.dtype), array])  # type: ignore[assignment]
        data.append(Datum(ModelInput.from_ints([*prompt, *datum.model_input.to_ints()]), inputs))
    return replace(call, data=data)


@pytest.mark.parametrize("name", ["grpo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_samples_that_share_a_prompt_share_it_on_ranks_too(ranks: RankProcesses, name: str) -> None:
    setup = replace(ALL_WEIGHTS, dtype=torch.float64, settings={"tokens_per_micro_batch": 90, "batching": "packed"})
    # a group may be divided, and the norms' float32 then rounds the gradient of its beginning in two parts
    assert_same(ranks, setup, [groups(call_of(name, count=16)), groups(call_of(name, count=2))], 2, FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"checkpoint_layers": True}, {"offload_activations": True}],
    ids=["checkpointed", "offloaded"],
)
def test_activations_that_are_not_kept_change_nothing_on_ranks(ranks: RankProcesses, settings: dict[str, Any]) -> None:
    setup = replace(ALL_WEIGHTS, settings=settings | PADDED)
    assert_same(
        ranks, setup, [call_of("grpo", cuts=4), call_of("info_nce", cuts=4), few("cross_entropy", 1)], 2, FLOAT32
    )


@pytest.mark.parametrize(
    "limit", [0, pytest.param(10_000, marks=pytest.mark.slow)], ids=["second forward", "kept graphs"]
)
def test_a_loss_over_the_batch_may_be_computed_again_on_ranks(ranks: RankProcesses, limit: int) -> None:
    setup = replace(ALL_WEIGHTS, settings={"kept_graph_tokens": limit})
    calls = [call_of("info_nce", cuts=4), call_of("kto", cuts=4)]
    assert_same(ranks, setup, calls, 2, FLOAT32)
    several = ranks.run(run_calls, setup, calls)
    assert {result.metrics["forward_passes"] for own in several for result in own} == {1 if limit else 2}


@pytest.mark.parametrize("lora", [None, {"rank": 4, "seed": 0, "train_unembed": True}], ids=["all weights", "LoRA"])
def test_an_encoders_masked_lm_head_is_sharded_too(ranks: RankProcesses, lora: dict[str, Any] | None) -> None:
    setup = Setup(base="tiny-encoder", lora=lora, masked_lm_head=True)
    assert_same(ranks, setup, [OVER_THE_VOCABULARY, call_of("info_nce", cuts=4)], 2, FLOAT32)

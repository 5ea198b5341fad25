"""The plan's numbers against arithmetic done by hand."""

from __future__ import annotations

import pytest
import torch

from lossbook.cookbook.doctor.plan.memory import Setup, memory_of
from lossbook.cookbook.doctor.plan.outline import SIZES, Sizes, outline, trained
from lossbook.cookbook.doctor.plan.shape import FOUR_BIT, Shape, Tensors, shape_of
from lossbook.cookbook.doctor.plan.traffic import Speed, operations, times_of, traffic_of

#: `tiny`: width 64, MLP 192, 4 heads of 16, 2 of them for keys, 260 tokens, untied.
D, F, H, KV, V = 64, 192, 4, 32, 260
LAYER = 2 * D * D + 2 * KV * D + 3 * D * F + 2 * D
ROOT = 2 * V * D + D


def shape(model: str | Sizes = "tiny", *, rank: int | None = None, dtype: torch.dtype = torch.float32) -> Shape:
    return shape_of(trained(outline(model, dtype), rank))


@pytest.fixture(scope="module")
def tiny() -> Shape:
    return shape()


@pytest.fixture(scope="module")
def adapted() -> Shape:
    return shape(rank=8)


def test_parameters_are_those_of_the_layers_and_the_rest(tiny: Shape) -> None:
    assert [layer.numbers for layer in tiny.layers] == [LAYER, LAYER] == [49280, 49280]
    assert tiny.root.numbers == ROOT == 33344


@pytest.mark.parametrize(
    ("model", "billions"),
    [("llama-7b", 6.738), ("llama-8b", 8.030), ("llama-70b", 70.554)],
    ids=["Llama 2 7B", "Llama 3.1 8B", "Llama 3.1 70B"],
)
def test_sizes_by_name_give_the_parameters_of_their_model_cards(model: str, billions: float) -> None:
    outlined = outline(SIZES[model], torch.bfloat16)
    assert sum(p.numel() for p in outlined.module.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    assert all(p.is_meta for p in outlined.module.parameters())


def test_adapters_have_a_row_and_a_column_of_their_rank_for_each_matrix(adapted: Shape) -> None:
    sides = 2 * (D + D) + 2 * (D + KV) + 3 * (D + F)  # q and o, k and v, the MLP's three
    assert adapted.adapters == 2 * 8 * sides
    assert adapted.sharded == 2 * LAYER + ROOT


def test_a_rank_holds_whole_rows_of_every_parameter() -> None:
    group = Tensors(rows=(260, 64), sizes=(260 * 64, 64))
    assert group.of_rank(4) == 65 * 64 + 16
    assert group.of_rank(3) == 87 * 64 + 22, "260 rows in three: 87, 87, 86"


def test_a_layer_keeps_what_its_operations_save_for_the_backward(tiny: Shape) -> None:
    norms = 2 * (3 * D + 1)  # input, normalized, times weight, and one number of each token
    attention = 3 * D + 2 * KV + H  # query, output, the next product's input; key and value; a number of each head
    mlp = 4 * F  # gate, up, activated gate, their product
    rotation = 2 * 16  # cosine and sine, kept once, by the first layer that reads them
    layer = 4 * (norms + attention + mlp)
    assert tiny.one_layer.per_token == layer + 4 * rotation
    last = 4 * (2 * D + 1) + 8  # the last norm's, and the token itself, an int64
    assert tiny.kept.per_token == 2 * layer + 4 * rotation + last
    positions = 8  # int64, which every layer is given
    assert tiny.checkpointed.per_token == 4 * (2 * D + rotation) + positions + last, "the layers' inputs"
    assert (tiny.kept.fixed, tiny.product_bytes) == (0, 4)


def test_each_further_layer_keeps_as_much_again(tiny: Shape) -> None:
    deep = shape(Sizes(64, 6, 4, 2, 192, 260))
    layer = tiny.one_layer.per_token - 4 * 2 * 16  # without cosine and sine
    assert deep.kept.per_token == tiny.kept.per_token + 4 * layer
    assert deep.checkpointed.per_token == tiny.checkpointed.per_token + 4 * 4 * D


def test_under_autocast_the_graph_holds_a_copy_of_every_linear_weight() -> None:
    narrow = shape(dtype=torch.bfloat16)
    linear = 2 * (LAYER - 2 * D)
    assert (narrow.weight_bytes, narrow.product_bytes, narrow.linear) == (4, 2, linear)
    assert narrow.kept.fixed == 2 * linear
    assert narrow.one_layer.fixed == linear, "two bytes of each of its weights, which are half of all"
    two = memory_of(narrow, Setup(2, 64))
    assert two.times["the head runs"]["copies"] == 2 * linear + 2 * V * D
    again = memory_of(narrow, Setup(2, 64, checkpoint_layers=True))
    assert again.times["the backward begins"]["copies"] == linear


def test_all_weights_take_16_bytes_of_each_number_of_a_ranks_part(tiny: Shape) -> None:
    for ranks, rows in ((1, 260), (2, 130), (4, 65)):
        own = (2 * LAYER + D) // ranks + 2 * rows * D
        memory = memory_of(tiny, Setup(ranks, 64))
        assert (memory.weights, memory.moments) == (4 * own, 8 * own)
        assert memory.times["it ends"]["gradients"] == 4 * own


def test_adapters_are_whole_on_every_rank_and_the_base_is_not(adapted: Shape) -> None:
    memory = memory_of(adapted, Setup(4, 64))
    assert memory.weights == 4 * ((2 * LAYER + D) // 4 + 2 * 65 * D) + 4 * adapted.adapters
    assert memory.moments == 8 * adapted.adapters
    assert "unsharded" not in memory.times["it ends"]


def test_two_layers_and_the_rest_are_whole_at_one_time() -> None:
    deep = shape(Sizes(64, 6, 4, 2, 192, 260))
    memory = memory_of(deep, Setup(2, 64))
    assert memory.times["it ends"]["gathered"] == 4 * (2 * LAYER + ROOT)
    assert memory.times["it ends"]["unsharded"] == 4 * (2 * LAYER + ROOT)
    assert memory.whole == 4 * (6 * LAYER + ROOT)


def test_four_bits_are_4_127_of_each_weight_inside_the_layers() -> None:
    assert pytest.approx(4.127, abs=1e-3) == FOUR_BIT * 8  # Dettmers et al. 2023: 4 + 0.127
    base = shape(rank=8, dtype=torch.bfloat16)
    saved = memory_of(base, Setup(1, 64)).weights - memory_of(base, Setup(1, 64, four_bit=True)).weights
    assert saved == pytest.approx(2 * (LAYER - 2 * D) * (2 - 4.127 / 8), rel=1e-3)


def test_a_micro_batch_gathers_each_layer_twice_and_the_rest_once() -> None:
    three = shape(Sizes(64, 3, 4, 2, 192, 260))
    traffic = traffic_of(three, Setup(4, 64))
    assert (traffic.gathers, traffic.scatters) == (7, 4)  # as counted on gloo ranks for three layers
    assert traffic.gathered_bytes == 4 * (6 * LAYER + ROOT) * 3 // 4
    assert traffic.scattered_bytes == 4 * (3 * LAYER + ROOT) * 3 // 4
    assert traffic_of(three, Setup(1, 64)).bytes == 0


def test_adapters_are_summed_once_a_call(adapted: Shape) -> None:
    traffic = traffic_of(adapted, Setup(2, 64))
    assert (traffic.gathers, traffic.scatters, traffic.scattered_bytes) == (5, 0, 0)
    assert traffic.call_bytes == 4 * adapted.adapters


def test_operations_are_6_of_each_weight_and_4_with_adapters(tiny: Shape, adapted: Shape) -> None:
    weights = 2 * (LAYER - 2 * D) + V * D
    assert operations(tiny, Setup(1), context=0) == 6 * weights
    assert operations(adapted, Setup(1), context=0) == 4 * weights + 6 * adapted.adapters
    again = operations(tiny, Setup(1, checkpoint_layers=True), context=0)
    assert again == 6 * weights + 2 * 2 * (LAYER - 2 * D)
    attention = operations(tiny, Setup(1), context=100) - 6 * weights
    assert attention == 3 * 2 * (4 * 100 * D), (
        "scores and sums of values: 2 operations each of 64 numbers, thrice, two layers"
    )


def test_efficiency_is_the_share_of_time_that_computes(tiny: Shape) -> None:
    setup = Setup(2, 1000)
    flops, bytes_ = 1000 * operations(tiny, setup, 0), traffic_of(tiny, setup).bytes
    even = times_of(tiny, setup, Speed(flops, bytes_, 0.0), 0)
    assert (even.compute, even.exchange) == (1.0, 1.0)
    assert even.efficiency_alone == 0.5
    first_and_last = (4 * (ROOT + LAYER) + 4 * ROOT) / 2 / bytes_
    assert even.exposed == pytest.approx(first_and_last)
    slow = times_of(tiny, setup, Speed(flops, bytes_ / 10, 0.0), 0)
    assert slow.exposed == pytest.approx(9.0), "ten seconds of transfers, one of which runs beside the products"
    alone = times_of(tiny, Setup(1, 1000), Speed(flops, bytes_, 0.0), 0)
    assert (alone.efficiency, alone.efficiency_alone) == (1.0, 1.0)

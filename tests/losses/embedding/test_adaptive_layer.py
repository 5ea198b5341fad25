"""Any embedding loss over layers of the model: its parts, its numbers by hand, the laws it keeps, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, ModelInput, adaptive_layer, get_loss, matryoshka, matryoshka_2d, sampled_layers
from lossbook.datums.errors import LossbookError, LossConfigError, LossContractError, NonFiniteLossInput, ShapeError
from lossbook.losses.testing import parametrize_with_checks
from lossbook.losses.testing.reproduce import loss_source

from ..cases import assert_rows_equal, evaluated_by_name, loss_of

LAST = [[1.0, 0.0, 0.5], [0.6, 0.8, -1.0], [0.8, 0.6, 0.25], [-0.5, 1.0, 2.0]]
#: Of the layers 1 and 4, of each text.
LAYERS = [[row[::-1], [x + i / 4 for x in row]] for i, row in enumerate(LAST)]


def texts(count: int, **inputs: Any) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), inputs)] * count


def of(loss: Any, data: list[Datum], last: Any, layers: Any) -> tuple[float, dict[str, list[Tensor]], dict[str, float]]:
    return evaluated_by_name(loss, data, {"embeddings": last, "layer_embeddings": layers})


def squared(embeddings: Tensor) -> Tensor:
    return embeddings.square().sum(1)


def divergence(last: Any, layer: Any, temperature: float) -> np.ndarray:
    """[N] KL of softmaxes, written again in NumPy."""

    def logs(vectors: Any) -> np.ndarray:
        scaled = np.asarray(vectors, dtype=np.float64) / temperature
        return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))

    p, q = logs(last), logs(layer)
    return (np.exp(p) * (p - q)).sum(1)


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [("uniform", (1, 1)), ("log", (1 / (1 + math.log(2)), 1 / (1 + math.log(5)))), ("linear", (1 / 2, 1 / 5))],
)
def test_it_is_the_loss_of_the_last_layer_and_of_each_other_and_their_divergence(
    weighting: str, weights: tuple[float, float]
) -> None:
    loss = adaptive_layer(
        "info_nce",
        layers=(1, 4),
        temperature=0.5,
        last_layer_weight=2.0,
        prior_layers_weight=0.5,
        kl_weight=3.0,
        kl_temperature=0.25,
        layer_weighting=weighting,
    )
    base = get_loss("info_nce", temperature=0.5)
    value, _, metrics = of(loss, texts(4), LAST, LAYERS)
    own, own_metrics = base(texts(4), [torch.tensor(row, dtype=torch.float64) for row in LAST])
    expected = 2 * float(own)
    assert {key: metrics[key] for key in own_metrics} == pytest.approx(own_metrics)
    assert metrics["last_layer/loss"] == pytest.approx(float(own))
    for i, (layer, weight) in enumerate(zip((1, 4), weights, strict=True)):
        rows = [one[i] for one in LAYERS]
        other, other_metrics = base(texts(4), [torch.tensor(row, dtype=torch.float64) for row in rows])
        kl = float(divergence(LAST, rows, 0.25).mean())
        expected += 0.5 * weight / 2 * float(other) + 3 * 0.25 * kl
        assert metrics[f"layer_{layer}/layer_kl"] == pytest.approx(kl)
        assert metrics[f"layer_{layer}/loss"] == pytest.approx(float(other))
        assert {key: metrics[f"layer_{layer}/{key}"] for key in other_metrics} == pytest.approx(other_metrics)
    assert value == pytest.approx(expected, rel=1e-12)


def test_two_texts_by_hand() -> None:
    # |x|²: 1 and 4 at the last layer, 4 and 0 at layer 2: means 2.5 and 2. At temperature 1 the vectors' softmaxes are
    # (e, 1) / (e + 1) against (1, e²) / (1 + e²), and (1, e²) / (1 + e²) against (1, 1) / 2.
    loss = adaptive_layer(loss_of(squared, per="datum"), layers=(2,), kl_temperature=1.0)
    value, gradients, metrics = of(loss, texts(2), [[1.0, 0.0], [0.0, 2.0]], [[[0.0, 2.0]], [[0.0, 0.0]]])
    e = math.e
    p, q, r = e / (e + 1), 1 / (1 + e**2), e**2 / (1 + e**2)
    first = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    second = q * math.log(2 * q) + r * math.log(2 * r)
    assert value == pytest.approx(2.5 + 2 + (first + second) / 2, rel=1e-12)
    assert metrics == pytest.approx(
        {"last_layer/loss": 2.5, "layer_2/loss": 2, "layer_2/layer_kl": (first + second) / 2}
    )
    # d KL / d layer = softmax(layer) - softmax(last), halved for two texts; the last layer has the gradient of |x|² alone.
    assert_rows_equal(gradients["embeddings"], [[1, 0], [0, 2]], 1e-12)
    slopes = [[[(q - p) / 2, 2 + (p - q) / 2]], [[(0.5 - q) / 2, (0.5 - r) / 2]]]
    assert_rows_equal(gradients["layer_embeddings"], slopes, 1e-12)


def test_without_its_weights_the_other_layers_and_the_divergence_are_nothing() -> None:
    loss = adaptive_layer("info_nce", layers=(1, 4), prior_layers_weight=0.0, kl_weight=0.0)
    value, gradients, _ = of(loss, texts(4), LAST, LAYERS)
    assert value == pytest.approx(
        float(get_loss("info_nce")(texts(4), [torch.tensor(row).double() for row in LAST])[0])
    )
    assert not any(bool(rows.any()) for rows in gradients["layer_embeddings"])


def test_matryoshka_2d_is_adaptive_layer_of_matryoshka() -> None:
    both = matryoshka_2d("info_nce", layers=[1, 4], dims=(3, 2), weights=(1, 0.5), temperature=0.5, kl_weight=0.5)
    nested = adaptive_layer(
        matryoshka("info_nce", dims=(3, 2), weights=(1, 0.5), temperature=0.5), layers=(1, 4), kl_weight=0.5
    )
    one, other = of(both, texts(4), LAST, LAYERS), of(nested, texts(4), LAST, LAYERS)
    assert (one[0], one[2]) == (other[0], other[2])
    assert both.name == "adaptive_layer(matryoshka(info_nce,3+2))"
    assert {"layer_4/dim_2/loss", "dim_3/in_batch_recall_at_1"} <= set(one[2])


@parametrize_with_checks([adaptive_layer("contrastive_pairs", layers=(2,), kl_weight=0.5)], max_examples=2)
def test_it_keeps_the_laws(loss: Any, check: Any) -> None:
    check(loss)


@pytest.mark.slow
@parametrize_with_checks(
    [
        adaptive_layer("info_nce", layers=(0, 3)),
        adaptive_layer("contrastive_pairs", layers=(2, 7), layer_weighting="log"),
        matryoshka_2d("cosent", layers=(1, 0), dims=(3, 1), last_layer_weight=0.5),
        adaptive_layer("info_nce", layers=(4,), kl_temperature=1.0) + 0.5 * get_loss("ntxent"),
        adaptive_layer(loss_of(squared, per="datum"), layers=(1, 3)),
    ],
    max_examples=20,
)
def test_all_kinds_keep_the_laws(loss: Any, check: Any) -> None:
    check(loss)


def test_its_settings_are_those_of_the_loss_and_its_own() -> None:
    loss = adaptive_layer("contrastive_pairs", layers=[3, 1], margin=0.75, kl_temperature=1.0)
    assert (loss.couples, loss.reduction, loss.layers) == ("pair", "pair-mean", (3, 1))
    assert loss.settings["margin"] == 0.75
    other = get_loss(loss, layers=(2,), distance="euclidean")
    assert (other.layers, other.settings["kl_temperature"], other.settings["margin"]) == ((2,), 1.0, 0.75)


def test_a_reproducer_makes_it_again() -> None:
    loss = matryoshka_2d("info_nce", layers=(1, 4), dims=(3, 1), temperature=0.5, kl_weight=0.5)
    imports, expression = loss_source(loss)
    namespace: dict[str, Any] = {}
    exec(f"{imports}from lossbook import get_loss\nloss = {expression}", namespace)
    assert repr(namespace["loss"]) == repr(loss)
    assert of(namespace["loss"], texts(4), LAST, LAYERS)[0] == of(loss, texts(4), LAST, LAYERS)[0]


def test_tensors_give_what_datums_give() -> None:
    loss = adaptive_layer("info_nce", layers=(1, 4)) + 0.5 * get_loss("ntxent")
    last, layers = torch.tensor(LAST).double(), torch.tensor(LAYERS).double()
    value, metrics = loss.on_tensors(embeddings=last, layer_embeddings=layers)
    expected, named = loss(texts(4), {"embeddings": list(last), "layer_embeddings": list(layers)})
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert metrics == pytest.approx(named)
    with pytest.raises(ShapeError, match=r"layer_embeddings is \[4, 3\]: one vector per row and layer, \[4, 2, D\]"):
        loss.on_tensors(embeddings=last, layer_embeddings=last)
    layers[2, 1, 1] = torch.nan
    with pytest.raises(NonFiniteLossInput, match="layer_embeddings of row 2 is nan at 1"):
        loss.on_tensors(embeddings=last, layer_embeddings=layers)


@given(depth=st.integers(1, 40), count=st.integers(1, 40), seed=st.integers(0, 99), step=st.integers(0, 999))
def test_sampled_layers_are_different_ones_below_the_last_and_the_same_again(
    depth: int, count: int, seed: int, step: int
) -> None:
    layers = sampled_layers(depth, count, seed=seed, step=step)
    assert list(layers) == sorted(set(layers))
    assert len(layers) == min(count, depth)
    assert set(layers) <= set(range(depth))
    assert sampled_layers(depth, count, seed=seed, step=step) == layers
    assert sampled_layers(depth, count, step=step) == sampled_layers(depth, count, seed=0, step=step)


def test_each_layer_is_drawn_about_as_often_as_any_other() -> None:
    drawn = [sampled_layers(6, 1, step=step)[0] for step in range(600)]
    assert all(60 < drawn.count(layer) < 140 for layer in range(6))  # 100 each, with a deviation of 9
    with pytest.raises(LossConfigError, match="at least one of at least one layer, not 0 of 6"):
        sampled_layers(6, 0, step=1)
    with pytest.raises(LossConfigError, match="not 1 of 0"):
        sampled_layers(0, 1, step=1)


@pytest.mark.parametrize(
    ("loss", "settings", "error", "message"),
    [
        ("ppo", {}, LossContractError, "adaptive_layer reads the embeddings of several layers, but ppo reads logprobs"),
        ("maxsim", {}, LossContractError, "but maxsim reads token_embeddings"),
        (
            get_loss("info_nce") + get_loss("cosent"),
            {},
            LossContractError,
            "adaptive_layer takes one loss, not a mixture: wrap its parts, and mix those",
        ),
        (adaptive_layer("info_nce", layers=(1,)), {}, LossContractError, "reads embeddings, layer_embeddings"),
        ("info_nce", {"layers": ()}, LossConfigError, "layers=(): names layers below the last, each once"),
        ("info_nce", {"layers": (1, 1)}, LossConfigError, "names layers below the last, each once"),
        ("info_nce", {"layers": (-1,)}, LossConfigError, "names layers below the last, each once"),
        ("info_nce", {"kl_temperature": 0.0}, LossConfigError, "kl_temperature=0.0"),
        ("info_nce", {"layer_weighting": "lin"}, LossConfigError, "layer_weighting='lin'"),
        ("info_nce", {"temprature": 0.1}, LossConfigError, "has no setting 'temprature'"),
    ],
)
def test_what_it_refuses(loss: Any, settings: dict[str, Any], error: type[LossbookError], message: str) -> None:
    with pytest.raises(error) as caught:
        adaptive_layer(loss, **{"layers": (1,), **settings})
    assert message in str(caught.value)


def test_other_layers_than_those_of_the_setting_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"layer_embeddings is \[4, 2, 3\], but layers=\(1,\) asks for \[N, 1, D\]"):
        of(adaptive_layer("info_nce", layers=(1,)), texts(4), LAST, LAYERS)
    with pytest.raises(LossContractError, match=r"embeddings of the layers \(1,\) and \(2,\)"):
        _ = adaptive_layer("info_nce", layers=(1,)) + adaptive_layer("ntxent", layers=(2,))


def test_a_loss_over_layers_says_of_which() -> None:
    def silent(layer_embeddings: Tensor) -> Tensor:
        return layer_embeddings.square().sum((1, 2))

    with pytest.raises(LossContractError, match=r"it needs a keyword-only setting that says of which layers"):
        loss_of(silent, per="datum")


def test_the_defaults_are_those_of_sentence_transformers() -> None:
    settings = adaptive_layer("info_nce", layers=(1, 4)).settings
    # AdaptiveLayerLoss(last_layer_weight=1.0, prior_layers_weight=1.0, kl_div_weight=1.0, kl_temperature=0.3)
    own = ("last_layer_weight", "prior_layers_weight", "kl_weight", "kl_temperature")
    assert [settings[key] for key in own] == [1.0, 1.0, 1.0, 0.3]
    for key, value in (("kl_temperature", 0.0), ("kl_weight", -0.1), ("prior_layers_weight", -0.1)):
        with pytest.raises(LossConfigError, match=key):
            adaptive_layer("info_nce", layers=(1, 4), **{key: value})

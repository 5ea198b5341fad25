"""Cards: what a loss's docstring, signature and registration say, put in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from lossbook import describe_loss, get_loss, list_losses, register_loss, unregister_loss
from lossbook.losses import Axes, LossCard, LowerBound, NonNegative, PerDatum, Positive, RatioBound, UpperBound, stats
from lossbook.losses.cards.card import SettingCard, TensorCard, card_of
from lossbook.losses.cards.docstrings import TensorLine, read_docstring
from lossbook.losses.cards.sample_inputs import usable
from lossbook.losses.cards.setting_text import type_text
from lossbook.losses.cards.standard_inputs import STANDARD_INPUTS
from lossbook.losses.spec.settings import Smoothing
from lossbook.losses.stats import Stat

ALL = [name for name in list_losses() if describe_loss(name).defined_in.startswith("lossbook.")]


def described(function: Callable[..., Any], **registration: Any) -> LossCard:
    """The card that registering `function` gives; the registry is left as it was."""
    register_loss(function.__name__, **registration)(function)
    try:
        return describe_loss(function.__name__)
    finally:
        unregister_loss(function.__name__)


# What a card says.


def test_a_card_holds_formula_tensors_settings_metrics_and_source() -> None:
    card = describe_loss("ppo")
    assert (card.name, card.family, card.per, card.couples, card.reduction) == (
        "ppo",
        "policy",
        "token",
        "token",
        "sum",
    )
    assert card.formula == "-min(r A, clip(r) A), where r = exp(logprobs - sampling_logprobs)."
    assert card.axes.ratio == "token"
    assert card.outputs == {"logprobs": TensorCard("logprobs", "[T]", "nats", "under the policy in training")}
    assert card.inputs["sampling_logprobs"].keys == ("sampling_logprobs", "logprobs")
    assert card.inputs["clip_low_threshold"] == TensorCard(
        "clip_low_threshold",
        "[T]",
        "unitless",
        "bounds per token instead of clip_low",
        required=False,
        keys=("clip_low_threshold",),
    )
    assert card.settings["clip_low"] == SettingCard("clip_low", "float", 0.8, "in [0, 1]")
    assert card.settings["clip_high"] == SettingCard("clip_high", "float", 1.2, "at least 1")
    assert card.settings["norm_length"] == SettingCard("norm_length", "int | None", None, "at least 1")
    assert card.metrics.items() >= {"clip_fraction": "mean", "ratio_max": "max", "ratio_capped": "sum"}.items()
    assert "on_policy_is_reinforce" in card.laws
    assert card.claims == card.laws  # the older word
    assert card.as_dict()["claims"] == card.as_dict()["laws"]
    assert "tinker:ppo" in card.presets
    assert card.defined_in == "lossbook.losses.policy.clipped.ppo"
    assert "1707.06347" in card.source


def test_an_input_that_a_setting_makes_necessary_says_which() -> None:
    wanted = describe_loss("grpo").inputs["ref_logprobs"]
    assert wanted.required == "kl_coefficient"
    assert wanted.need == "required unless kl_coefficient is 0"


@pytest.mark.parametrize("name", ALL)
def test_every_shipped_loss_says_its_formula_its_source_and_each_tensors_unit(name: str) -> None:
    card = describe_loss(name)
    assert card.formula.endswith(".")
    assert card.source
    for tensor in (*card.outputs.values(), *card.inputs.values()):
        assert tensor.unit, f"{name}: the docstring has no line `{tensor.name}   [T]  unit, meaning`"
        assert tensor.meaning
    assert card.returns.unit, f"{name}: the docstring has no line `returns   [T]  unit`"
    assert str(card).startswith(name)
    assert max(map(len, str(card).splitlines())) <= 140


@pytest.mark.parametrize("name", ALL)
def test_a_docstring_does_not_repeat_the_description_of_a_standard_input(name: str) -> None:
    lines = read_docstring(usable(name).spec.function).tensors
    assert not [tensor for tensor, line in lines.items() if STANDARD_INPUTS.get(tensor) == line]


@pytest.mark.parametrize("name", ALL)
def test_every_card_survives_json(name: str) -> None:
    card = describe_loss(name).as_dict()
    assert json.loads(json.dumps(card, allow_nan=False)) == card


@pytest.mark.parametrize("name", ALL)
def test_the_metrics_of_a_card_are_those_that_the_loss_returns(name: str) -> None:
    metrics = describe_loss(name).metrics
    assert set(metrics.values()) <= {"mean", "sum", "min", "max"}
    assert ("nll" in metrics) == (
        "logprobs" in describe_loss(name).outputs
        and "weights" not in usable(name).spec.parameters
        and not usable(name).spec.candidates
    )


def test_a_loss_that_says_nothing_about_itself_has_a_card_still() -> None:
    def silent(logprobs, label: PerDatum, share, *, floor=-20.0):  # type: ignore[no-untyped-def]
        return -logprobs.clamp(min=floor)

    card = described(silent)
    assert card.formula == card.description == card.source == ""
    assert card.inputs["label"] == TensorCard("label", "[N]", "", "one per datum", True, ("label",))
    assert card.inputs["share"] == TensorCard("share", "[T]", "", "one per token", True, ("share",))
    assert card.settings["floor"] == SettingCard("floor", "float", -20.0, "")
    assert card.returns == TensorCard("returns", "[T]", "", "one loss per token")
    assert str(card).splitlines()[:2] == ["silent", "  its docstring has no formula"]
    assert "  source      not stated" in str(card)


def test_a_standard_input_is_described_where_the_docstring_says_nothing_else() -> None:
    def partly_silent(logprobs: Tensor, advantages: Tensor, ref_logprobs: Tensor) -> Tensor:
        """-A logprobs.

        advantages     [T]  points, by how much the player won
        ref_logprobs   [T]  nats
        """
        return -advantages * logprobs + 0 * ref_logprobs

    card = described(partly_silent)
    assert card.outputs["logprobs"] == TensorCard("logprobs", "[T]", "nats", "under the policy in training")
    assert card.inputs["advantages"].unit == "points"
    assert card.inputs["advantages"].meaning == "by how much the player won"
    assert card.inputs["ref_logprobs"].meaning == STANDARD_INPUTS["ref_logprobs"].meaning


def test_a_card_says_aliases_axes_and_how_other_systems_differ() -> None:
    def own(logprobs: Tensor) -> Tensor:
        """-logprobs.

        logprobs   [T]  nats, of the target
        returns    [T]  nats
        """
        return -logprobs

    card = described(
        own, aliases=["likelihood"], axes=Axes("sequence", "none at all", "k2"), differs={"TRL": "has a mean inside"}
    )
    shown = str(card)
    assert shown.startswith("own  (also likelihood)\n  -logprobs.\n")
    for line in (
        "  ratio         sequence",
        "  clip          none at all",
        "  KL            k2",
        "  TRL  has a mean inside",
    ):
        assert line in shown.splitlines()


def test_a_card_of_a_configured_loss_shows_its_own_settings() -> None:
    card = card_of(get_loss("ppo", clip_high=1.5, reduction="token-mean"))
    assert card.settings["clip_high"].default == 1.5
    assert card.settings["clip_low"].default == 0.8
    assert card.reduction == "token-mean"


def test_a_setting_without_a_default_is_required_and_costs_only_the_metrics() -> None:
    def needy(logprobs: Tensor, *, margin: float) -> tuple[Tensor, dict[str, Stat]]:
        return margin - logprobs, {"margin": stats.mean(logprobs)}

    card = described(needy)
    assert card.settings["margin"] == SettingCard("margin", "float", None, "", required=True)
    assert str(card.settings["margin"]) == "margin: float = required"
    assert card.metrics == {}


def test_a_loss_that_refuses_no_data_has_its_metrics_from_the_least_it_takes() -> None:
    def picky(logprobs: Tensor) -> tuple[Tensor, dict[str, Stat]]:
        if len(logprobs) == 0:
            raise ValueError("nothing to do")
        return -logprobs, {"worst": stats.min(logprobs)}

    def triplets(embeddings: Tensor) -> tuple[Tensor, dict[str, Stat]]:
        anchor, positive, negative = embeddings.reshape(3, -1, embeddings.shape[1])
        if len(embeddings) % 3 or len(embeddings) == 0:
            raise ValueError("triplets")
        distances = torch.relu(((anchor - positive) ** 2).sum(1) - ((anchor - negative) ** 2).sum(1) + 1)
        return torch.cat([distances] * 3), {"active": stats.sum(distances > 0)}

    assert described(picky).metrics == {"nll": "mean", "worst": "min"}
    assert described(triplets, per="datum", couples="batch").metrics == {"active": "sum"}


# Bounds and types.


@pytest.mark.parametrize(
    ("annotation", "shown", "bounds"),
    [
        (float, "float", ""),
        (LowerBound, "float", "in [0, 1]"),
        (UpperBound, "float", "at least 1"),
        (RatioBound, "float", "at least 0"),
        (Positive, "float", "above 0"),
        (NonNegative, "float", "at least 0"),
        (Smoothing, "float", "in [0, 0.5)"),
        (Annotated[float, Gt(0), Le(2)], "float", "in (0, 2]"),
        (Annotated[float, Lt(1)], "float", "below 1"),
        (Annotated[int, Le(-1)], "int", "at most -1"),
        (Annotated[int, Ge(1)] | None, "int | None", "at least 1"),
        (tuple[Annotated[int, Ge(1)], ...], "tuple[int, ...]", "at least 1"),
        (Literal["k1", 2], '"k1" | 2', ""),
        (list[float], "list[float]", ""),
    ],
)
def test_the_type_and_bounds_of_a_setting_are_plain_text(annotation: Any, shown: str, bounds: str) -> None:
    def bounded(logprobs: Tensor, *, setting: Any) -> Tensor:
        return logprobs * setting

    bounded.__annotations__["setting"] = annotation
    card = described(bounded).settings["setting"]
    assert (card.type, card.bounds) == (shown, bounds)


def test_a_default_that_json_cannot_hold_is_its_repr() -> None:
    def odd(logprobs: Tensor, *, widths: Any = (1, 2), thing: Any = torch.float32) -> Tensor:
        return -logprobs

    settings = described(odd).as_dict()["settings"]
    assert settings["widths"]["default"] == [1, 2]
    assert settings["thing"]["default"] == "torch.float32"
    assert settings["thing"]["type"] == "any"


def test_a_type_of_no_name_is_shown_as_it_is() -> None:
    assert type_text(None) == "None"
    assert type_text("my.Type") == "my.Type"


# Docstrings.


def documented(text: str) -> Any:
    def function(logprobs: Tensor, sampling_logprobs: Tensor, weights: Tensor, with_: Tensor) -> None: ...

    function.__doc__ = text
    return read_docstring(function)


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        ("logprobs   [T]  nats, under the policy", "logprobs", TensorLine("[T]", "nats", "under the policy")),
        ("logprobs   [T]  nats  under the policy", "logprobs", TensorLine("[T]", "nats", "under the policy")),
        ("logprobs [T] nats", "logprobs", TensorLine("[T]", "nats", "")),
        ("logprobs   [T]", "logprobs", TensorLine("[T]", "", "")),
        ("logprobs   [T] or [T, K]  nats", "logprobs", TensorLine("[T] or [T, K]", "nats", "")),
        ("returns    [N/2]  nats; ln 2 at first", "returns", TensorLine("[N/2]", "nats", "ln 2 at first")),
        ("returns    []     nats: one", "returns", TensorLine("[]", "nats", "one")),
        ("weights    [T]  in [0, 1], a share", "weights", TensorLine("[T]", "in [0, 1]", "a share")),
        ("weights    [T]  unitless, optional: bounds", "weights", TensorLine("[T]", "unitless", "bounds")),
        (
            "weights    [T]  whatever anybody thinks that a weight might be",
            "weights",
            TensorLine("[T]", "", "whatever anybody thinks that a weight might be"),
        ),
        ("entropy    [T]  nats, not a parameter here", "entropy", TensorLine("[T]", "nats", "not a parameter here")),
    ],
)
def test_the_line_of_a_tensor_gives_shape_unit_and_meaning(line: str, name: str, said: TensorLine) -> None:
    parts = documented(f"A formula.\n\n{line}\n")
    assert (parts.returns if name == "returns" else parts.tensors[name]) == said


def test_one_line_may_speak_of_several_tensors() -> None:
    parts = documented("A formula.\n\n    logprobs, sampling_logprobs   [T] nats\n    ")
    assert parts.tensors == dict.fromkeys(("logprobs", "sampling_logprobs"), TensorLine("[T]", "nats", ""))


def test_an_indented_line_goes_on_with_the_one_above() -> None:
    parts = documented(
        "A formula.\n\n    weights   [T]  unitless, of a\n              token\n    returns   [T]  nats\n"
    )
    assert parts.tensors["weights"].meaning == "of a token"
    assert parts.returns == TensorLine("[T]", "nats", "")


def test_an_input_called_returns_is_told_from_what_is_returned() -> None:
    def critic(values: Tensor, returns: Tensor) -> None:
        """(v - R)².

        values    [T]  in units of the reward
        returns   [T]  in units of the reward, what is to be predicted
        returns   [T]  in units of the reward squared
        """

    parts = read_docstring(critic)
    assert parts.tensors["returns"].meaning == "what is to be predicted"
    assert parts.returns == TensorLine("[T]", "in units of the reward squared", "")


def test_the_formula_is_the_first_paragraph_and_the_rest_are_notes() -> None:
    parts = documented(
        "x + y,\n    where y = 2.\n\n    logprobs   [T]  nats\n\n    With [N, K] targets it differs.\n\n    So.\n"
    )
    assert parts.formula == "x + y, where y = 2."
    assert parts.notes == "With [N, K] targets it differs.\n\nSo."
    assert documented("x.\nlogprobs   [T]  nats").formula == "x."
    assert documented("") == documented("   ")
    assert documented("").formula == documented("").notes == ""

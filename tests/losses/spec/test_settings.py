"""Settings of a loss: strict, validated, and refused with the likely mend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError
from torch import Tensor

from lossbook import describe_loss, get_loss, register_loss, unregister_loss
from lossbook.datums.errors import LossConfigError
from lossbook.losses import LossCard

from ..cases import loss_of


def card_of(function: Callable[..., Any]) -> LossCard:
    """The card that registering `function` gives; the registry is left as it was."""
    register_loss(function.__name__)(function)
    try:
        return describe_loss(function.__name__)
    finally:
        unregister_loss(function.__name__)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        pytest.param("ppo", {"clip_hi": 1.2}, "ppo has no setting 'clip_hi'. Did you mean 'clip_high'?", id="misspelt"),
        pytest.param("cross_entropy", {"beta": 0.1}, "cross_entropy has no setting 'beta'.", id="another loss's"),
        pytest.param(
            "cross_entropy",
            {"clip_low_threshold": 0.8},
            "cross_entropy has no setting 'clip_low_threshold'.",
            id="another loss's, in another system's spelling",
        ),
        pytest.param(
            "ppo",
            {"clip_high": 1.2, "clip_high_threshold": 1.3},
            "ppo: 'clip_high' is given twice, also as its other spelling 'clip_high_threshold'",
            id="in both spellings",
        ),
        pytest.param(
            "ppo",
            {"clip_high": 0.2},
            "ppo: clip_high=0.2: is a bound on the ratio itself, at least 1, not a distance from it: did you mean 1.2?",
            id="a distance instead of a bound",
        ),
        pytest.param(
            "ppo",
            {"clip_low": 1.2},
            "ppo: clip_low=1.2: is a bound on the ratio itself and lies in [0, 1], got 1.2.",
            id="the bounds interchanged",
        ),
        pytest.param(
            "ppo",
            {"clip_high": -0.2},
            "ppo: clip_high=-0.2: is a bound on the ratio itself, at least 1, got -0.2.",
            id="a negative bound",
        ),
        pytest.param(
            "ppo", {"clip_high": math.nan}, "ppo: clip_high=nan: input should be a finite number.", id="not a number"
        ),
        pytest.param(
            "ppo", {"clip_high": math.inf}, "ppo: clip_high=inf: input should be a finite number.", id="infinite"
        ),
        pytest.param("ppo", {"clip_high": "1.2"}, "ppo: clip_high='1.2': input should be a valid number.", id="text"),
        pytest.param(
            "ppo", {"clip_high": True}, "ppo: clip_high=True: input should be a valid number.", id="a truth value"
        ),
        pytest.param(
            "info_nce",
            {"num_extra_negatives": 1.0},
            "info_nce: num_extra_negatives=1.0: input should be a valid integer.",
            id="a fraction for a count",
        ),
        pytest.param(
            "info_nce",
            {"num_extra_negatives": True},
            "info_nce: num_extra_negatives=True: input should be a valid integer.",
            id="a truth value for a count",
        ),
        pytest.param("dpo", {"beta": 0.0}, "dpo: beta=0.0: input should be greater than 0.", id="zero for a scale"),
        pytest.param(
            "ppo",
            {"clip_low": -0.5},
            "ppo: clip_low=-0.5: is a bound on the ratio itself and lies in [0, 1], got -0.5.",
            id="a lower bound below 0",
        ),
        pytest.param(
            "ppo",
            {"clip_high": 0.0},
            "ppo: clip_high=0.0: is a bound on the ratio itself, at least 1, got 0.0.",
            id="an upper bound of 0",
        ),
        pytest.param(
            "ppo",
            {"clip_high": -0.5},
            "ppo: clip_high=-0.5: is a bound on the ratio itself, at least 1, got -0.5.",
            id="an upper bound below 0",
        ),
        pytest.param(
            "grpo",
            {"kl_estimator": "k4"},
            "grpo: kl_estimator='k4': input should be 'k1', 'k2', 'k3', 'abs', 'k1+', 'k3+' or 'k3-corrected'.",
            id="none of the choices",
        ),
        pytest.param(
            "cross_entropy",
            {"reduction": "mean"},
            "cross_entropy: reduction='mean': input should be 'sum', 'token-mean', 'seq-mean-token-mean', "
            "'seq-mean-token-sum', 'seq-mean-token-sum-norm' or 'prompt-mean'.",
            id="a reduction of other losses",
        ),
        pytest.param(
            "cross_entropy",
            {"reduction": "seq-mean-token-sum-norm"},
            "cross_entropy: reduction 'seq-mean-token-sum-norm' needs norm_length, the constant number of tokens to "
            "divide by",
            id="a constant length that is missing",
        ),
        pytest.param(
            "cross_entropy",
            {"norm_length": 100},
            "cross_entropy: reduction 'sum' has no norm_length",
            id="a constant length that nothing reads",
        ),
        pytest.param(
            "cross_entropy",
            {"reduction": "seq-mean-token-sum-norm", "norm_length": 0},
            "cross_entropy: norm_length=0: input should be greater than or equal to 1.",
            id="a constant length of zero",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_its_likely_mend(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        get_loss(name, **config)
    assert str(caught.value).startswith(message)


def test_several_wrong_settings_are_reported_together_with_those_there_are() -> None:
    with pytest.raises(LossConfigError) as caught:
        get_loss("ppo", clip_high=0.2, clip_lo=0.8)
    assert str(caught.value) == (
        "ppo: clip_high=0.2: is a bound on the ratio itself, at least 1, not a distance from it: did you mean 1.2? "
        "ppo has no setting 'clip_lo'. Did you mean 'clip_low'? Settings of ppo: clip_low, clip_high, reduction, "
        "norm_length, weights."
    )


def test_other_systems_spellings_of_a_setting_are_taken() -> None:
    assert get_loss("ppo", clip_low_threshold=0.7, clip_high_threshold=1.3).settings == {
        "clip_low": 0.7,
        "clip_high": 1.3,
    }


def test_an_integer_is_a_float_too() -> None:
    settings = get_loss("ppo", clip_high=2).settings
    assert settings["clip_high"] == 2.0
    assert type(settings["clip_high"]) is float


def test_a_setting_without_a_default_is_needed() -> None:
    def needy(logprobs: Tensor, *, margin: float, note: str | None = None) -> Tensor:
        return -margin * logprobs

    with pytest.raises(LossConfigError, match=r"^needy needs the setting 'margin'\. Settings of needy: margin, note,"):
        loss_of(needy)
    assert loss_of(needy, config={"margin": 2.0}).settings == {"margin": 2.0, "note": None}
    assert card_of(needy).settings["margin"].required


def test_a_loss_shows_its_resolved_configuration() -> None:
    assert repr(get_loss("ppo", clip_high=1.28)) == ("ppo(reduction='sum', clip_low=0.8, clip_high=1.28)")
    assert repr(get_loss("cross_entropy", reduction="seq-mean-token-sum-norm", norm_length=512)) == (
        "cross_entropy(reduction='seq-mean-token-sum-norm', norm_length=512)"
    )
    assert repr(get_loss("dpo")) == (
        "dpo(reduction='pair-mean', beta=0.1, label_smoothing=0.0, divergence='reverse_kl', alpha=0.5)"
    )


def test_a_default_that_is_a_list_is_handed_on_and_shown_as_it_is() -> None:
    default = [64, 128]

    def nested(logprobs: Tensor, *, widths: list[int] = default) -> Tensor:
        return -logprobs

    assert loss_of(nested).settings["widths"] is default
    assert card_of(nested).settings["widths"].default == [64, 128]


def test_a_configuration_cannot_be_changed_behind_the_losss_back() -> None:
    loss = get_loss("ppo")
    with pytest.raises(ValidationError, match="frozen"):
        loss.config.clip_low = 0.5
    assert loss.settings["clip_low"] == 0.8


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("gkd", {"temperature": 0.9}, "gkd: temperature=0.9 needs tail='renormalise', not 'bin': the probability of"),
        ("gkd", {"temperature": 0.9, "tail": "drop"}, "gkd: temperature=0.9 needs tail='renormalise', not 'drop'"),
        (
            "clip_cov",
            {"covariance_low": 5.0, "covariance_high": 1.0},
            "covariance_low=5 is not below covariance_high=1",
        ),
        ("clip_cov", {"covariance_low": 6.0}, "covariance_low=6 is not below covariance_high=5, so no token could be"),
        (
            "ppo+token_band",
            {"low": 3.0, "high": 2.0},
            "ppo[+]token_band: low=3 is above high=2, so every weight would be 0",
        ),
        ("gspo+geometric_reject", {"low": 3.0}, "gspo[+]geometric_reject: low=3 is above high=2"),
        ("gkd", {"temperature": 2.0, "tail": "bin"}, "needs tail='renormalise'"),
        ("dpo", {"alpha": 0.25}, "dpo: alpha=0.25 is read only with divergence='alpha'"),
        (
            "grpo",
            {"kl_coefficient": 0.0, "kl_estimator": "k2"},
            "kl_estimator='k2' is read only where kl_coefficient is",
        ),
        ("grpo+token_mask", {"kl_coefficient": 0.0, "kl_estimator": "k2"}, "kl_estimator='k2' is read only where"),
        ("kto", {"desirable_weight": 0.0, "undesirable_weight": 0.0}, "are both 0, so every loss would be 0"),
        ("apo_zero_unpaired", {"desirable_weight": 0.0, "undesirable_weight": 0.0}, "every loss would be 0"),
    ],
)
def test_settings_that_exclude_each_other_or_do_nothing_are_refused_when_given(
    name: str, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(LossConfigError, match=why):
        get_loss(name, **settings)


def test_a_loss_of_ones_own_says_which_settings_exclude_each_other() -> None:
    def bounded(logprobs: Tensor, *, low: float = 0.0, high: float = 1.0) -> Tensor:
        return -logprobs.clamp(low, high)

    def conflict(settings: Mapping[str, Any]) -> str:
        return "" if settings["low"] < settings["high"] else "low must be below high"

    assert loss_of(bounded, conflict=conflict, config={"low": 0.5}).settings == {"low": 0.5, "high": 1.0}
    with pytest.raises(LossConfigError, match=r"^bounded: low must be below high$"):
        loss_of(bounded, conflict=conflict, config={"low": 2.0})


def test_a_setting_of_several_types_is_named_itself() -> None:
    def of_either(logprobs: Tensor, *, window: int | list[int] = 1) -> Tensor:
        return -logprobs

    assert loss_of(of_either, config={"window": [1, 2]}).settings == {"window": [1, 2]}
    with pytest.raises(LossConfigError, match=r"^of_either: window='wide': .* of_either: window='wide': .*Settings of"):
        loss_of(of_either, config={"window": "wide"})


@pytest.mark.parametrize("setting", ["model_config", "model_extra", "model_dump", "copy", "_scale"])
def test_a_setting_that_would_not_be_one_is_refused_at_registration(setting: str) -> None:
    namespace: dict[str, Any] = {"Tensor": Tensor}
    exec(f"def own(logprobs: Tensor, *, {setting}: float = 1.0) -> Tensor:\n    return -logprobs", namespace)
    with pytest.raises(LossConfigError, match=f"^own: no setting can be called '{setting}', as pydantic's models use"):
        register_loss("own")(namespace["own"])


def test_a_loss_without_weights_may_call_a_setting_so_and_none_may_take_the_registrys_words() -> None:
    def weighed(embeddings: Tensor, *, weights: float = 2.0) -> Tensor:
        return weights * embeddings.sum(1)

    assert loss_of(weighed, per="datum", config={"weights": 3.0}).settings == {"weights": 3.0}
    for setting, parameters in (("weights", "logprobs"), ("reduction", "embeddings"), ("norm_length", "logprobs")):
        namespace: dict[str, Any] = {}
        exec(f"def own({parameters}, *, {setting}=1): return {parameters}", namespace)
        with pytest.raises(LossConfigError, match=f"^own: '{setting}' belongs to the registry"):
            register_loss("own", per="datum")(namespace["own"])


def test_a_setting_without_annotation_is_of_its_defaults_type_and_of_any_without_one() -> None:
    namespace: dict[str, Any] = {}
    exec("def own(logprobs, *, scale=1.0, bound=None, needed): return -logprobs", namespace)
    for value in (3, "three", None, [3]):
        settings = loss_of(namespace["own"], config={"bound": value, "needed": value}).settings
        assert (settings["bound"], settings["needed"]) == (value, value)
    with pytest.raises(LossConfigError, match="scale='wide'"):
        loss_of(namespace["own"], config={"scale": "wide", "needed": 1})


def test_a_norm_length_is_at_least_1() -> None:
    words: dict[str, Any] = {"reduction": "seq-mean-token-sum-norm"}
    assert get_loss("cross_entropy", norm_length=1, **words).norm_length == 1
    with pytest.raises(LossConfigError, match="norm_length=0"):
        get_loss("cross_entropy", norm_length=0, **words)

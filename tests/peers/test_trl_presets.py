"""The numbers of our "trl:..." presets are the defaults of the installed TRL."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from lossbook import describe_preset, get_loss, list_presets

from .defaults import of_config

pytest.importorskip("trl")

GRPO, CPO = ("trl", "GRPOConfig"), ("trl.experimental.cpo", "CPOConfig")
DPO, KTO = ("trl", "DPOConfig"), ("trl", "KTOConfig")


def clip(theirs: dict[str, Any]) -> dict[str, float]:
    high = theirs["epsilon"] if theirs["epsilon_high"] is None else theirs["epsilon_high"]
    return {"clip_low": 1 - theirs["epsilon"], "clip_high": 1 + high}


def of_grpo(theirs: dict[str, Any]) -> dict[str, float]:
    return {**clip(theirs), "kl_coefficient": theirs["beta"]}


def of_dpo(*more: str) -> Any:
    named = {"tau": "discopop_tau", "divergence": "f_divergence_type"}
    return lambda theirs: {key: theirs[named.get(key, key)] for key in ("beta", *more)}


def of_kto(theirs: dict[str, Any]) -> dict[str, float]:
    return {key: theirs[key] for key in ("beta", "desirable_weight", "undesirable_weight")}


#: Where each preset's numbers stand, and how they read in our words.
CASES: dict[str, tuple[tuple[str, str], Any]] = {
    "grpo": (GRPO, of_grpo),
    "dapo": (GRPO, of_grpo),
    "bnpo": (GRPO, clip),
    "dr_grpo": (GRPO, lambda t: {**clip(t), "norm_length": t["max_completion_length"]}),
    "gspo": (GRPO, clip),
    "luspo": (GRPO, clip),
    "sapo": (
        GRPO,
        lambda t: {
            "temperature_positive": t["sapo_temperature_pos"],
            "temperature_negative": t["sapo_temperature_neg"],
        },
    ),
    "vespo": (
        GRPO,
        lambda t: {
            "k_positive": t["vespo_k_pos"],
            "lambda_positive": t["vespo_lambda_pos"],
            "k_negative": t["vespo_k_neg"],
            "lambda_negative": t["vespo_lambda_neg"],
        },
    ),
    "rloo": (("trl", "RLOOConfig"), clip),
    "dpo": (DPO, of_dpo("label_smoothing", "divergence")),
    **{name: (DPO, of_dpo()) for name in ("hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down")},
    **{name: (DPO, of_dpo("label_smoothing")) for name in ("robust", "aot", "aot_unpaired")},
    "exo_pair": (DPO, of_dpo()),
    "discopop": (DPO, of_dpo("tau")),
    "sigmoid_norm": (DPO, of_dpo()),
    "kto": (KTO, of_kto),
    "apo_zero_unpaired": (KTO, of_kto),
    "cpo": (
        CPO,
        lambda t: {"beta": t["beta"], "label_smoothing": t["label_smoothing"], "nll_coefficient": t["cpo_alpha"]},
    ),
    "simpo": (CPO, lambda t: {"beta": t["beta"], "gamma": t["simpo_gamma"]}),
    "gkd": (("trl.experimental.gkd", "GKDConfig"), lambda t: {"beta": t["beta"], "temperature": t["temperature"]}),
    "distillation": (("trl", "DistillationConfig"), lambda t: {"beta": t["beta"], "temperature": t["temperature"]}),
    "orpo": (("trl.experimental.orpo", "ORPOConfig"), lambda t: {"odds_coefficient": t["beta"]}),
    "reward": (("trl", "RewardConfig"), lambda t: {"center_coefficient": t["center_rewards_coefficient"] or 0.0}),
}
#: Presets without a number that a configuration holds: the reduction alone, or, for cispo, what its documentation advises.
WITHOUT = {"cispo", "sft", "dft"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_trl_preset_has_the_installed_releases_defaults(name: str) -> None:
    (module, config), translate = CASES[name]
    theirs = translate(of_config(module, config))
    loss = get_loss(f"trl:{name}")
    ours = {"norm_length": loss.norm_length, **loss.settings}
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs)


@pytest.mark.filterwarnings("ignore")
def test_the_correction_of_trl_presets_is_its_default() -> None:
    theirs = of_config(*GRPO)
    corrected = [describe_preset(name) for name in list_presets() if name.startswith("trl:")]
    corrected = [preset for preset in corrected if preset.correction]
    assert corrected
    for preset in corrected:
        assert preset.correction == theirs["vllm_importance_sampling_mode"]
        assert preset.correction_settings == {"cap": theirs["vllm_importance_sampling_clip_max"]}


@pytest.mark.filterwarnings("ignore")
def test_the_default_loss_types_are_those_that_the_presets_name() -> None:
    assert of_config(*GRPO)["loss_type"] == "dapo"
    assert of_config(*DPO)["loss_type"] == ["sigmoid"]


def test_every_trl_preset_is_compared_and_names_the_installed_release() -> None:
    names = {name.removeprefix("trl:") for name in list_presets() if name.startswith("trl:")}
    assert names == set(CASES) | WITHOUT
    for name in names:
        preset = describe_preset(f"trl:{name}")
        assert (preset.package, preset.version) == ("trl", version("trl"))

"""Every preset is called, compared with its peer where that is installed, and states that peer's release and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import yaml

from lossbook import describe_preset, get_loss, list_presets
from lossbook.losses.cards.examples import example_batch, kind_of

from . import skyrl_core
from .defaults import of_function
from .packages import installed, release
from .parity import cases

#: Systems whose package is installed, and runs here.
RUN = {
    "trl": "trl",
    "verl": "verl",
    "skyrl": "skyrl",
    "liger": "liger-kernel",
    "sentence-transformers": "sentence-transformers",
}
ALL = list_presets()
CORRECTED = [f"{name}+correction" for name in ALL if describe_preset(name).correction]


@pytest.mark.parametrize("name", [*ALL, *CORRECTED])
def test_a_preset_gives_a_value_and_a_gradient(name: str) -> None:
    loss = get_loss(name)
    data, outputs = example_batch(loss, kind_of(loss), 6)  # three pairs of embeddings, or two triplets
    value, _ = loss(data, outputs)
    leaves = [tensor for rows in outputs.values() for tensor in rows]
    gradients = [one for one in torch.autograd.grad(value, leaves, allow_unused=True) if one is not None]
    assert torch.isfinite(value)
    assert all(torch.isfinite(one).all() for one in gradients)
    assert any(one.any() for one in gradients)


def test_every_preset_of_a_package_that_runs_here_is_compared_with_it() -> None:
    compared = {case.loss.removesuffix("+correction") for case in cases() if ":" in case.loss}
    assert compared == {name for name in ALL if name.partition(":")[0] in RUN}


@pytest.mark.parametrize("name", ALL)
def test_a_preset_names_the_installed_release(name: str) -> None:
    preset = describe_preset(name)
    packages = {**RUN, "tinker": "tinker"}
    if preset.package in packages.values():
        now = release(preset.package)
        assert preset.version == now, f"{name} is of {preset.package} {preset.version}: read {now}, then change it"


def verl_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((installed("verl") / "trainer" / "config" / name).read_text(encoding="utf-8"))


def verl_defaults(of: str) -> dict[str, Any]:
    """verl's own settings of its actor or critic, as its command line has them."""
    own = verl_file(f"{of}/{of}.yaml")
    return {**own, **own.get("policy_loss", {})}


def clip(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {"clip_low": 1 - theirs["clip_ratio_low"], "clip_high": 1 + theirs["clip_ratio_high"]}


def dual(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {**clip(theirs), "dual_clip": theirs["clip_ratio_c"]}


def deltas(theirs: Mapping[str, Any]) -> dict[str, Any]:
    low, high = theirs["clip_ratio_low"], theirs["clip_ratio_high"]
    return {"delta_low": low, "delta_high": high, "ratio_cap": theirs["clip_ratio_c"]}


Translate = Callable[[Mapping[str, Any]], dict[str, Any]]
#: What verl's settings are in our words, by preset; `reduction` is checked beside.
OF_VERL: dict[str, Translate] = {
    "vanilla": dual,
    "bypass_mode": dual,
    "gspo": clip,
    "cispo": clip,
    "gpg": lambda t: {},
    "dro": lambda t: {},  # no default there
    "sapo": lambda t: {"temperature_positive": t["tau_pos"], "temperature_negative": t["tau_neg"]},
    "geo_mean": lambda t: {"log_clip_low": t["clip_ratio_low"], "log_clip_high": t["clip_ratio_high"]},
    "dppo_tv": deltas,
    "dppo_kl": deltas,
    "clip_cov": lambda t: {
        **clip(t),
        "share": t["clip_cov_ratio"],
        "covariance_low": t["clip_cov_lb"],
        "covariance_high": t["clip_cov_ub"],
    },
    "kl_cov": lambda t: {"share": t["kl_cov_ratio"], "kl_coefficient": t["ppo_kl_coef"]},
}
#: Those whose reduction loss_agg_mode does not choose in verl.
FIXED = {"sapo": "seq-mean-token-mean", "geo_mean": "mean"}


def check(preset: str, theirs: Mapping[str, Any]) -> None:
    """Our settings are these."""
    loss = get_loss(preset)
    ours = {"reduction": loss.reduction, **loss.settings}
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value), f"{preset}: {key} is {ours[key]} here, {value} there by default"


def test_a_default_that_moved_is_named_with_its_preset() -> None:
    with pytest.raises(AssertionError, match=r"verl:gspo: clip_low is 0\.8 here, 0\.7 there by default"):
        check("verl:gspo", {"clip_high": 1.2, "clip_low": 0.7})


@pytest.mark.parametrize("name", sorted(OF_VERL))
def test_a_verl_preset_has_the_installed_releases_defaults(name: str) -> None:
    theirs = verl_defaults("actor")
    check(f"verl:{name}", {**OF_VERL[name](theirs), "reduction": FIXED.get(name, theirs["loss_agg_mode"])})


def test_verls_critic_has_the_installed_releases_clip() -> None:
    check("verl:value", {"clip": verl_defaults("critic")["cliprange_value"], "reduction": "token-mean"})


def test_every_verl_preset_is_looked_at() -> None:
    assert {name for name in ALL if name.startswith("verl:")} == {f"verl:{name}" for name in (*OF_VERL, "value")}


def near_one(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {"clip_low": 1 - theirs["eps_clip_low"], "clip_high": 1 + theirs["eps_clip_high"]}


#: The same of SkyRL's AlgorithmConfig and the configs inside it.
OF_SKYRL: dict[str, Translate] = {
    "regular": near_one,
    "dual_clip": lambda t: {**near_one(t), "dual_clip": t["clip_ratio_c"]},
    "gspo": near_one,
    "rollout_is": near_one,
    "cispo": lambda t: {"clip_low": 1 - t["cispo_eps_clip_low"], "clip_high": 1 + t["cispo_eps_clip_high"]},
    "sapo": lambda t: {"temperature_positive": t["tau_pos"], "temperature_negative": t["tau_neg"]},
    "clip_cov": lambda t: {
        **near_one(t),
        "share": t["clip_ratio"],
        "covariance_low": t["clip_cov_lb"],
        "covariance_high": t["clip_cov_ub"],
    },
    "kl_cov": lambda t: {"share": t["kl_cov_frac"], "kl_coefficient": t["ppo_kl_coef"]},
    "dppo": lambda t: {"delta_low": t["delta_low"], "delta_high": t["delta_high"]},
    "ppo_critic": lambda t: {"clip": t["value_clip"]},
}


@pytest.mark.parametrize("name", sorted(OF_SKYRL))
def test_a_skyrl_preset_has_the_installed_releases_defaults(name: str) -> None:
    own = skyrl_core.config()
    theirs = {
        key: value
        for part in (own, *vars(own).values())
        if hasattr(part, "__dict__")
        for key, value in vars(part).items()
    }
    check(f"skyrl:{name}", OF_SKYRL[name](theirs))
    assert theirs["loss_reduction"] == "token_mean"
    assert theirs["token_tis_ratio_clip_high"] == describe_preset("skyrl:regular").correction_settings["cap"]


def test_every_skyrl_preset_is_looked_at() -> None:
    assert {name for name in ALL if name.startswith("skyrl:")} == {f"skyrl:{name}" for name in OF_SKYRL}


def test_the_correction_of_verl_presets_has_its_cap() -> None:
    cap = verl_file("algorithm/rollout_correction.yaml")["rollout_is_threshold"]
    corrected = [describe_preset(name) for name in ALL if name.startswith("verl:") and describe_preset(name).correction]
    assert corrected
    assert {preset.correction_settings["cap"] for preset in corrected} == {cap}


#: Liger's losses by preset, and what their arguments are in our words.
OF_LIGER: dict[str, tuple[str, Translate]] = {
    "dpo": ("DPO", lambda t: {"beta": t["beta"]}),
    "cpo": (
        "CPO",
        lambda t: {"beta": t["beta"], "nll_coefficient": t["alpha"], "label_smoothing": t["label_smoothing"]},
    ),
    "orpo": ("ORPO", lambda t: {"odds_coefficient": t["beta"]}),
    "simpo": ("SimPO", lambda t: {"beta": t["beta"], "gamma": t["gamma"]}),
    "kto": ("KTO", lambda t: {"beta": t["beta"]}),
    "jsd": ("JSD", lambda t: {"beta": t["beta"], "temperature": t["temperature"]}),
    "grpo": (
        "GRPO",
        lambda t: {
            "clip_low": 1 - t["epsilon_low"],
            "clip_high": 1 + t["epsilon_high"],
            "kl_coefficient": t["beta"],
            "reduction": {"dapo": "token-mean"}[t["loss_type"]],
        },
    ),
}
#: The same of Sentence Transformers' constructors.
OF_SENTENCES: dict[str, Translate] = {
    "MultipleNegativesRankingLoss": lambda t: {"scale": t["scale"]},
    "CoSENTLoss": lambda t: {"scale": t["scale"]},
    "AnglELoss": lambda t: {"scale": t["scale"]},
    "ContrastiveLoss": lambda t: {"margin": t["margin"]},
    "TripletLoss": lambda t: {"margin": t["triplet_margin"]},
    "CosineSimilarityLoss": lambda t: {},
    "MarginMSELoss": lambda t: {"similarity": {"pairwise_dot_score": "dot"}[t["similarity_fct"].__name__]},
}


@pytest.mark.parametrize("name", sorted(OF_LIGER))
def test_a_liger_preset_has_the_installed_releases_defaults(name: str) -> None:
    losses = pytest.importorskip("liger_kernel.chunked_loss")
    of, translate = OF_LIGER[name]
    check(f"liger:{name}", translate(of_function(getattr(losses, f"LigerFusedLinear{of}Loss"))))


@pytest.mark.parametrize("name", sorted(OF_SENTENCES))
def test_a_sentence_transformers_preset_has_the_installed_releases_defaults(name: str) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    check(f"sentence-transformers:{name}", OF_SENTENCES[name](of_function(getattr(losses, name))))


def test_every_preset_of_liger_and_sentence_transformers_is_looked_at() -> None:
    known = {f"liger:{name}" for name in OF_LIGER} | {f"sentence-transformers:{name}" for name in OF_SENTENCES}
    assert {name for name in ALL if name.startswith(("liger:", "sentence-transformers:"))} == known

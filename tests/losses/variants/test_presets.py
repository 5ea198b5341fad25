"""Presets: every entry makes a loss, nothing is imported for a name, one's own settings go on top."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from lossbook import Datum, describe_preset, get_loss, list_losses, list_presets, register_loss, unregister_loss
from lossbook.datums.errors import LossConfigError, UnknownLossError
from lossbook.losses import UNPUBLISHED, Loss, Preset

#: Presets that the specification of this field has exact numbers for.
NUMBERS = [
    ("tinker:ppo", {"clip_low": 0.8, "clip_high": 1.2}, "sum"),
    ("tinker:cispo", {"clip_low": 0.0, "clip_high": 4.0}, "sum"),
    ("tinker:dro", {"beta": 0.05}, "sum"),
    ("fireworks:grpo", {"clip_low": 0.8, "clip_high": 1.2, "kl_coefficient": 0.001}, "token-mean"),
    ("fireworks:dapo", {"clip_low": 0.8, "clip_high": 1.28}, "token-mean"),
    ("fireworks:gspo-token", {"clip_low": 1 - 3e-4, "clip_high": 1 + 4e-4}, "seq-mean-token-mean"),
    ("fireworks-cookbook:grpo", {"clip_low": 0.8, "clip_high": 1.2, "kl_coefficient": 0.001}, "sum"),
    ("fireworks-cookbook:cispo", {"clip_low": 0.8, "clip_high": 1.28}, "sum"),
    ("fireworks-cookbook:orpo", {"odds_coefficient": 1.0}, "sum"),
    ("trl:orpo", {"odds_coefficient": 0.1}, "pair-mean"),
    ("verl:vanilla", {"clip_low": 0.8, "clip_high": 1.2, "dual_clip": 3.0}, "token-mean"),
    ("verl:geo_mean", {"log_clip_low": 0.2, "log_clip_high": 0.2}, "mean"),
    ("verl:kl_cov", {"share": 0.0002, "kl_coefficient": 0.1}, "token-mean"),
    ("skyrl:kl_cov", {"share": 0.2, "kl_coefficient": 1.0}, "sum"),
    ("skyrl:cispo", {"clip_low": 1.0, "clip_high": 6.0}, "token-mean"),
    ("skyrl:ppo_critic", {"clip": 0.2}, "seq-mean-token-mean"),
    ("verl:gspo", {"clip_low": 0.8, "clip_high": 1.2}, "token-mean"),
    ("verl:dppo_tv", {"delta_low": 0.2, "delta_high": 0.2, "ratio_cap": 3.0}, "token-mean"),
    ("fireworks-cookbook:gspo", {"clip_low": 1 - 3e-4, "clip_high": 1 + 4e-4}, "seq-mean-token-mean"),
    ("together:dppo", {"delta_low": 0.15, "delta_high": 0.15}, "token-mean"),
]


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_makes_a_loss_of_ours_and_says_where_it_is_from(name: str) -> None:
    preset, loss = describe_preset(name), get_loss(name)
    parts = loss.parts
    assert [part.name for _, part in parts] == [preset.loss, *(part.loss for part in preset.plus)]
    assert set(part.name for _, part in parts) <= set(list_losses())
    assert parts[0][1].reduction == preset.settings["reduction"]
    assert preset.package
    assert preset.version[0].isalnum()
    assert preset.read_from == f"{preset.package} {preset.version}, {preset.where}"
    assert len(preset.note) > 5
    assert str(preset).startswith(f"{name}: {preset.loss} with ")
    if preset.correction:
        assert get_loss(f"{name}+correction").name == f"{preset.loss}+{preset.correction}"


@pytest.mark.parametrize(("name", "settings", "reduction"), NUMBERS)
def test_a_preset_has_its_systems_numbers(name: str, settings: dict[str, float], reduction: str) -> None:
    loss = get_loss(name)
    assert {key: loss.settings[key] for key in settings} == settings
    assert loss.reduction == reduction


def test_ones_own_settings_go_on_top_also_in_another_spelling() -> None:
    assert get_loss("trl:grpo", clip_high=1.28).settings["clip_high"] == 1.28
    assert get_loss("tinker:ppo", clip_low_threshold=0.9).settings == {"clip_low": 0.9, "clip_high": 1.2}
    assert get_loss("tinker:ppo", reduction="token-mean").reduction == "token-mean"
    with pytest.raises(LossConfigError, match="ppo has no setting 'clip_hihg'"):
        get_loss("tinker:ppo", clip_hihg=1.3)


def test_prime_rls_default_adds_the_squared_log_ratio_over_its_own_tokens() -> None:
    loss = get_loss("prime:default", delta_low=0.1)
    assert loss.parts[0][1].settings["delta_low"] == 0.1
    data = Datum([0], {"target_tokens": [0], "weights": [1.0], "sampling_logprobs": [-2.0], "advantages": [1.0]})
    logprob = torch.tensor([-1.75], dtype=torch.float64, requires_grad=True)
    value, _ = loss([data], [logprob])
    # exp(-1.75) - exp(-2) = 0.04: not dropped.
    assert float(value.detach()) == pytest.approx(-math.exp(0.25) + 1e-3 * 0.25**2)
    (slope,) = torch.autograd.grad(value, logprob)
    assert float(slope) == pytest.approx(-math.exp(0.25) + 2e-3 * 0.25)


def test_a_systems_own_correction_goes_on_with_its_numbers_and_ones_own() -> None:
    loss = get_loss("trl:grpo+correction")
    assert (loss.name, loss.settings["cap"], loss.reduction) == ("grpo+sequence_mask", 3.0, "seq-mean-token-mean")
    assert get_loss("trl:grpo+correction", cap=2.0).settings["cap"] == 2.0
    assert get_loss("trl:dr_grpo+correction", norm_length=9).norm_length == 9
    assert get_loss("trl:grpo+token_truncate", cap=5.0).name == "grpo+token_truncate"
    with pytest.raises(LossConfigError, match="trl:dpo: no correction is known of that system"):
        get_loss("trl:dpo+correction")
    with pytest.raises(UnknownLossError, match="there is no preset 'grpo'"):
        get_loss("grpo+correction")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinker:pro", "there is no preset 'tinker:pro'. Did you mean 'tinker:ppo'"),
        ("trl:", "there is no preset 'trl:'.*`lossbook losses list --presets` gives all"),
        ("stable_reinforce", "'stable_reinforce': the id is reserved for Tinker's loss .* not public"),
        ("tinker:stable_reinforce", "'tinker:stable_reinforce': the id is reserved"),
        ("nowhere_at_all:grpo", "no loss is registered as 'nowhere_at_all:grpo'"),
    ],
)
def test_a_name_that_is_no_loss_is_refused(name: str, message: str) -> None:
    with pytest.raises(UnknownLossError, match=message):
        get_loss(name)
    with pytest.raises(UnknownLossError):
        describe_preset(name)


def test_what_is_not_public_is_listed_and_names_what_to_use_instead() -> None:
    assert set(UNPUBLISHED) == {"stable_reinforce"}
    for name, why in UNPUBLISHED.items():
        assert name not in list_losses()
        assert any(f"`{other}`" in why for other in list_losses())


def test_a_preset_imports_no_other_library() -> None:
    code = "import sys, lossbook as l; [l.get_loss(n) for n in l.list_presets()]; print({'tinker', 'trl', 'verl'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_loss_registered_under_such_a_name_comes_first() -> None:
    register_loss("trl:mine")(lambda logprobs: -logprobs)
    try:
        loss = get_loss("trl:mine")
        assert isinstance(loss, Loss)
        assert loss.name == "trl:mine"
    finally:
        unregister_loss("trl:mine")


def test_a_function_of_a_module_is_still_found_by_its_path() -> None:
    assert get_loss("lossbook.losses.policy:ppo").name == "ppo"


def test_a_preset_says_what_it_is_made_of() -> None:
    assert str(describe_preset("tinker:ppo")).splitlines()[:2] == [
        "tinker:ppo: ppo with clip_low=0.8, clip_high=1.2, reduction='sum'",
        "read from: tinker 0.38.0, its types and its documentation",
    ]
    assert str(describe_preset("trl:grpo")).splitlines()[1] == "+correction: sequence_mask with cap=3.0"
    assert str(describe_preset("prime:default")).splitlines()[1] == (
        "plus 0.002 * sampler_kl with estimator='k2', reduction='token-mean'"
    )
    bare = Preset("own:ppo", "ppo", "own", "1.0", "nothing", correction="token_mask")
    assert str(bare).splitlines() == [
        "own:ppo: ppo with its defaults",
        "+correction: token_mask with its defaults",
        "read from: own 1.0",
        "not the same: nothing",
    ]

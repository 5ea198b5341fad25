"""The functions for verl, SkyRL and prime-rl, called as those call them: by their signatures, with their counts.

Wanted numbers are of datums, under the reduction that the framework asks for. The formulas of the frameworks' own PPO are
written again here, in NumPy, from their sources: verl 0.9.1 trainer/ppo/core_algos.py, SkyRL 0.4.0 utils/ppo_utils.py, prime-rl
trainer/rl/loss.py of 2026. verl's own function and registry, and SkyRL 0.3.0's function, are asked too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import LossbookError
from lossbook.integrations import prime_rl, skyrl, verl

from ...peers import skyrl_core, verl_core

ROWS, WIDTH = 8, 7
LENGTHS = [3, 7, 1, 5, 2, 6, 4, 7]
MASK = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]


def drawn(seed: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OLD = -drawn(0).abs() - 0.1
NEW = (OLD + 0.3 * drawn(1)).clamp(max=0.0)
ROLLOUT = (OLD + 0.1 * drawn(3)).clamp(max=0.0)
ADVANTAGES = drawn(2)[:, :1].expand(ROWS, WIDTH)


def wanted(loss: str, **settings: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient [rows, width] of all rows as datums."""
    own = NEW.clone().requires_grad_()
    data = [
        Datum(
            ModelInput.from_ints([2] * n),
            {
                "target_tokens": [2] * n,
                "weights": [1.0] * n,
                "sampling_logprobs": OLD[i, :n].numpy(),
                "advantages": ADVANTAGES[i, :n].numpy(),
                "rollout_logprobs": ROLLOUT[i, :n].numpy(),
                "ref_logprobs": ROLLOUT[i, :n].numpy(),
            },
        )
        for i, n in enumerate(LENGTHS)
    ]
    value, _ = get_loss(loss, **settings)(data, [own[i, :n] for i, n in enumerate(LENGTHS)])
    value.backward()
    assert own.grad is not None
    return value.detach(), own.grad


def assert_equal(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-6, atol=1e-7)


def actor(**changes: Any) -> Any:
    """What a policy loss reads of verl's ActorConfig."""
    own = {
        "clip_ratio": 0.2,
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "clip_ratio_c": 3.0,
        "loss_scale_factor": None,
    }
    return SimpleNamespace(**{**own, "global_batch_info": {}, **changes})


def through_verl(loss: Any, mode: str, parts: int, **info: Any) -> tuple[Tensor, Tensor]:
    """The sum over `parts` micro-batches, each called as verl's ppo_loss does."""
    own = NEW.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(ROWS).chunk(parts):
        value, metrics = loss(
            old_log_prob=OLD[rows],
            log_prob=own[rows],
            advantages=ADVANTAGES[rows],
            response_mask=MASK[rows],
            loss_agg_mode=mode,
            config=actor(global_batch_info=info),
            rollout_is_weights=None,
        )
        value.backward()
        total = total + value.detach()
        assert all(name.startswith("actor/") for name in metrics)
    assert own.grad is not None
    return total, own.grad


COUNTS = {"dp_size": 1, "batch_num_tokens": sum(LENGTHS), "global_batch_size": ROWS, "loss_scale_factor": WIDTH}


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("mode", "reduction"),
    [
        ("token-mean", "token-mean"),
        ("token-sum", "sum"),
        ("seq-mean-token-sum", "seq-mean-token-sum"),
        ("seq-mean-token-mean", "seq-mean-token-mean"),
    ],
)
def test_verl_s_aggregation_is_our_reduction_whatever_the_micro_batches(mode: str, reduction: str, parts: int) -> None:
    got = through_verl(verl.policy_loss("dapo"), mode, parts, **COUNTS)
    assert_equal(got, wanted("dapo", reduction=reduction))


def test_verl_s_norm_is_a_constant_number_of_tokens() -> None:
    got = through_verl(verl.policy_loss("dapo"), "seq-mean-token-sum-norm", 2, **COUNTS)
    assert_equal(got, wanted("dapo", reduction="seq-mean-token-sum-norm", norm_length=WIDTH))


def test_a_loss_that_reads_no_old_logprobs_is_not_handed_any() -> None:
    assert_equal(through_verl(verl.policy_loss("gpg"), "token-mean", 2, **COUNTS), wanted("gpg"))


def test_a_loss_of_responses_is_their_mean_in_verl() -> None:
    assert_equal(through_verl(verl.policy_loss("gspo"), "seq-mean-token-mean", 4, **COUNTS), wanted("gspo"))


def test_verl_averages_ranks_so_each_one_s_loss_is_multiplied_by_their_number() -> None:
    one = through_verl(verl.policy_loss("dapo"), "token-mean", 1, **COUNTS)
    two = through_verl(verl.policy_loss("dapo"), "token-mean", 1, **{**COUNTS, "dp_size": 2})
    assert_equal((two[0] / 2, two[1] / 2), one)


def test_verl_without_counts_divides_by_its_own_batch() -> None:
    assert_equal(through_verl(verl.policy_loss("dapo"), "token-mean", 1), wanted("dapo"))


def test_ppo_in_verl_is_its_vanilla_loss_without_the_dual_clip() -> None:
    old, new, advantages, mask = (one.numpy() for one in (OLD, NEW, ADVANTAGES, MASK))
    ratio = np.exp(new - old)
    losses = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2))
    value, _ = through_verl(verl.policy_loss("ppo"), "token-mean", 1, **COUNTS)
    assert float(value) == pytest.approx((losses * mask).sum() / mask.sum(), rel=1e-6)


def test_verl_s_rollout_weights_multiply_tokens() -> None:
    weights = drawn(4).abs()
    own = NEW.clone().requires_grad_()
    value, _ = verl.policy_loss("ppo")(OLD, own, ADVANTAGES, MASK, "token-mean", actor(), weights)
    ratio = (NEW - OLD).exp()
    losses = torch.maximum(-ADVANTAGES * ratio, -ADVANTAGES * ratio.clamp(0.8, 1.2)) * weights
    torch.testing.assert_close(value.detach(), losses[MASK].sum() / MASK.sum(), rtol=1e-6, atol=1e-7)


def test_the_functions_have_the_frameworks_parameters() -> None:
    in_verl = [
        "old_log_prob",
        "log_prob",
        "advantages",
        "response_mask",
        "loss_agg_mode",
        "config",
        "rollout_is_weights",
    ]
    assert list(inspect.signature(verl.policy_loss("dapo")).parameters) == in_verl
    in_skyrl = ["log_probs", "old_log_probs", "advantages", "config", "loss_mask", "rollout_logprobs"]
    assert list(inspect.signature(skyrl.policy_loss("dapo")).parameters) == in_skyrl
    assert list(inspect.signature(prime_rl.custom_loss).parameters) == ["inputs", "loss", "settings"]


@pytest.fixture
def registry() -> Iterator[Any]:
    """verl's own module of losses, without what a test registers."""
    core = verl_core.core()
    before = dict(core.POLICY_LOSS_REGISTRY)
    yield core
    core.POLICY_LOSS_REGISTRY.clear()
    core.POLICY_LOSS_REGISTRY.update(before)


@pytest.mark.slow
def test_the_installed_verl_takes_it_and_its_own_ppo_agrees(registry: Any) -> None:
    registry.register_policy_loss("lossbook_ppo")(verl.policy_loss("ppo"))
    arguments = (OLD, NEW, ADVANTAGES, MASK, "token-mean")
    theirs, _ = registry.get_policy_loss_fn("vanilla")(*arguments, verl_core.config(clip_ratio_c=1e9))
    ours, _ = registry.get_policy_loss_fn("lossbook_ppo")(*arguments, verl_core.config())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def algorithm(**changes: Any) -> Any:
    """What a policy loss reads of SkyRL's AlgorithmConfig."""
    correction = SimpleNamespace(
        tis_ratio_type=changes.pop("tis_ratio_type", None),
        sequence_mask_metric=None,
        outlier_token_is_threshold_low=None,
        outlier_token_is_threshold_high=None,
        token_mask_is_threshold_low=None,
        token_mask_is_threshold_high=None,
    )
    own = {"eps_clip_low": 0.2, "eps_clip_high": 0.2, "clip_ratio_c": 3.0, "use_tis": False}
    return SimpleNamespace(**{**own, "off_policy_correction": correction, **changes})


def through_skyrl(loss: Any, reduction: str, parts: int, **others: Any) -> tuple[Tensor, Tensor]:
    """The sum over micro-batches; SkyRL has divided the advantages of the mini-batch before."""
    counts = {
        "token_mean": MASK.sum(),
        "sequence_mean": ROWS * MASK.sum(1, keepdim=True),
        "seq_mean_token_sum_norm": torch.tensor(ROWS * WIDTH),
    }
    advantages = ADVANTAGES / counts[reduction]
    own = NEW.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(ROWS).chunk(parts):
        given = {"config": algorithm(**others), "loss_mask": MASK[rows].double(), "rollout_logprobs": ROLLOUT[rows]}
        value, metrics = loss(own[rows], OLD[rows], advantages[rows], **given)
        value.backward()
        total = total + value.detach()
        assert all(isinstance(number, float) for number in metrics.values())
    assert own.grad is not None
    return total, own.grad


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["regular", "dual_clip"])
def test_the_installed_skyrl_calls_it_as_its_own_ppo_which_agrees(mode: str) -> None:
    core, own = skyrl_core.core(), skyrl_core.config(policy_loss_type=mode)
    asked = (NEW, OLD, ADVANTAGES / MASK.sum(), own)
    theirs, _ = getattr(core, skyrl_core.POLICIES[mode])(*asked, loss_mask=MASK.double(), rollout_logprobs=ROLLOUT)
    ours = skyrl.policy_loss({"regular": "ppo"}.get(mode, mode))
    mine, _ = ours(*asked, loss_mask=MASK.double(), rollout_logprobs=ROLLOUT)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("loss", ["dapo", "cispo", "gspo_token", "sapo", "ppo+token_truncate"])
def test_skyrl_divides_advantages_and_gets_the_mean_of_the_mini_batch(loss: str, parts: int) -> None:
    got = through_skyrl(skyrl.policy_loss(loss), "token_mean", parts)
    assert_equal(got, wanted(loss, reduction="token-mean"))


@pytest.mark.parametrize("loss", ["dppo", "prime_ipo", "rollout_is", "vespo"])
def test_a_ratio_to_the_rollout_is_of_skyrl_s_rollout_logprobs(loss: str) -> None:
    own = NEW.clone().requires_grad_()
    function = skyrl.policy_loss(loss)
    value, _ = function(own, OLD, ADVANTAGES, algorithm(), MASK.double(), ROLLOUT)
    again, _ = get_loss(loss, reduction="sum").on_tensors(
        NEW, mask=MASK, advantages=ADVANTAGES, sampling_logprobs=ROLLOUT
    )
    torch.testing.assert_close(value.detach(), again)
    with pytest.raises(LossbookError, match="reads the rollout's logprobs"):
        function(own, OLD, ADVANTAGES, algorithm(), MASK.double())


@pytest.mark.parametrize(
    ("named", "reduction"),
    [("sequence_mean", "seq-mean-token-mean"), ("seq_mean_token_sum_norm", "seq-mean-token-sum-norm")],
)
def test_skyrl_s_other_reductions_are_ours(named: str, reduction: str) -> None:
    length = {"norm_length": WIDTH} if reduction.endswith("norm") else {}
    assert_equal(through_skyrl(skyrl.policy_loss("dapo"), named, 2), wanted("dapo", reduction=reduction, **length))


def test_a_mask_that_is_scaled_weighs_tokens_in_skyrl() -> None:
    value, _ = skyrl.policy_loss("reinforce")(NEW, OLD, ADVANTAGES, algorithm(), 0.5 * MASK.double())
    torch.testing.assert_close(value, -0.5 * (NEW * ADVANTAGES)[MASK].sum(), rtol=1e-6, atol=1e-7)


@dataclass
class LossInputs:
    """The fields of prime-rl's class of that name."""

    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None = field(default=None)


def through_prime_rl(loss: str, weights: Tensor | None = None, **settings: Any) -> tuple[Tensor, Tensor]:
    """All rows, one sequence at a time, over the count of tokens."""
    own = NEW.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(ROWS):
        its = None if weights is None else weights[i]
        inputs = LossInputs(own[i], OLD[i], ROLLOUT[i], ADVANTAGES[i], MASK[i], its)
        said = prime_rl.custom_loss(inputs, loss=loss, **settings)
        total = total + said.loss
        assert all(isinstance(number, Tensor) and number.ndim == 0 for number in said.metrics.values())
    total = total / MASK.sum()
    total.backward()
    assert own.grad is not None
    return total.detach(), own.grad


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("dapo", {"clip_high": 1.28}),
        ("ppo", {}),
        ("gspo_token", {}),
        ("grpo", {"kl_coefficient": 0.1}),
        ("reference_kl", {}),
    ],
)
def test_prime_rl_gets_a_mean_over_the_tokens_of_the_step(loss: str, settings: dict[str, Any]) -> None:
    assert_equal(through_prime_rl(loss, **settings), wanted(loss, reduction="token-mean", **settings))


def test_prime_rl_s_weights_multiply_tokens() -> None:
    twice = through_prime_rl("ppo", 2.0 * torch.ones(ROWS, WIDTH, dtype=torch.float64))
    once = through_prime_rl("ppo")
    assert_equal(twice, (2 * once[0], 2 * once[1]))


def test_a_micro_batch_without_a_token_adds_nothing_and_still_has_a_graph() -> None:
    for loss, arguments in (
        (verl.policy_loss("dapo"), ("token-mean", actor(global_batch_info=COUNTS))),
        (skyrl.policy_loss("dapo"), ()),
    ):
        own = NEW[:2].clone().requires_grad_()
        nothing = torch.zeros(2, WIDTH)
        if arguments:
            value, _ = loss(OLD[:2], own, ADVANTAGES[:2], nothing, *arguments)
        else:
            value, _ = loss(own, OLD[:2], ADVANTAGES[:2], algorithm(), nothing)
        value.backward()
        assert value.item() == 0.0
        assert own.grad is not None
        assert not own.grad.any()


def call_verl(loss: Any, mode: str = "token-mean", **changes: Any) -> Any:
    return loss(OLD, NEW, ADVANTAGES, MASK, mode, actor(**changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: verl.policy_loss("grpo"), "grpo reads 'ref_logprobs', and verl gives", id="verl: a reference"
        ),
        pytest.param(lambda: verl.policy_loss("clip_cov"), "clip_cov couples a whole batch", id="verl: a batch"),
        pytest.param(
            lambda: call_verl(verl.policy_loss("dapo"), clip_ratio_high=0.28),
            "clip_ratio_high=0.28",
            id="verl: its clip",
        ),
        pytest.param(
            lambda: call_verl(verl.policy_loss("dapo", reduction="sum")),
            "loss_agg_mode='token-mean'",
            id="verl: two reductions",
        ),
        pytest.param(
            lambda: call_verl(verl.policy_loss("gspo")), "gspo is one number per response", id="verl: responses"
        ),
        pytest.param(
            lambda: call_verl(verl.policy_loss("dapo"), "seq-mean-token-sum-norm"),
            "loss_scale_factor",
            id="verl: no norm",
        ),
        pytest.param(
            lambda: call_verl(verl.policy_loss("dapo"), global_batch_info={"dp_size": 2}),
            "batch_num_tokens",
            id="verl: no count",
        ),
        pytest.param(
            lambda: verl.policy_loss("dapo")(
                OLD, NEW, ADVANTAGES, MASK, "seq-mean-token-mean", actor(), torch.ones_like(OLD)
            ),
            "rollout_is_weights multiply tokens",
            id="verl: weights of means",
        ),
        pytest.param(lambda: skyrl.policy_loss("gspo"), "gspo is one number per response", id="skyrl: responses"),
        pytest.param(
            lambda: skyrl.policy_loss("dro"), "dro is not proportional to its advantages", id="skyrl: no factor"
        ),
        pytest.param(lambda: skyrl.policy_loss("dapo", reduction="sum"), "loss_reduction", id="skyrl: a reduction"),
        pytest.param(
            lambda: skyrl.policy_loss("dapo")(NEW, OLD, ADVANTAGES, algorithm(eps_clip_high=0.28), MASK),
            "eps_clip_high=0.28",
            id="skyrl: its clip",
        ),
        pytest.param(
            lambda: skyrl.policy_loss("dapo")(NEW, OLD, ADVANTAGES, algorithm(tis_ratio_type="token"), MASK),
            "off_policy_correction.tis_ratio_type='token'",
            id="skyrl: its correction",
        ),
        pytest.param(lambda: through_prime_rl("gspo"), "gspo is one number per response", id="prime-rl: responses"),
        pytest.param(lambda: through_prime_rl("dapo", reduction="sum"), "token-mean", id="prime-rl: a reduction"),
        pytest.param(lambda: through_prime_rl("value_mse"), "value_mse reads 'values'", id="prime-rl: values"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(LossbookError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)

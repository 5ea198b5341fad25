"""Presets against the peers that they are named after, with those peers' installed defaults: no number stands here twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from lossbook import get_loss

from . import skyrl_core, verl_core
from .cases_embedding import BINARY, GRADED, between, theirs
from .cases_liger import (
    Function,
    Model,
    compared,
    dpo,
    grpo,
    jsd_theirs,
    kto_ours,
    kto_theirs,
    pairs,
    policy,
    preference,
    whole,
)
from .cases_policy import differences as trl_differences
from .cases_policy import trainer
from .cases_preference import trl_cpo, trl_dpo, trl_kto, trl_reward, trl_whole
from .cases_supervised import differences as logits_differences
from .cases_supervised import trls_sft
from .cases_trainers import critics, skyrl_critic
from .defaults import of_config, of_grpo
from .padded import FINITE, Batch, differences
from .parity import Parity

Differences = Callable[[], tuple[float, float]]
EXPERIMENTAL = "trl.experimental"


def preset(name: str, peer: str, run: Differences, note: str = "", tolerance: float = 1e-9) -> Parity:
    """One preset against its peer with that peer's defaults."""
    system = name.partition(":")[0]
    package = {"liger": "liger-kernel"}.get(system, system)
    return Parity(name, f"{peer}, its defaults", package, run, tolerance=tolerance, note=note)


def verl(
    mode: str, note: str = "", *, options: Any = None, own: Any = None, tolerance: float = 1e-9, **more: Any
) -> Parity:
    """options: of verl's config that have no default. own: settings of ours. more: `spreads` and kinds of batches."""

    def run() -> tuple[float, float]:
        return differences(get_loss(f"verl:{mode}", **(own or {})), verl_core.policy(mode, **(options or {})), **more)

    return preset(f"verl:{mode}", f"compute_policy_loss_{mode}", run, note, tolerance)


def verl_value() -> tuple[float, float]:
    clip = of_verl("CriticConfig")["cliprange_value"]

    def peer(values: Any, rows: Batch) -> Any:
        return verl_core.core().compute_value_loss(values, rows.reference, rows.sampling, rows.mask, clip)[0]

    return critics(peer, get_loss("verl:value"))


def of_verl(name: str) -> dict[str, Any]:
    """The defaults of one of verl's configurations of workers."""
    verl_core.config()  # imports them
    return of_config("verl.workers.config", name)


def skyrl(mode: str, note: str = "", *, options: Any = None, own: Any = None, **more: Any) -> Parity:
    def run() -> tuple[float, float]:
        return differences(get_loss(f"skyrl:{mode}", **(own or {})), skyrl_core.policy(mode, **(options or {})), **more)

    return preset(f"skyrl:{mode}", f"ppo_utils.{mode}", run, note, 1e-5)


def trl_grpo(name: str, **options: Any) -> Parity:
    """A preset of GRPOTrainer; options: what its entry names beside the defaults."""
    attributes = ("epsilon_low", "epsilon_high", "beta", "delta", "max_completion_length")
    attributes += (
        "sapo_temperature_pos",
        "sapo_temperature_neg",
        "vespo_k_pos",
        "vespo_lambda_pos",
        "vespo_k_neg",
        "vespo_lambda_neg",
    )

    def run() -> tuple[float, float]:
        own = {key: value for key, value in of_grpo().items() if key in attributes}
        return trl_differences(get_loss(f"trl:{name}"), trainer("GRPOTrainer", **{**own, **options}))

    shown = ",".join(f"{key}={value}" for key, value in options.items())
    note = "1.05 is rounded to float32 there" if name == "sapo" else ""
    return preset(f"trl:{name}", f"GRPOTrainer._compute_loss({shown})", run, note, 1e-6 if note else 1e-9)


def trl_rloo() -> tuple[float, float]:
    own = of_grpo(name="RLOOConfig")
    clips = {key: own[key] for key in ("epsilon_low", "epsilon_high")}
    return trl_differences(get_loss("trl:rloo"), trainer("RLOOTrainer", **clips))


def trl_pairs(name: str, kind: str = "", note: str = "", tolerance: float = 1e-9, **options: Any) -> Parity:
    """A preset of DPOTrainer."""
    kind = kind or name

    def run() -> tuple[float, float]:
        own = of_config("trl", "DPOConfig")
        keys = ("beta", "label_smoothing", "ld_alpha", "f_divergence_type", "discopop_tau")
        return trl_dpo(f"trl:{name}", kind, options={**{key: own[key] for key in keys}, **options})

    return preset(f"trl:{name}", f"DPOTrainer._compute_loss with loss_type={kind}", run, note, tolerance)


def trl_unpaired(kind: str) -> Parity:
    def run() -> tuple[float, float]:
        own = of_config("trl", "KTOConfig")
        keys = ("beta", "desirable_weight", "undesirable_weight")
        return trl_kto(f"trl:{kind}", kind, {key: own[key] for key in keys})

    return preset(f"trl:{kind}", f"KTOTrainer._compute_loss with loss_type={kind}", run)


def trl_cpos(name: str, kind: str, **options: Any) -> tuple[float, float]:
    own = of_config(f"{EXPERIMENTAL}.cpo", "CPOConfig")
    keys = ("beta", "label_smoothing", "cpo_alpha", "simpo_gamma")
    return trl_cpo(f"trl:{name}", kind, {}, **{**{key: own[key] for key in keys}, **options})


def trl_orpo() -> tuple[float, float]:
    return trl_whole("trl:orpo", "ORPOTrainer", {}, beta=of_config(f"{EXPERIMENTAL}.orpo", "ORPOConfig")["beta"])


def trl_rewards() -> tuple[float, float]:
    return trl_reward(False, of_config("trl", "RewardConfig")["center_rewards_coefficient"], get_loss("trl:reward"))


def trl_sft() -> tuple[float, float]:
    return logits_differences("trl:sft", {}, trls_sft(of_config("trl", "SFTConfig")["loss_type"]))


def trl_gkd() -> tuple[float, float]:
    own = of_config(f"{EXPERIMENTAL}.gkd", "GKDConfig")

    def peer(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        from trl.experimental.gkd import GKDTrainer

        options = {key: own[key] for key in ("beta", "temperature")}
        logits = (hidden @ head.T, drawn.reference @ drawn.reference_head.T)
        return GKDTrainer.generalized_jsd_loss(*logits, labels=drawn.labels, **options)

    return compared(whole("trl:gkd"), peer)


def trl_distillation() -> tuple[float, float]:
    own = of_config("trl", "DistillationConfig")

    def peer(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        heads = (head, drawn.reference_head)
        options = {"temperature": own["temperature"], "beta": own["beta"]}
        return _chunked_divergence_loss(hidden, drawn.reference, *heads, drawn.mask, **options)[0]

    return compared(whole("trl:distillation"), peer)


def ligers(name: str, ours: Function, theirs: Function, note: str = "", *, same: bool = False) -> Parity:
    """A preset of Liger's, whose loss is made with its defaults."""
    peer = f"LigerFusedLinear{name}Loss"
    return preset(f"liger:{name.lower()}", peer, lambda: compared(ours, theirs, same), note, 1e-5)


def sentences(name: str, blocks: int, labels: Any = None, tolerance: float = 1e-12, **more: Any) -> Parity:
    """A preset of Sentence Transformers, whose loss is made with its defaults."""
    loss = f"sentence-transformers:{name}"
    return preset(
        loss, name, between(get_loss(loss), theirs(name), blocks=blocks, labels=labels, **more), tolerance=tolerance
    )


POOLED = "chosen responses of one length, for theirs pools their tokens in the likelihood term"
UNCAPPED = "no draw with log-ratios of ±40, which are not capped there"
EVERY = "every candidate is taken, since the draws differ"
DIVIDED = "divided advantages for both"
CASES: list[Parity] = [
    verl("vanilla"),
    verl("gspo", f"{UNCAPPED} at 20", spreads=FINITE),
    verl("gpg"),
    verl("cispo"),
    verl("sapo", "1e-8 is added to each length there", tolerance=1e-6),
    verl(
        "geo_mean",
        "no row masked whole; one advantage per response",
        spreads=FINITE,
        tolerance=1e-6,
        empty=False,
        per_response=True,
    ),
    verl("clip_cov", f"{EVERY}; {UNCAPPED}", options={"clip_cov_ratio": 1.0}, own={"share": 1.0}, spreads=FINITE),
    verl("kl_cov", UNCAPPED, spreads=FINITE),
    verl("dppo_tv"),
    verl("dppo_kl", "no draw with log-ratios of ±40: 1e-8 is added to probabilities there", spreads=FINITE),
    verl("dro", "dro_beta has no default there", options={"dro_beta": 0.05}),
    verl("bypass_mode"),
    preset("verl:value", "compute_value_loss", verl_value),
    skyrl("regular"),
    skyrl("dual_clip"),
    skyrl("cispo"),
    skyrl(
        "gspo",
        f"loss_reduction=sequence_mean, no row masked whole; {UNCAPPED} at 20",
        options={"loss_reduction": "sequence_mean"},
        spreads=FINITE,
        empty=False,
    ),
    skyrl(
        "sapo",
        "loss_reduction=sequence_mean, no row masked whole",
        options={"loss_reduction": "sequence_mean"},
        empty=False,
    ),
    skyrl(
        "clip_cov",
        f"{DIVIDED}; {EVERY}, from a covariance of 0 on; {UNCAPPED}",
        spreads=FINITE,
        data=skyrl_core.scaled,
        options={"clip_ratio": 1.0, "clip_cov_lb": 0.0},
        own={"share": 1.0, "covariance_low": 0.0},
    ),
    skyrl("kl_cov", f"{DIVIDED}; {UNCAPPED}", spreads=FINITE, data=skyrl_core.scaled),
    skyrl("dppo"),
    skyrl("rollout_is"),
    preset(
        "skyrl:ppo_critic",
        "ppo_utils.ppo_critic_loss",
        lambda: critics(skyrl_critic, get_loss("skyrl:ppo_critic"), empty=False),
        "no row masked whole",
    ),
    trl_grpo("grpo", loss_type="grpo"),
    trl_grpo("dapo", loss_type="dapo"),
    trl_grpo("bnpo", loss_type="bnpo"),
    trl_grpo("dr_grpo", loss_type="dr_grpo"),
    trl_grpo("gspo", loss_type="grpo", importance_sampling_level="sequence"),
    trl_grpo("cispo", loss_type="cispo", epsilon_high=5.0),
    trl_grpo("sapo", loss_type="sapo"),
    trl_grpo("luspo", loss_type="luspo", importance_sampling_level="sequence"),
    trl_grpo("vespo", loss_type="vespo"),
    preset("trl:rloo", "RLOOTrainer._compute_loss", trl_rloo),
    trl_pairs("dpo", "sigmoid"),
    trl_pairs(
        "exo_pair",
        note="label_smoothing 0.001 is given to theirs, which refuses its default of 0",
        tolerance=1e-6,
        label_smoothing=0.001,
    ),
    *(
        trl_pairs(name)
        for name in ("hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired")
    ),
    *(trl_pairs(name) for name in ("apo_zero", "apo_down", "discopop", "sigmoid_norm")),
    trl_unpaired("kto"),
    trl_unpaired("apo_zero_unpaired"),
    preset("trl:cpo", "CPOTrainer.get_batch_loss_metrics", partial(trl_cpos, "cpo", "sigmoid"), POOLED),
    preset(
        "trl:simpo",
        "CPOTrainer.get_batch_loss_metrics with loss_type=simpo",
        partial(trl_cpos, "simpo", "simpo", cpo_alpha=0.0),
        "cpo_alpha 0 is given to theirs",
    ),
    preset(
        "trl:orpo", "ORPOTrainer.get_batch_loss_metrics", trl_orpo, f"theirs takes the odds in float32; {POOLED}", 1e-6
    ),
    preset("trl:reward", "RewardTrainer.compute_loss", trl_rewards),
    preset("trl:sft", "SFTTrainer.compute_loss", trl_sft),
    preset(
        "trl:dft",
        "SFTTrainer.compute_loss with loss_type=dft",
        lambda: logits_differences("trl:dft", {}, trls_sft("dft")),
    ),
    preset("trl:gkd", "GKDTrainer.generalized_jsd_loss", trl_gkd, tolerance=1e-5),
    preset("trl:distillation", "distillation_trainer._chunked_divergence_loss", trl_distillation, tolerance=1e-5),
    ligers("DPO", pairs("liger:dpo"), dpo()),
    ligers("CPO", pairs("liger:cpo"), preference("CPO"), POOLED, same=True),
    ligers("ORPO", pairs("liger:orpo"), preference("ORPO"), POOLED, same=True),
    ligers("SimPO", pairs("liger:simpo"), preference("SimPO", alpha=0.0), "alpha 0 is given to theirs"),
    ligers("KTO", kto_ours("liger:kto"), kto_theirs, "a baseline of 0 is given to theirs, and use_ref_model"),
    ligers("GRPO", policy("liger:grpo"), grpo()),
    ligers("JSD", whole("liger:jsd"), jsd_theirs(), "the soft loss alone"),
    sentences("MultipleNegativesRankingLoss", 2),
    sentences("TripletLoss", 3),
    sentences("MarginMSELoss", 3, GRADED, key="teacher_score"),
    sentences("ContrastiveLoss", 2, BINARY, interleaved=True),
    sentences("CosineSimilarityLoss", 2, GRADED, interleaved=True),
    sentences("CoSENTLoss", 2, GRADED, interleaved=True),
    sentences("AnglELoss", 2, GRADED, interleaved=True),
]

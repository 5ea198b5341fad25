"""Preference losses against TRL's trainers, called unbound on a stand-in, and tinker-cookbook's DPO.

Where a trainer runs a model, its stand-in has a vocabulary of two tokens and gives the target the logprobs under test: the
logits (log p, log(1 - p)) are such that the gradient with respect to log p comes through log-softmax unchanged.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss

from .parity import Parity

PAIRS = 5
CPU = torch.device("cpu")
Rows = list[Tensor]


def trainer(name: str) -> Any:
    """A trainer class of TRL, imported when a case runs."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in ("CPOTrainer", "ORPOTrainer", "TPOTrainer"):
            import importlib

            return getattr(importlib.import_module(f"trl.experimental.{name[:-7].lower()}"), name)
        import trl

        return getattr(trl, name)


def stand_in(**attributes: Any) -> SimpleNamespace:
    """What a trainer's loss reads of `self`."""
    accelerator = SimpleNamespace(device=CPU, gather=lambda x: x, gather_for_metrics=lambda x: x)
    model = torch.nn.Module().eval()  # its loss asks what kind of a model it has
    model.is_gradient_checkpointing = False  # type: ignore[assignment]
    made = SimpleNamespace(accelerator=accelerator, model=model, aux_loss_enabled=False, **attributes)
    made._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    made._total_train_tokens = 0
    return made


def drawn(lengths: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Rows, Rows]:
    """Policy's and reference's logprobs, one row a response, on a grid that float32 holds."""
    generator = torch.Generator().manual_seed(seed)

    def row(length: int) -> Tensor:
        return -torch.randint(8, 160, (length,), generator=generator).to(dtype) / 32

    return [row(n).requires_grad_() for n in lengths], [row(n) for n in lengths]


def lengths_of_pairs(seed: int = 0, same: bool = False) -> list[int]:
    """Different on either side; `same` where a peer pools the tokens of all chosen responses."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (2 * PAIRS,), generator=generator).tolist()
    return [4 if same and i % 2 == 0 else n for i, n in enumerate(lengths)]


def ours(loss: str, settings: dict[str, Any], rows: Rows, references: Rows | None = None, **keys: Any) -> list[Tensor]:
    """[value, gradient of all rows joined]. keys: one number per datum, by name."""
    data = []
    for i, row in enumerate(rows):
        inputs: dict[str, Any] = {"target_tokens": [0] * len(row), "weights": [1.0] * len(row)}
        if references is not None:
            inputs["ref_logprobs"] = references[i].tolist()
        data.append(Datum(ModelInput.from_ints([0] * len(row)), {**inputs, **{k: v[i] for k, v in keys.items()}}))
    value, _ = get_loss(loss, **settings)(data, rows)
    return [value.detach(), torch.cat(torch.autograd.grad(value, rows))]


def compared(mine: list[Tensor], value: Tensor, rows: Rows) -> tuple[float, float]:
    """The largest differences of value and gradient from a peer's value of the same rows."""
    gradients = torch.autograd.grad(value, rows, allow_unused=True)
    gradient = torch.cat([torch.zeros_like(r) if g is None else g for r, g in zip(rows, gradients, strict=True)])
    return float((mine[0] - value.detach()).abs()), float((mine[1] - gradient).abs().max())


def apart(rows: Rows) -> Rows:
    """All chosen, then all rejected: TRL's order."""
    return [*rows[0::2], *rows[1::2]]


def padded(rows: Rows) -> Tensor:
    """[rows, longest], zeros at the end."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def mask_of(rows: Rows) -> Tensor:
    """[rows, 1 + longest]: one token of prompt, then the response."""
    prompt = torch.zeros(len(rows), 1, dtype=torch.int64)
    return torch.cat([prompt, padded([torch.ones(len(r), dtype=torch.int64) for r in rows])], dim=1)


def fused_outputs(log_probs: Tensor) -> SimpleNamespace:
    """What TRL's fused head says: logprobs, and things that only metrics read."""
    nothing = torch.zeros_like(log_probs).detach()
    return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def trl_dpo(
    loss: str, kind: str, dtype: torch.dtype = torch.float64, options: dict[str, Any] | None = None, **settings: Any
) -> tuple[float, float]:
    """Ours and DPOTrainer._compute_loss of one loss type."""
    rows, references = drawn(lengths_of_pairs(), dtype=dtype)
    model = partial(_constant, fused_outputs(padded(apart(rows))))
    options = {"label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl", **(options or {})}
    options = {"beta": settings.get("beta", 0.1), **options}
    tau = options.pop("discopop_tau", settings.get("tau", 0.05))
    self = stand_in(
        loss_types=[kind],
        loss_weights=[1.0],
        use_weighting=False,
        precompute_ref_logps=False,
        ref_model=partial(_constant, fused_outputs(padded(apart(references)))),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=tau),
        f_alpha_divergence_coef=settings.get("alpha", 0.5),
        **options,
    )
    mask = mask_of(apart(rows))
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    value = trainer("DPOTrainer")._compute_loss(self, model, inputs, False)
    return compared(ours(loss, settings, rows, references), value, rows)


def _constant(outputs: Any, **_: Any) -> Any:
    return outputs


def trl_kto(loss: str, kind: str = "", options: dict[str, Any] | None = None, **settings: Any) -> tuple[float, float]:
    """Ours and KTOTrainer._compute_loss, one mismatched response for each labelled one. kind: its loss_type."""
    kind = kind or loss
    options = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, **settings, **(options or {})}
    rows, references = drawn([3, 5, 1, 2, 4, 6], seed=1)
    others, other_references = drawn([2, 3, 4, 1, 5, 2], seed=2)
    other_references = [reference - 1.0 for reference in other_references]  # so that z0 is above 0
    labels = [True, False, True, True, False, True]
    marked, kl_marked = mask_of(rows), mask_of(others)

    def model(*, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return fused_outputs(padded(others if bool(input_ids[0, 0]) else rows))

    self = stand_in(loss_type=kind, calculate_KL=kind == "kto", precompute_ref_logps=True, **options)
    self._compute_kl_logps = partial(trainer("KTOTrainer")._compute_kl_logps, self)
    batch = {
        "input_ids": torch.zeros_like(marked),
        "attention_mask": torch.ones_like(marked),
        "completion_mask": marked,
        "KL_input_ids": torch.ones_like(kl_marked),
        "KL_attention_mask": torch.ones_like(kl_marked),
        "KL_completion_mask": kl_marked,
        "label": torch.tensor(labels),
        "ref_logps": padded(references).sum(1),
        "ref_KL_logps": padded(other_references).sum(1),
    }
    value = trainer("KTOTrainer")._compute_loss(self, model, batch, False)
    if kind != "kto":
        return compared(ours(loss, settings, rows, references, label=[int(x) for x in labels]), value, rows)
    assert self._metrics["eval"]["kl"][0] > 0
    every = [*rows, *others]
    mine = ours(
        loss,
        settings,
        every,
        [*references, *other_references],
        label=[*(int(x) for x in labels), *[0] * len(others)],
        is_mismatched=[0] * len(rows) + [1] * len(others),
    )
    return compared(mine, value, every)


def trl_whole(loss: str, name: str, settings: dict[str, Any], **attributes: Any) -> tuple[float, float]:
    """Ours and get_batch_loss_metrics of the CPO or ORPO trainer, from logits to the loss."""
    rows, _ = drawn(lengths_of_pairs(same=True))
    of = trainer(name)

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        width = input_ids.shape[1] - 1
        logprobs = torch.nn.functional.pad(padded(apart(rows)), (0, 0))[:, :width]
        filled = torch.where(mask_of(apart(rows))[:, 1:].bool(), logprobs, -1.0)
        logits = torch.stack([filled, torch.log(-torch.expm1(filled))], dim=-1)
        return SimpleNamespace(
            logits=torch.nn.functional.pad(logits, (0, 0, 0, 1))
        )  # the last position predicts nothing

    self = stand_in(is_encoder_decoder=False, pad_token_id=1, padding_value=1, **attributes)
    self.concatenated_inputs, self.get_batch_logps = of.concatenated_inputs, of.get_batch_logps
    for method in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(of, method):
            setattr(self, method, partial(getattr(of, method), self))
    batch: dict[str, Tensor] = {}
    for side, chosen in (("chosen", rows[0::2]), ("rejected", rows[1::2])):
        mask = mask_of(chosen)
        attended = mask.clone()
        attended[:, 0] = 1
        batch[f"{side}_input_ids"] = 1 - attended
        batch[f"{side}_attention_mask"] = attended
        batch[f"{side}_labels"] = torch.where(mask == 1, 0, -100)
    value, _ = of.get_batch_loss_metrics(self, model, batch)
    return compared(ours(loss, settings, rows), value, rows)


def trl_cpo(loss: str, kind: str, settings: dict[str, Any], **options: Any) -> tuple[float, float]:
    """Ours and the CPO trainer's loss of one type."""
    attributes = {"cpo_alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5, "alpha": 0.0, "beta": 0.1, **options}
    return trl_whole(loss, "CPOTrainer", settings, loss_type=kind, **attributes)


def trl_wpo(**settings: Any) -> tuple[float, float]:
    """Ours and DPOTrainer._compute_loss with use_weighting, over a vocabulary of two tokens."""
    rows, references = drawn(lengths_of_pairs())
    both = [torch.stack([row, torch.log(-torch.expm1(row))], -1).detach() for row in rows]
    outputs = fused_outputs(padded(apart(rows)))
    outputs.log_sum_sq_probs = padded(apart([torch.logsumexp(2 * one, -1) for one in both]))
    self = stand_in(
        beta=settings.get("beta", 0.1),
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=True,
        precompute_ref_logps=False,
        ref_model=partial(_constant, fused_outputs(padded(apart(references)))),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        label_smoothing=0.0,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
    )
    mask = mask_of(apart(rows))
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    value = trainer("DPOTrainer")._compute_loss(self, partial(_constant, outputs), inputs, False)
    data = [
        Datum(
            ModelInput.from_ints([0] * len(r)),
            {"target_tokens": [0] * len(r), "weights": [1.0] * len(r), "ref_logprobs": f.tolist()},
        )
        for r, f in zip(rows, references, strict=True)
    ]
    tops = [one.sort(-1, descending=True).values for one in both]
    mine, _ = get_loss("wpo", top_k=2, **settings)(data, {"logprobs": rows, "topk_logprobs": tops})
    return compared([mine.detach(), torch.cat(torch.autograd.grad(mine, rows))], value, rows)


def trl_tpo(kind: str, **settings: Any) -> tuple[float, float]:
    """Ours and TPOTrainer._compute_loss without its gold responses, which are a second part of ours."""
    rows, _ = drawn(lengths_of_pairs())
    mask = mask_of(apart(rows))
    filled = torch.where(mask[:, 1:].bool(), padded(apart(rows)), -1.0)
    logits = torch.stack([filled, torch.log(-torch.expm1(filled))], dim=-1)
    outputs = SimpleNamespace(logits=torch.nn.functional.pad(logits, (0, 0, 0, 1)))  # the last predicts nothing
    self = stand_in(
        tpo_alpha=0.0,
        loss_type=kind,
        beta=settings.get("beta", 0.01),
        label_smoothing=settings.get("label_smoothing", 0.0),
        tpo_l_gamma=settings.get("gamma", 0.5),
    )
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    value = trainer("TPOTrainer")._compute_loss(self, partial(_constant, outputs), inputs, False)
    return compared(ours("tpo", settings, rows), value, rows)


def trl_reward(margin: bool, coefficient: float | None, loss: Any = None) -> tuple[float, float]:
    """Ours and RewardTrainer.compute_loss. loss: ours, instead of `reward_bt` with that coefficient."""
    rows, _ = drawn([1] * 2 * PAIRS)
    keys = {"margin": [0.25 * i for i in range(2 * PAIRS)]} if margin else {}
    inputs: dict[str, Any] = {"attention_mask": torch.ones(2 * PAIRS, 1)}
    if margin:
        inputs["margin"] = torch.tensor(keys["margin"][0::2], dtype=torch.float64)
    self = stand_in(args=SimpleNamespace(center_rewards_coefficient=coefficient))
    outputs = SimpleNamespace(logits=torch.stack(apart(rows)))
    value = trainer("RewardTrainer").compute_loss(self, partial(_constant, outputs), inputs)
    data = [
        Datum(ModelInput.from_ints([0]), {"target_tokens": [0], "weights": [1.0], **{k: v[i] for k, v in keys.items()}})
        for i in range(2 * PAIRS)
    ]
    mine, _ = (loss or get_loss("reward_bt", center_coefficient=coefficient or 0.0))(data, {"values": rows})
    return compared([mine.detach(), torch.cat(torch.autograd.grad(mine, rows))], value, rows)


def cookbook_dpo(beta: float) -> tuple[float, float]:
    """Ours and tinker_cookbook.preference.train_dpo.compute_dpo_loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tinker_cookbook.preference.train_dpo import compute_dpo_loss
    rows, references = drawn(lengths_of_pairs())
    sums = [[t.sum() for t in ts] for ts in (rows[0::2], rows[1::2], references[0::2], references[1::2])]
    value, _ = compute_dpo_loss(*sums, beta)
    return compared(ours("dpo", {"beta": beta}, rows, references), value, rows)


def dpo_case(loss: str, kind: str, settings: dict[str, Any] | None = None, **extra: Any) -> Parity:
    """A comparison with DPOTrainer."""
    settings = settings or {}
    how: dict[str, Any] = {k: extra.pop(k) for k in ("options", "dtype") if k in extra}
    run: Callable[[], tuple[float, float]] = partial(trl_dpo, loss, kind, **how, **settings)
    return Parity(loss, f"DPOTrainer._compute_loss with loss_type={kind}", "trl", run, settings, **extra)


F32 = {"dtype": torch.float32, "tolerance": 2e-6}
CASES: list[Parity] = [
    dpo_case("dpo", "sigmoid"),
    dpo_case("dpo", "sigmoid", {"beta": 0.5}),
    dpo_case("dpo", "sigmoid", {"divergence": "forward_kl"}, options={"f_divergence_type": "forward_kl"}),
    dpo_case("dpo", "sigmoid", {"divergence": "js"}, options={"f_divergence_type": "js_divergence"}),
    dpo_case(
        "dpo",
        "sigmoid",
        {"divergence": "alpha", "alpha": 0.75},
        options={"f_divergence_type": "alpha_divergence"},
        note="theirs knows no float64 here, so both are in float32",
        **F32,
    ),
    dpo_case("hinge", "hinge"),
    dpo_case("ipo", "ipo"),
    dpo_case(
        "exo_pair",
        "exo_pair",
        {"label_smoothing": 0.25},
        options={"label_smoothing": 0.25},
        tolerance=1e-6,
        note="theirs takes the logarithms of the smoothing in float32",
    ),
    dpo_case("nca_pair", "nca_pair"),
    dpo_case("robust", "robust", {"label_smoothing": 0.1}, options={"label_smoothing": 0.1}),
    dpo_case("bco_pair", "bco_pair"),
    dpo_case("sppo_hard", "sppo_hard"),
    dpo_case("aot", "aot"),
    dpo_case("aot", "aot", {"label_smoothing": 0.25}, options={"label_smoothing": 0.25}),
    dpo_case("aot_unpaired", "aot_unpaired"),
    dpo_case("aot_unpaired", "aot_unpaired", {"label_smoothing": 0.25}, options={"label_smoothing": 0.25}),
    dpo_case("apo_zero", "apo_zero"),
    dpo_case("apo_down", "apo_down"),
    dpo_case("discopop", "discopop"),
    dpo_case("discopop", "discopop", {"tau": 0.5}),
    dpo_case("sigmoid_norm", "sigmoid_norm", {"beta": 1.0}),
    dpo_case("ld_dpo", "sigmoid", {"alpha": 0.25}, options={"ld_alpha": 0.25}),
    Parity("kto", "KTOTrainer._compute_loss", "trl", partial(trl_kto, "kto")),
    Parity(
        "kto",
        "KTOTrainer._compute_loss",
        "trl",
        partial(trl_kto, "kto", beta=0.5, desirable_weight=2.0, undesirable_weight=0.5),
        {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 0.5},
    ),
    Parity("apo_zero_unpaired", "KTOTrainer._compute_loss", "trl", partial(trl_kto, "apo_zero_unpaired")),
    Parity(
        "cpo",
        "CPOTrainer.get_batch_loss_metrics",
        "trl",
        partial(trl_cpo, "cpo", "sigmoid", {}, cpo_alpha=1.0),
        note="chosen responses of one length, for theirs pools their tokens in the likelihood term",
    ),
    Parity(
        "cpo",
        "CPOTrainer.get_batch_loss_metrics with label_smoothing",
        "trl",
        partial(
            trl_cpo,
            "cpo",
            "sigmoid",
            {"label_smoothing": 0.25, "nll_coefficient": 0.0, "beta": 0.5},
            label_smoothing=0.25,
            beta=0.5,
        ),
        {"label_smoothing": 0.25, "nll_coefficient": 0.0, "beta": 0.5},
    ),
    Parity(
        "simpo",
        "CPOTrainer.get_batch_loss_metrics with loss_type=simpo",
        "trl",
        partial(trl_cpo, "simpo", "simpo", {}, beta=2.0, simpo_gamma=1.0),
        note="cpo_alpha 0, beta 2 and simpo_gamma 1 given to theirs",
    ),
    Parity(
        "alphapo",
        "CPOTrainer.get_batch_loss_metrics with loss_type=alphapo",
        "trl",
        partial(trl_cpo, "alphapo", "simpo", {}, beta=2.0, simpo_gamma=1.0, alpha=0.25),
        note="its configuration turns alphapo into simpo with an alpha and cpo_alpha 0; beta 2, simpo_gamma 1, alpha 0.25",
    ),
    Parity(
        "orpo",
        "ORPOTrainer.get_batch_loss_metrics",
        "trl",
        partial(trl_whole, "orpo", "ORPOTrainer", {"odds_coefficient": 0.1}, beta=0.1),
        {"odds_coefficient": 0.1},
        tolerance=1e-6,
        note="theirs takes the odds in float32; chosen responses of one length, for it pools their tokens",
    ),
    Parity(
        "wpo",
        "DPOTrainer._compute_loss with use_weighting",
        "trl",
        partial(trl_wpo, beta=0.5),
        {"beta": 0.5},
        note="a vocabulary of two tokens, whose both are the top_k; theirs has no gradient through the weight either",
    ),
    *(
        Parity(
            "tpo",
            f"TPOTrainer._compute_loss with loss_type={kind}",
            "trl",
            partial(trl_tpo, kind, **settings),
            settings,
            note="tpo_alpha 0: the gold responses are a part of their own here",
        )
        for kind, settings in (
            ("sigmoid", {}),
            ("sigmoid", {"beta": 0.5, "label_smoothing": 0.25}),
            ("hinge", {"contrast": "hinge"}),
            ("ipo", {"contrast": "ipo", "beta": 0.5}),
            ("tpo-l", {"contrast": "tpo_l", "beta": 2.0, "gamma": 1.0}),
        )
    ),
    Parity("reward_bt", "RewardTrainer.compute_loss", "trl", partial(trl_reward, False, None)),
    Parity(
        "reward_bt",
        "RewardTrainer.compute_loss with margins",
        "trl",
        partial(trl_reward, True, 0.01),
        {"center_coefficient": 0.01},
    ),
    Parity("dpo", "compute_dpo_loss", "tinker-cookbook", partial(cookbook_dpo, 0.1)),
]

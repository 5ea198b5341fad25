"""Distillation losses against TRL's and the Tinker cookbook's own code.

The peers take logits over a vocabulary, or [N, K] log-probabilities of it; both sides get the same drawn logits, and
gradients are compared with respect to them.
"""

from __future__ import annotations

import asyncio
import importlib
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss

from .parity import Parity

POSITIONS, VOCABULARY, K = 6, 11, 4
#: Our datums hold the teacher in float32.
ROUNDING = 2e-7


def _module(name: str) -> Any:
    """A module of a peer, whatever it warns of while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _logits() -> tuple[Tensor, Tensor]:
    """Student and teacher [T, V], float64; the teacher's logprobs of V tokens are numbers that float32 holds."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(POSITIONS, VOCABULARY, generator=generator).double() for _ in range(2))
    return student, teacher.log_softmax(-1).float().double()


def _ours(name: str, candidates: Tensor, teacher: Tensor, **settings: Any) -> Callable[[Tensor], Tensor]:
    """Our loss, as a plain sum, of the student's logits."""
    carried = {"target_tokens": candidates, "teacher_logprobs": teacher.gather(1, candidates).float()}
    datum = Datum(ModelInput.from_ints([0] * POSITIONS), {**carried, "weights": torch.ones(POSITIONS)})
    loss = get_loss(name, reduction="sum", **settings)
    return lambda logits: loss.terms([datum], {"logprobs": [logits.log_softmax(-1).gather(1, candidates)]})[0]


def _compared(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    student, _ = _logits()
    results = []
    for function in (ours, theirs):
        logits = student.clone().requires_grad_()
        value = function(logits)
        results.append((value.detach().double(), torch.autograd.grad(value, logits)[0]))
    (value, slope), (their_value, their_slope) = results
    return float((value - their_value).abs()), float((slope - their_slope).abs().max())


def _everything() -> Tensor:
    return torch.arange(VOCABULARY).repeat(POSITIONS, 1)


def _top(logits: Tensor) -> Tensor:
    return logits.topk(K, dim=-1).indices


def gkd(beta: float, temperature: float, loss: str = "") -> tuple[float, float]:
    """The GKD trainer's loss over the whole vocabulary. loss: ours as it is, such as a preset."""
    trainer = _module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    _, teacher = _logits()
    settings = {} if loss else {"beta": beta, "temperature": temperature, "tail": "renormalise"}
    ours = _ours(loss or "gkd", _everything(), teacher, **settings)
    options = {"beta": beta, "temperature": temperature, "reduction": "sum"}
    return _compared(ours, lambda x: trainer.generalized_jsd_loss(x[None], teacher[None], **options))


def sparse(name: str, beta: float, tail: str) -> tuple[float, float]:
    """The server-distillation trainer's divergence and tail bucket, put together as the trainer does."""
    module = _module("trl.experimental.server_distillation.server_distillation_trainer")
    _, teacher = _logits()
    candidates = _top(teacher)
    present = torch.ones_like(candidates, dtype=torch.bool)

    def theirs(logits: Tensor) -> Tensor:
        both = [x.gather(1, candidates) for x in (logits.log_softmax(-1), teacher)]
        mask = present
        if tail == "bin":
            (both[0], mask), (both[1], _) = (module._add_tail_bucket(x, present) for x in both)
        else:
            both = [x - x.logsumexp(-1, keepdim=True) for x in both]
        return module._jsd_divergence(both[0], both[1], beta, mask).sum()

    settings = {"beta": beta} if name in ("gkd", "topk_jsd") else {}
    return _compared(_ours(name, candidates, teacher, tail=tail, **settings), theirs)


def server_forward_kl(tail: str) -> tuple[float, float]:
    """The server-distillation trainer's whole method for beta 0, an absent candidate included."""
    module = _module("trl.experimental.server_distillation.server_distillation_trainer")
    trainer = module.ServerDistillationTrainer
    own = SimpleNamespace(loss_add_tail=tail == "bin", _reduce_divergence_loss=trainer._reduce_divergence_loss)
    _, teacher = _logits()
    candidates = _top(teacher)
    absent = torch.zeros_like(candidates, dtype=torch.bool)
    absent[::2, -1] = True
    masked = teacher.scatter(
        1, candidates[:, -1:], torch.where(absent[:, -1:], -torch.inf, teacher.gather(1, candidates[:, -1:]))
    )
    result = {"topk_logprobs": masked.gather(1, candidates)[None], "topk_token_ids": candidates[None]}
    labels = torch.zeros(1, POSITIONS, dtype=torch.long)

    def theirs(logits: Tensor) -> Tensor:
        mean = trainer._compute_server_forward_kl_loss(own, result, logits.log_softmax(-1)[None], labels)
        return POSITIONS * mean

    return _compared(_ours("topk_forward_kl", candidates, masked, tail=tail), theirs)


def self_distillation(module: str, name: str, alpha: float, tail: str) -> tuple[float, float]:
    """The SDFT and SDPO trainers' loss over the student's own top K."""
    peer = _module(module)
    student, teacher = _logits()
    settings = {"beta": alpha} if name in ("gkd", "topk_jsd") else {}
    options = {"distillation_topk": K, "distillation_alpha": alpha, "distillation_add_tail": tail == "bin"}
    return _compared(
        _ours(name, _top(student), teacher, tail=tail, **settings),
        lambda x: peer.compute_topk_self_distillation_loss(x, teacher, **options).sum(),
    )


def tinker_reverse_kl() -> tuple[float, float]:
    """The cookbook's custom loss, which holds the teacher's renormalised probabilities in the weights."""
    module = _module("tinker_cookbook.distillation.sdft")
    tinker = _module("tinker")
    _, teacher = _logits()
    candidates = _top(teacher)
    weights = teacher.gather(1, candidates).softmax(-1).float()
    inputs = {"target_tokens": candidates, "weights": weights}
    data = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([0] * POSITIONS),
        loss_fn_inputs={key: tinker.TensorData.from_torch(value) for key, value in inputs.items()},
    )
    return _compared(
        _ours("topk_reverse_kl", candidates, teacher, tail="renormalise"),
        lambda x: module.reverse_kl_custom_loss([data], [x.log_softmax(-1).gather(1, candidates)])[0],
    )


def tinker_forward_kl() -> tuple[float, float]:
    """The cookbook's SDFT datums (top K of a teacher's response, renormalised), under cross-entropy."""
    module = _module("tinker_cookbook.distillation.sdft")
    tinker = _module("tinker")
    _, teacher = _logits()
    candidates = _top(teacher)
    rows = [[(int(token), float(teacher[t, token])) for token in row] for t, row in enumerate(candidates)]

    class Answer:
        async def coroutine(self) -> Any:
            return SimpleNamespace(topk_prompt_logprobs=[None, *rows])  # one prompt token before the completion

    mask = torch.ones(POSITIONS)
    inputs = {"target_tokens": torch.zeros(POSITIONS, dtype=torch.long), "mask": mask}
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([0] * POSITIONS),
        loss_fn_inputs={key: tinker.TensorData.from_torch(value) for key, value in inputs.items()},
    )
    made, _ = asyncio.run(
        module.build_topk_distillation_datums(
            [datum],
            [{"group_idx": 0}],
            SimpleNamespace(sample=lambda **_: Answer()),
            [tinker.ModelInput.from_ints([0])],
            topk=K,
            skip_first_n_tokens=0,
        )
    )
    targets, weights = (made[0].loss_fn_inputs[key].to_torch() for key in ("target_tokens", "weights"))
    return _compared(
        _ours("sdft", candidates, teacher),
        lambda x: -(weights * x.log_softmax(-1).gather(1, targets)).sum(),
    )


def sampled(peer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], **settings: Any) -> tuple[float, float]:
    """`sampled_reverse_kl` of drawn logprobs: student, sampler, teacher [T]; peer(logits, tokens, sampling, teacher)."""
    student, teacher = _logits()
    tokens = _top(student)[:, 1]
    own = student.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    of_teacher = teacher.gather(1, tokens[:, None])[:, 0].float()
    sampling = (own + 0.3 * teacher[:, 0].sin()).clamp(max=0).float()
    datum = Datum(
        ModelInput.from_ints([0] * POSITIONS),
        {
            "target_tokens": tokens,
            "sampling_logprobs": sampling,
            "teacher_logprobs": of_teacher,
            "weights": torch.ones(POSITIONS),
        },
    )
    loss = get_loss("sampled_reverse_kl", reduction="sum", **settings)

    def ours(logits: Tensor) -> Tensor:
        return loss.terms([datum], {"logprobs": [logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]]})[0]

    return _compared(ours, lambda x: peer(x, tokens, sampling, of_teacher))


def tinker_on_policy() -> tuple[float, float]:
    """The cookbook's on-policy advantages, in the importance sampling that it trains with (-r A)."""
    module = _module("tinker_cookbook.distillation.train_on_policy")
    tinker = _module("tinker")

    def peer(logits: Tensor, tokens: Tensor, sampling: Tensor, teacher: Tensor) -> Tensor:
        class Answer:
            async def coroutine(self) -> list[float]:
                return [0.0, *teacher.tolist()]

        inputs = {
            "target_tokens": tokens,
            "logprobs": sampling,
            "mask": torch.ones(POSITIONS),
            "advantages": torch.zeros(POSITIONS),
        }
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints([0] * POSITIONS),
            loss_fn_inputs={key: tinker.TensorData.from_torch(value) for key, value in inputs.items()},
        )
        client = SimpleNamespace(compute_logprobs=lambda _: Answer())
        asyncio.run(module.incorporate_kl_penalty([datum], [client], [0], 0.5, 0.0))
        advantages = datum.loss_fn_inputs["advantages"].to_torch()
        own = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return -((own - sampling).exp() * advantages).sum()

    return sampled(peer, scale=0.5)


TRL = "trl.experimental"
SERVER = f"{TRL}.server_distillation.server_distillation_trainer"
SDFT = "tinker_cookbook.distillation.sdft"
CASES: list[Parity] = [
    *(
        Parity(
            "gkd",
            f"{TRL}.gkd.GKDTrainer.generalized_jsd_loss",
            "trl",
            lambda beta=beta, temperature=temperature: gkd(beta, temperature),
            {"beta": beta, "temperature": temperature, "tail": "renormalise"},
            tolerance=1e-9,
            note="the whole vocabulary as candidates; reduction='sum' on both sides",
        )
        for beta, temperature in ((0.0, 1.0), (0.3, 0.9), (0.5, 0.9), (1.0, 1.0))
    ),
    *(
        Parity(
            name,
            f"{SERVER}._jsd_divergence",
            "trl",
            lambda name=name, beta=beta, tail=tail: sparse(name, beta, tail),
            {"tail": tail, **({"beta": beta} if name in ("gkd", "topk_jsd") else {})},
            tolerance=ROUNDING,
            note=f"beta {beta:g}; with _add_tail_bucket where tail is 'bin'; our teacher is float32",
        )
        for name, beta in (("topk_forward_kl", 0.0), ("topk_reverse_kl", 1.0), ("topk_jsd", 0.3))
        for tail in ("bin", "renormalise")
    ),
    *(
        Parity(
            "topk_forward_kl",
            f"{SERVER}.ServerDistillationTrainer._compute_server_forward_kl_loss",
            "trl",
            lambda tail=tail: server_forward_kl(tail),
            {"tail": tail},
            tolerance=ROUNDING,
            note="loss_add_tail is tail 'bin'; times the number of positions, over which it takes the mean",
        )
        for tail in ("bin", "renormalise")
    ),
    *(
        Parity(
            name,
            f"{TRL}.{trainer}.loss_utils.compute_topk_self_distillation_loss",
            "trl",
            lambda trainer=trainer, name=name, alpha=alpha, tail=tail: self_distillation(
                f"{TRL}.{trainer}.loss_utils", name, alpha, tail
            ),
            {"tail": tail, **({"beta": alpha} if name in ("gkd", "topk_jsd") else {})},
            tolerance=ROUNDING,
            note=f"alpha {alpha:g}; candidates are the student's own top K",
        )
        for trainer in ("sdft", "sdpo")
        for name, alpha, tail in (
            ("gkd", 0.5, "bin"),
            ("topk_reverse_kl", 1.0, "bin"),
            ("topk_forward_kl", 0.0, "renormalise"),
        )
    ),
    Parity(
        "topk_reverse_kl",
        f"{SDFT}.reverse_kl_custom_loss",
        "tinker-cookbook",
        tinker_reverse_kl,
        {"tail": "renormalise"},
        tolerance=1e-6,
        note="its logarithms are detached, which changes no gradient; its teacher is float32 probabilities",
    ),
    Parity(
        "sdft",
        f"{SDFT}.build_topk_distillation_datums",
        "tinker-cookbook",
        tinker_forward_kl,
        tolerance=1e-5,
        note="skip_first_n_tokens=0; its weights are float32 probabilities, under cross-entropy as a sum",
    ),
    Parity(
        "sampled_reverse_kl",
        "tinker_cookbook.distillation.train_on_policy.incorporate_kl_penalty",
        "tinker-cookbook",
        tinker_on_policy,
        {"scale": 0.5},
        tolerance=1e-6,
        note="kl_penalty_coef is scale; its advantages are float32, under importance sampling -r A as a sum",
    ),
]

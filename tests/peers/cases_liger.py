"""Losses against Liger's chunked losses, from hidden states and a head to the gradients of both, on a CPU.

Liger takes log-softmax in float32, so these agree to 1e-6 and no further. Masks have holes; rows differ in length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss

from .padded import relative
from .parity import Parity

ROWS, WIDTH, HIDDEN, VOCABULARY = 6, 5, 8, 13
PAIRS = ROWS // 2
#: Chosen and rejected take turns in our data; Liger has all chosen first.
OURS = [row for pair in range(PAIRS) for row in (pair, pair + PAIRS)]


@dataclass(frozen=True)
class Model:
    """hidden [ROWS, WIDTH, HIDDEN] and head [VOCABULARY, HIDDEN], a reference's too, targets and a mask; in Liger's order."""

    hidden: Tensor
    head: Tensor
    reference: Tensor
    reference_head: Tensor
    targets: Tensor
    mask: Tensor
    advantages: Tensor

    @property
    def labels(self) -> Tensor:
        return self.targets.masked_fill(~self.mask, -100)

    def logprobs(self, hidden: Tensor, head: Tensor) -> Tensor:
        return (hidden @ head.T).log_softmax(-1).gather(-1, self.targets[..., None])[..., 0]

    def datums(self, rows: list[int], **more: Tensor) -> list[Datum]:
        columns = {"target_tokens": self.targets, "weights": self.mask.float(), **more}
        return [
            Datum(ModelInput.from_ints([0] * WIDTH), {key: column[row] for key, column in columns.items()})
            for row in rows
        ]


def model(same: bool = False) -> Model:
    """A draw. same: all chosen responses have four tokens, where a peer pools them."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    mask = torch.arange(WIDTH) < torch.tensor([4, 4, 4, 2, 5, 3] if same else [5, 1, 3, 2, 5, 4])[:, None]
    if not same:
        mask[0, 2] = mask[4, 1] = False
    targets = torch.randint(0, VOCABULARY, (ROWS, WIDTH), generator=draw)
    hidden, head = normal(ROWS, WIDTH, HIDDEN), normal(VOCABULARY, HIDDEN)
    moved = 0.3 * normal(ROWS, WIDTH, HIDDEN)
    advantages = normal(ROWS)
    advantages[3] = 0
    return Model(hidden, head, hidden + moved, head + 0.1 * normal(VOCABULARY, HIDDEN), targets, mask, advantages)


Function = Callable[[Model, Tensor, Tensor], Tensor]


def compared(ours: Function, theirs: Function, same: bool = False) -> tuple[float, float]:
    """The largest relative differences of value, and of the gradients of hidden states and head."""
    drawn = model(same)
    results = []
    for function in (ours, theirs):
        leaves = [one.clone().requires_grad_() for one in (drawn.hidden, drawn.head)]
        value = function(drawn, *leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    value, *gradients = (relative(mine, peer) for mine, peer in zip(*results, strict=True))
    return value, max(gradients)


def liger(name: str, **settings: Any) -> Any:
    import liger_kernel.chunked_loss as losses

    return getattr(losses, f"LigerFusedLinear{name}Loss")(compiled=False, **settings)


def pairs(loss: str, **settings: Any) -> Function:
    """Ours of pairs, with the reference's logprobs where it reads them."""

    def ours(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        logprobs = drawn.logprobs(hidden, head)
        data = drawn.datums(OURS, ref_logprobs=drawn.logprobs(drawn.reference, drawn.reference_head))
        return get_loss(loss, **settings)(data, [logprobs[row] for row in OURS])[0]

    return ours


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def preference(name: str, **settings: Any) -> Function:
    """One of Liger's losses of pairs without a reference."""
    return lambda drawn, hidden, head: first(liger(name, **settings)(head, hidden, drawn.labels))


def dpo(**settings: Any) -> Function:
    def theirs(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        own = {"ref_input": drawn.reference, "ref_weight": drawn.reference_head}
        return first(liger("DPO", **settings)(head, hidden, drawn.labels, **own))

    return theirs


LABELS = torch.tensor([True, False, True, True, False, False])


def kto_theirs(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
    own = {"ref_input": drawn.reference, "ref_weight": drawn.reference_head}
    made = liger("KTO", use_ref_model=True)
    return first(made(hidden, head, drawn.labels, preference_labels=LABELS, kl=torch.zeros(1), **own))


def kto_ours(loss: str) -> Function:
    """Without mismatched responses the baseline is 0, which Liger is given."""

    def ours(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        reference = drawn.logprobs(drawn.reference, drawn.reference_head)
        data = drawn.datums(list(range(ROWS)), ref_logprobs=reference, label=LABELS.float())
        return get_loss(loss)(data, list(drawn.logprobs(hidden, head)))[0]

    return ours


def grpo(**settings: Any) -> Function:
    def theirs(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        old, reference = old_and_reference(drawn)
        return first(
            liger("GRPO", **settings)(
                hidden,
                head,
                drawn.targets,
                drawn.mask.float(),
                drawn.advantages,
                ref_per_token_logps=reference,
                old_per_token_logps=old,
            )
        )

    return theirs


def old_and_reference(drawn: Model) -> tuple[Tensor, Tensor]:
    reference = drawn.logprobs(drawn.reference, drawn.reference_head)
    return drawn.logprobs(drawn.hidden, drawn.head + 0.2 * drawn.reference_head.sin()), reference


def policy(loss: str, **settings: Any) -> Function:
    def ours(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        old, reference = old_and_reference(drawn)
        advantages = drawn.advantages[:, None].expand(ROWS, WIDTH)
        data = drawn.datums(list(range(ROWS)), sampling_logprobs=old, ref_logprobs=reference, advantages=advantages)
        return get_loss(loss, **settings)(data, list(drawn.logprobs(hidden, head)))[0]

    return ours


def jsd_theirs(**settings: Any) -> Function:
    """The soft loss alone."""
    made = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, **settings}

    def theirs(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        student, teacher = (one.reshape(-1, HIDDEN) for one in (hidden, drawn.reference))
        return first(liger("JSD", **made)(student, head, teacher, drawn.reference_head, drawn.labels.reshape(-1)))

    return theirs


def whole(loss: str, **settings: Any) -> Function:
    """Ours over a teacher's whole distribution."""

    def ours(drawn: Model, hidden: Tensor, head: Tensor) -> Tensor:
        teacher = (drawn.reference @ drawn.reference_head.T).log_softmax(-1)
        outputs = {
            "vocab_logprobs": list((hidden @ head.T).log_softmax(-1)),
            "teacher_vocab_logprobs": list(teacher),
        }
        return get_loss(loss, **settings)(drawn.datums(list(range(ROWS))), outputs)[0]

    return ours


def case(
    loss: str, peer: str, ours: Function, theirs: Function, note: str = "", same: bool = False, **settings: Any
) -> Parity:
    """A comparison; settings: ours, as the page shows them."""
    run = lambda: compared(ours, theirs, same)  # noqa: E731
    return Parity(loss, peer, "liger-kernel", run, settings, tolerance=1e-5, note=note)


def of_pairs(loss: str, kind: str, **settings: Any) -> Parity:
    """One of our losses of pairs against a loss_type of Liger's DPO."""
    theirs = {key: value for key, value in settings.items() if key == "label_smoothing"}
    made = dpo(loss_type=kind, **theirs)
    return case(loss, f"LigerFusedLinearDPOLoss(loss_type={kind})", pairs(loss, **settings), made, **settings)


def of_policy(loss: str, options: dict[str, Any], note: str = "", **settings: Any) -> Parity:
    """One of our policy losses against Liger's GRPO with options."""
    own = {"beta": 0.0, **options}
    shown = ",".join(f"{key}={value}" for key, value in own.items())
    return case(loss, f"LigerFusedLinearGRPOLoss({shown})", policy(loss, **settings), grpo(**own), note, **settings)


POOLED = "chosen responses of one length, for theirs pools their tokens in the likelihood term"
TOKENS, SEQUENCES = {"reduction": "token-mean"}, {"reduction": "seq-mean-token-mean"}
CASES: list[Parity] = [
    case("cpo", "LigerFusedLinearCPOLoss()", pairs("cpo"), preference("CPO"), POOLED, same=True),
    case(
        "simpo",
        "LigerFusedLinearSimPOLoss(alpha=0)",
        pairs("simpo", beta=0.1, gamma=0.5),
        preference("SimPO", alpha=0.0, compute_nll_loss=False),
        "theirs adds a likelihood term unless alpha is 0",
        beta=0.1,
        gamma=0.5,
    ),
    case(
        "orpo",
        "LigerFusedLinearORPOLoss()",
        pairs("orpo", odds_coefficient=0.1),
        preference("ORPO"),
        POOLED,
        same=True,
        odds_coefficient=0.1,
    ),
    of_pairs("dpo", "sigmoid"),
    of_pairs("exo_pair", "exo_pair", label_smoothing=0.25),
    of_pairs("robust", "robust", label_smoothing=0.1),
    *(
        of_pairs(name, name)
        for name in ("hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop")
    ),
    case(
        "kto",
        "LigerFusedLinearKTOLoss(use_ref_model=True), kl=0",
        kto_ours("kto"),
        kto_theirs,
        "the baseline is given to theirs, and both sides count alike",
    ),
    of_policy("grpo", {"loss_type": "dapo", "beta": 0.04}, kl_coefficient=0.04),
    of_policy("grpo", {"loss_type": "grpo", "beta": 0.04}, kl_coefficient=0.04, **SEQUENCES),
    of_policy("bnpo", {"loss_type": "bnpo"}),
    of_policy("dr_grpo", {"loss_type": "dr_grpo", "max_completion_length": WIDTH}, norm_length=WIDTH),
    of_policy("dual_clip", {"loss_type": "dapo", "delta": 3.0}),
    of_policy("gspo", {"loss_type": "grpo", "importance_sampling_level": "sequence"}, clip_low=0.8, clip_high=1.2),
    of_policy("cispo", {"loss_type": "cispo", "epsilon_high": 4.0}, **TOKENS),
    of_policy("sapo", {"loss_type": "sapo"}),
    of_policy("vespo", {"loss_type": "vespo"}),
    of_policy("luspo", {"loss_type": "luspo", "importance_sampling_level": "sequence"}, clip_low=0.8, clip_high=1.2),
    *(
        case(
            "full_gkd",
            f"LigerFusedLinearJSDLoss(beta={beta:g}, weight_hard_loss=0)",
            whole("full_gkd", beta=beta, temperature=temperature),
            jsd_theirs(beta=beta, temperature=temperature),
            "the soft loss alone",
            beta=beta,
            temperature=temperature,
        )
        for beta, temperature in ((0.0, 1.0), (0.3, 2.0), (0.5, 1.0), (1.0, 1.0))
    ),
]

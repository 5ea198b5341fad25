"""Every misuse of a loss on tensors is one line that names the key, and the row and position where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import errors, get_loss
from lossbook.losses import VectorPerDatum

from ..cases import loss_of

LOGPROBS = torch.tensor([[-0.5, -1.0, -1.5], [-2.0, -0.25, -0.75]])
ONES = torch.ones(2, 3)
NAN, INF = float("nan"), float("inf")


def at(tensor: Tensor, place: Any, value: float) -> Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


def ppo(**changed: Any) -> Any:
    """ppo on padded tensors, with what is changed; `...` leaves a tensor out."""
    given = {"logprobs": LOGPROBS, "mask": ONES, "advantages": torch.ones(2), "sampling_logprobs": LOGPROBS, **changed}
    reduction = given.pop("reduction", "sum")
    return get_loss("ppo", reduction=reduction).on_tensors(**{k: v for k, v in given.items() if v is not ...})


def packed(name: str = "ppo", reduction: str = "sum", **changed: Any) -> Any:
    """The same tensors packed."""
    flat = LOGPROBS.flatten()
    given = {"logprobs": flat, "mask": ONES.flatten(), "advantages": 1.0, "sampling_logprobs": flat, **changed}
    return get_loss(name, reduction=reduction).on_tensors(**given)


def other(name: str, *outputs: Any, **given: Any) -> Any:
    return get_loss(name).on_tensors(*outputs, **given)


def guided(embeddings: Tensor, guide_embedding: VectorPerDatum) -> Tensor:
    return embeddings.sum(1) * guide_embedding.sum(1)


GUIDED = loss_of(guided, per="datum")
WIDE = torch.full((2, 3, 4), -2.0)
MIXTURE = 0.9 * get_loss("ppo", reduction="token-mean") + 0.1 * get_loss("cross_entropy")

CASES: dict[str, tuple[Any, type[Exception], str]] = {
    "no mask": (lambda: ppo(mask=None), errors.MissingInput, "ppo reads 'mask', which was not given: [2, 3], 1 where"),
    "no mask to divide by": (
        lambda: packed(reduction="token-mean", mask=None),
        errors.MissingInput,
        "ppo with reduction 'token-mean' divides by the mask, which was not given: [6]",
    ),
    "an unknown key": (
        lambda: ppo(advantage=ONES),
        errors.UnknownInput,
        "ppo does not read 'advantage'. Did you mean 'advantages'? It reads: ",
    ),
    "another system's key": (
        lambda: ppo(sampling_logprobs=..., old_logprobs=LOGPROBS),
        errors.UnknownInput,
        "ppo does not read 'old_logprobs'. Did you mean 'sampling_logprobs'?",
    ),
    "weights": (lambda: ppo(weights=ONES), errors.UnknownInput, "Weights and masks are given as mask=."),
    "a setting": (lambda: ppo(clip_high=1.2), errors.UnknownInput, "It is a setting: get_loss(..., clip_high=...)."),
    "a missing input": (
        lambda: ppo(advantages=...),
        errors.MissingInput,
        "ppo reads 'advantages', which was not given. Given: logprobs, sampling_logprobs",
    ),
    "a missing output": (lambda: ppo(logprobs=...), errors.MissingInput, "ppo reads 'logprobs', which was not given."),
    "an input that a setting needs": (
        lambda: get_loss("grpo", kl_coefficient=0.1).on_tensors(
            LOGPROBS, mask=ONES, sampling_logprobs=LOGPROBS, advantages=ONES
        ),
        errors.MissingInput,
        "grpo with kl_coefficient=0.1 reads 'ref_logprobs', which was not given.",
    ),
    "a mask of another shape": (
        lambda: ppo(mask=torch.ones(2, 4)),
        errors.ShapeError,
        "ppo: mask is [2, 4], but logprobs has the positions [2, 3]",
    ),
    "an input of another shape": (
        lambda: ppo(advantages=torch.ones(3)),
        errors.ShapeError,
        "ppo: advantages is [3], but by logprobs it is one number per position, [2, 3], or one per row, [2]",
    ),
    "a column too many": (
        lambda: ppo(advantages=torch.ones(2, 3, 1)),
        errors.ShapeError,
        "ppo: advantages must be one number per position, [2, 3]",
    ),
    "a negative mask": (
        lambda: ppo(mask=at(ONES, (1, 2), -1.0), reduction="token-mean"),
        errors.WeightsError,
        "ppo: mask of row 1 is -1 at position 2, and reduction 'token-mean' cannot divide by negative weights.",
    ),
    "labels as a mask": (
        lambda: ppo(mask=at(ONES.long(), (0, 1), -100)),
        errors.WeightsError,
        "ppo: mask of row 0 is -100 at position 1: a mask of integers is 0 or 1.",
    ),
    "NaN in the mask": (
        lambda: ppo(mask=at(ONES, (1, 0), NAN)),
        errors.NonFiniteLossInput,
        "ppo: mask of row 1 is nan at position 0",
    ),
    "NaN in logprobs": (
        lambda: ppo(logprobs=at(LOGPROBS, (1, 2), NAN)),
        errors.NonFiniteLossInput,
        "ppo: logprobs of row 1 is nan at position 2, where the weight is not 0.",
    ),
    "infinity in an input": (
        lambda: ppo(advantages=at(ONES, (0, 1), INF)),
        errors.NonFiniteLossInput,
        "ppo: advantages of row 0 is inf at position 1",
    ),
    "NaN in an input per row": (
        lambda: ppo(advantages=torch.tensor([1.0, NAN])),
        errors.NonFiniteLossInput,
        "ppo: advantages of row 1 is nan",
    ),
    "probabilities for logprobs": (
        lambda: ppo(sampling_logprobs=LOGPROBS.exp()),
        errors.InvalidLogprobError,
        "ppo: sampling_logprobs of row 0 is 0.606531 at position 0: a log-probability is at most 0.",
    ),
    "data with a gradient": (
        lambda: ppo(sampling_logprobs=LOGPROBS.clone().requires_grad_()),
        errors.LossContractError,
        "ppo: sampling_logprobs requires a gradient, but it is data",
    ),
    "integers as logprobs": (
        lambda: ppo(logprobs=torch.zeros(2, 3, dtype=torch.int64)),
        errors.DtypeError,
        "ppo: logprobs is torch.int64: a model's outputs are floats",
    ),
    "complex numbers": (lambda: ppo(logprobs=LOGPROBS.cfloat()), errors.DtypeError, "ppo: logprobs is torch.complex64"),
    "a text": (lambda: ppo(advantages="x"), errors.DtypeError, "ppo: advantages must be a tensor or numbers, not 'x'"),
    "nothing left": (
        lambda: ppo(mask=torch.zeros(2, 3)),
        errors.EmptyLossError,
        "ppo: the mask is 0 everywhere, so there is nothing to train on.",
    ),
    "no rows": (
        lambda: ppo(logprobs=LOGPROBS[:0], mask=ONES[:0], advantages=torch.ones(0), sampling_logprobs=LOGPROBS[:0]),
        errors.EmptyLossError,
        "ppo: the mask is 0 everywhere",
    ),
    "a denominator of a sum": (
        lambda: ppo(denominator=3),
        errors.LossContractError,
        "ppo is a sum, which is not divided, but denominator is 3: leave it out, or take a mean",
    ),
    "a denominator of 0": (
        lambda: ppo(denominator=0, reduction="token-mean"),
        errors.WeightsError,
        "ppo: denominator is 0: reduction 'token-mean' divides by it",
    ),
    "a text as denominator": (
        lambda: ppo(denominator="3"),
        errors.LossContractError,
        "denominator is a number, a tensor",
    ),
    "one denominator for two parts": (
        lambda: MIXTURE.on_tensors(
            LOGPROBS, mask=ONES, sampling_logprobs=LOGPROBS, advantages=ONES, denominator=torch.tensor(3.0)
        ),
        errors.ShapeError,
        "has one denominator per part, 2, but denominator is [1]",
    ),
    "cu_seqlens that ends early": (
        lambda: packed(cu_seqlens=[0, 2, 5]),
        errors.ShapeError,
        "cu_seqlens ends at 5, but logprobs has 6 positions",
    ),
    "cu_seqlens that begins late": (
        lambda: packed(cu_seqlens=[1, 2, 6]),
        errors.ShapeError,
        "cu_seqlens begins with 1",
    ),
    "cu_seqlens that falls": (
        lambda: packed(cu_seqlens=[0, 4, 2, 6]),
        errors.ShapeError,
        "cu_seqlens falls from 4 to 2 at sequence 1",
    ),
    "cu_seqlens of floats": (
        lambda: packed(cu_seqlens=torch.tensor([0.0, 6.0])),
        errors.DtypeError,
        "cu_seqlens is torch.float32",
    ),
    "cu_seqlens of two dimensions": (lambda: packed(cu_seqlens=[[0, 6]]), errors.ShapeError, "cu_seqlens is [1, 2]"),
    "cu_seqlens beside padded tensors": (
        lambda: ppo(cu_seqlens=[0, 3, 6]),
        errors.ShapeError,
        "padded ones take no cu_seqlens",
    ),
    "empty sequences that cannot be told from positions": (
        lambda: packed(cu_seqlens=[0, 0, 0, 0, 0, 2, 6]),
        errors.ShapeError,
        "leave empty sequences out",
    ),
    "packed tensors without boundaries": (
        lambda: packed("gspo", "mean"),
        errors.LossContractError,
        "gspo couples the positions of a datum, and logprobs is packed, [6]: give cu_seqlens",
    ),
    "one number per sequence without boundaries": (
        lambda: packed(advantages=torch.ones(2)),
        errors.ShapeError,
        "ppo: advantages is [2]",
    ),
    "a packed row is a sequence": (
        lambda: packed(cu_seqlens=[0, 2, 6], logprobs=at(LOGPROBS.flatten(), 3, NAN)),
        errors.NonFiniteLossInput,
        "ppo: logprobs of sequence 1 is nan at position 1",
    ),
    "an odd number of rows": (
        lambda: other("dpo", LOGPROBS[:1], mask=ONES[:1], ref_logprobs=LOGPROBS[:1]),
        errors.ShapeError,
        "pairs are rows 2i (chosen) and 2i+1 (rejected), but there are 1 rows",
    ),
    "half a pair": (
        lambda: other("dpo", LOGPROBS, mask=at(ONES, 1, 0), ref_logprobs=LOGPROBS),
        errors.AlignmentError,
        "row 1 of 2 has no position of non-zero weight while its partner 0 has",
    ),
    "a label of -1": (
        lambda: other("kto", LOGPROBS, mask=ONES, ref_logprobs=LOGPROBS, label=[1, -1]),
        errors.LabelError,
        "kto: label of row 1 is -1: it must be 0 or 1. Did you mean 0?",
    ),
    "a label per position": (
        lambda: other("kto", LOGPROBS, mask=ONES, ref_logprobs=LOGPROBS, label=ONES),
        errors.ShapeError,
        "kto reads one 'label' per row, [2], not one per position",
    ),
    "one number where a vector per row is read": (
        lambda: GUIDED.on_tensors(embeddings=torch.ones(4, 2), guide_embedding=torch.ones(4)),
        errors.ShapeError,
        "guided: guide_embedding is [4]: one vector per row, [4, D]",
    ),
    "vectors of other rows": (
        lambda: GUIDED.on_tensors(embeddings=torch.ones(4, 2), guide_embedding=torch.ones(3, 2)),
        errors.ShapeError,
        "guided: guide_embedding is [3, 2]: one vector per row, [4, D]",
    ),
    "a vector with a hole": (
        lambda: GUIDED.on_tensors(embeddings=torch.ones(2, 2), guide_embedding=[[1.0, 2.0], [1.0, float("inf")]]),
        errors.NonFiniteLossInput,
        "guided: guide_embedding of row 1 is inf",
    ),
    "an id that is no integer": (
        lambda: other("info_nce", embeddings=torch.ones(4, 2), document_id=[0, 1.5, 0, 1]),
        errors.LabelError,
        "info_nce: document_id of row 1 is 1.5: give an integer",
    ),
    "one candidate where K are compared": (
        lambda: other("topk_forward_kl", LOGPROBS, mask=ONES, teacher_logprobs=LOGPROBS),
        errors.ShapeError,
        "topk_forward_kl compares K candidate tokens per position, so logprobs is [2, 3, K], not [2, 3]",
    ),
    "other candidates than the teacher's": (
        lambda: other("topk_forward_kl", WIDE, mask=ONES, teacher_logprobs=WIDE[..., :2]),
        errors.ShapeError,
        "topk_forward_kl: teacher_logprobs must hold one number for each of the 4 candidates of a position, [2, 3, 4]",
    ),
    "a mask per candidate": (
        lambda: other("topk_forward_kl", WIDE, mask=torch.ones(2, 3, 4), teacher_logprobs=WIDE),
        errors.ShapeError,
        "topk_forward_kl: mask is [2, 3, 4], but it must be [2, 3]",
    ),
    "a mask per position of K targets": (
        lambda: other("cross_entropy", WIDE, mask=ONES),
        errors.ShapeError,
        "cross_entropy: mask is [2, 3], but it must be [2, 3, 4]",
    ),
    "no candidate at a position": (
        lambda: other("topk_forward_kl", WIDE, mask=ONES, teacher_logprobs=at(WIDE, (1, 0), -INF)),
        errors.NonFiniteLossInput,
        "topk_forward_kl: teacher_logprobs of row 1 is -inf for all 4 candidates at position 0",
    ),
    "K targets where one token is read": (
        lambda: other("dpo", WIDE, mask=torch.ones(2, 3, 4), ref_logprobs=WIDE),
        errors.ShapeError,
        "dpo reads one token per position, but logprobs has 4 per position: it must be [2, 3]",
    ),
    "a mask beside embeddings": (
        lambda: other("info_nce", embeddings=torch.ones(4, 2), mask=ONES),
        errors.UnknownInput,
        "info_nce reads one vector per row and no positions, so it takes no mask",
    ),
    "NaN in embeddings": (
        lambda: other("info_nce", embeddings=at(torch.ones(4, 2), (2, 1), NAN)),
        errors.NonFiniteLossInput,
        "info_nce: embeddings of row 2 is nan",
    ),
    "embeddings of another number": (
        lambda: other("info_nce", embeddings=torch.ones(4, 2), document_id=[0, 1, 0]),
        errors.ShapeError,
        "info_nce: document_id is [3], but by embeddings it is one per row, [4]",
    ),
    "a count of nothing": (
        lambda: get_loss("info_nce").count_tensors(),
        errors.MissingInput,
        "info_nce: no tensor says how many rows there are",
    ),
    "a count that may depend on what rows carry": (
        lambda: get_loss("kto").count_tensors(mask=ONES),
        errors.MissingInput,
        "kto reads 'label', which was not given.",
    ),
    "tensors where datums go": (
        lambda: get_loss("cross_entropy")(LOGPROBS, ONES),
        errors.LossContractError,
        "Tensors go to on_tensors(logprobs=..., mask=..., ...), on_logits or on_hidden",
    ),
    "an output that it does not read": (
        lambda: ppo(entropy=ONES),
        errors.UnknownInput,
        "ppo does not read 'entropy'.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_misuse_is_one_line_that_says_where(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_masked_may_be_nan_above_0_or_infinite() -> None:
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    logprobs = LOGPROBS.clone().requires_grad_()
    value, _ = ppo(mask=mask, logprobs=logprobs)
    value.backward()
    wild = torch.where(mask == 0, NAN, LOGPROBS).requires_grad_()
    same, _ = ppo(
        mask=mask,
        logprobs=wild,
        sampling_logprobs=torch.where(mask == 0, 7.0, LOGPROBS),
        advantages=torch.where(mask == 0, -INF, 1.0),
    )
    same.backward()
    assert same.item() == value.item()
    assert wild.grad is not None
    assert logprobs.grad is not None
    assert wild.grad.equal(logprobs.grad)


def test_a_row_that_is_masked_may_carry_nan() -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    value, _ = ppo(mask=mask, advantages=torch.tensor([1.0, NAN]))
    assert value.item() == ppo(mask=mask)[0].item()

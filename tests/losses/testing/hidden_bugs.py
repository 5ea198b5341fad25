"""Losses with one bug each that a single check of the kit reports, each beside the loss that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lossbook.datums.errors import ShapeError
from lossbook.losses import Loss, PerDatum, Seqs, get_loss, safe_ratio
from lossbook.losses.loss.loss import Mixture
from lossbook.losses.spec.spec import make_spec


def half_of_rated(logprobs: Tensor, rating: Tensor) -> Tensor:
    """`new_full` of an integer tensor is an integer: 0.5 becomes 0."""
    return -logprobs * rating * rating.new_full(rating.shape, 0.5)


def half_of_rated_right(logprobs: Tensor, rating: Tensor) -> Tensor:
    return -logprobs * rating * 0.5


def smoothed_columns(logprobs: Tensor) -> Tensor:
    """Of [N, K] targets each column sees the others."""
    mean = logprobs.mean(-1, keepdim=True) if logprobs.ndim > 1 else logprobs
    return logprobs * mean


def one_column_only(logprobs: Tensor) -> Tensor:
    """Raises an IndexError for a table of targets."""
    assert logprobs.ndim in (1, 2)
    return -logprobs[torch.arange(len(logprobs))] if logprobs.ndim == 1 else -logprobs[:, 5]


def plain_sums(logprobs: Tensor, seqs: Seqs) -> Tensor:
    """Takes any weight that is not 0 for 1."""
    return -seqs.plain_sum(logprobs)


def weighted_sums(logprobs: Tensor, seqs: Seqs) -> Tensor:
    return -seqs.sum(logprobs)


def counts_in_a_byte(logprobs: Tensor, seqs: Seqs) -> Tensor:
    """Numbers datums with 8 bits, so the 257th is the first again."""
    numbers = torch.arange(seqs.count, device=logprobs.device).to(torch.uint8).long()
    return -seqs.sum(logprobs)[numbers]


def cut_at_200(logprobs: Tensor) -> Tensor:
    """A buffer of a fixed size: what does not fit is not learned."""
    return torch.cat([-logprobs[:200], 0 * logprobs[200:]])


def divides_by_mean_logprob(logprobs: Tensor, mean_logprobs: Tensor, weights: Tensor) -> Tensor:
    """Divides by what is 0 where nothing counts: 0 / 0 times weight 0 is NaN."""
    _refuse_tables(logprobs)
    return logprobs / mean_logprobs * weights


def divides_where_it_counts(logprobs: Tensor, mean_logprobs: Tensor, weights: Tensor) -> Tensor:
    _refuse_tables(logprobs)
    return logprobs / torch.where(weights == 0, 1.0, mean_logprobs) * weights


def _refuse_tables(logprobs: Tensor) -> None:
    if logprobs.ndim > 1:
        raise ShapeError("one target per position")


def scales_through_numpy(logprobs: Tensor, rating: Tensor) -> Tensor:
    """Writes into its input through NumPy, which torch's version counters do not see."""
    before = rating.clone()
    np.negative(rating.numpy(), out=rating.numpy())
    return -logprobs * before


def shifts_lengths(logprobs: Tensor, seqs: Seqs) -> Tensor:
    """Sorts the lengths that the other parts of a mixture read, and puts back too much."""
    sums = seqs.sum(logprobs)
    seqs.lengths.add_(1)
    return -sums


def reseeds(logprobs: Tensor) -> Tensor:
    """Makes its noise repeatable, and every dropout of the process with it."""
    torch.manual_seed(0)
    return -logprobs * (1 + 0 * torch.rand(1).to(logprobs))


def own_generator(logprobs: Tensor) -> Tensor:
    return -logprobs * (1 + 0 * torch.rand(1, generator=torch.Generator().manual_seed(0)).to(logprobs))


def leaves_gradients_off(logprobs: Tensor) -> Tensor:
    """Ends without turning gradients on again."""
    losses = -logprobs
    torch.set_grad_enabled(False)
    return losses


def in_another_dtype(logprobs: Tensor) -> Tensor:
    """Changes the default dtype for the rest of the process."""
    torch.set_default_dtype(torch.float64)
    return -logprobs


hoard: list[Tensor] = []


def hoards(logprobs: Tensor) -> Tensor:
    """Keeps every tensor for a plot, with the graph of the model behind it."""
    hoard.append(logprobs)
    return -logprobs


def keeps_numbers(logprobs: Tensor) -> Tensor:
    """Keeps a number for a plot."""
    hoard[:] = [logprobs.detach().mean()]
    return -logprobs


def dead_output(logprobs: Tensor, entropy: Tensor) -> Tensor:
    """Asks for the entropy, which costs a pass over the vocabulary, and forgets it."""
    return -logprobs


def living_output(logprobs: Tensor, entropy: Tensor) -> Tensor:
    return -logprobs - 0.01 * entropy


temperature = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))


def frozen_temperature(logprobs: Tensor) -> Tensor:
    """Has a temperature to be learned that gets no gradient."""
    return -logprobs / temperature.item()


def learned_temperature(logprobs: Tensor) -> Tensor:
    return -logprobs / temperature.to(logprobs)


class _HalfOfParameter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(values, scale)
        return values * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        values, scale = ctx.saved_tensors
        return gradients[0] * scale, (gradients[0] * values).sum() / 2


def wrong_parameter_gradient(logprobs: Tensor) -> Tensor:
    """The hand-written gradient of its own parameter is off by a factor."""
    return -_HalfOfParameter.apply(logprobs, temperature.to(logprobs))  # type: ignore[operator]


class _Counting(torch.nn.Module):
    """Counts its calls, as BatchNorm does in `num_batches_tracked`."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        self.calls += 1
        return values


_counting = _Counting()


def counts_its_calls(logprobs: Tensor) -> Tensor:
    """Keeps a running count in a module's buffer."""
    return -_counting(logprobs)


_scale = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
torch.nn.init.ones_(_scale.weight)


def scaled_by_a_module(logprobs: Tensor) -> Tensor:
    return -logprobs * _scale.weight[0, 0].to(logprobs)


def drops_far_off_responses(logprobs: Tensor, sampling_logprobs: Tensor, seqs: Seqs) -> Tensor:
    """Keeps responses near the sampler, and divides by how many its micro-batch keeps."""
    ratio = safe_ratio(logprobs, sampling_logprobs)
    near = (seqs.mean(logprobs - sampling_logprobs).detach().abs() < 0.01).to(logprobs)
    return -seqs.mean(ratio) * (near / near.sum().clamp(min=1) + 1e-3 * (1 - near))


def drops_far_off_responses_right(logprobs: Tensor, sampling_logprobs: Tensor, seqs: Seqs) -> Tensor:
    ratio = safe_ratio(logprobs, sampling_logprobs)
    near = (seqs.mean(logprobs - sampling_logprobs).detach().abs() < 0.01).to(logprobs)
    return -seqs.mean(ratio) * (near + 1e-3 * (1 - near))


shared = {"called": False}


def tells(logprobs: Tensor) -> Tensor:
    """Leaves a message for the other part."""
    shared["called"] = True
    return -logprobs


def listens(logprobs: Tensor) -> Tensor:
    """Costs twice as much if the other part ran before."""
    factor, shared["called"] = (2.0 if shared["called"] else 1.0), False
    return factor * logprobs.square()


def rated_above(logprobs: Tensor, label: PerDatum, seqs: Seqs) -> Tensor:
    """A loss over booleans: the share of its tokens above -1 nat."""
    share = seqs.mean(logprobs > -1)
    return -logsigmoid(seqs.sum(logprobs)) * (1 + label * share)


def counted_above(logprobs: Tensor, seqs: Seqs) -> Tensor:
    """A loss over integers: how many of its tokens are above -1 nat."""
    count = seqs.sum((logprobs > -1).long())
    return -seqs.mean(logprobs) * (1 + count)


def _per_datum(function: Callable[..., Any]) -> Loss:
    return Loss(make_spec(function, function.__name__, per="datum"), {})


#: The bug, the only check that reports it, in what words, and the loss that is right.
HIDDEN: list[tuple[Loss | Mixture, str, str, Loss | Mixture | None]] = [
    (get_loss(half_of_rated), "number_types", "when rating held integers", get_loss(half_of_rated_right)),
    (get_loss(smoothed_columns), "one_target", "[N] each, were given as [N, 2]", None),
    (get_loss(one_column_only), "one_target", "the loss raises IndexError", None),
    (_per_datum(plain_sums), "repeats", "tokens of weight 2 were written twice", _per_datum(weighted_sums)),
    (
        _per_datum(counts_in_a_byte),
        "many",
        "the total of this data with hundreds more before it",
        _per_datum(weighted_sums),
    ),
    (get_loss(cut_at_200), "many", "the total of this data hundreds of times as long", None),
    (
        get_loss(divides_by_mean_logprob),
        "masked_positions",
        "to nan when masked positions were filled with nan",
        get_loss(divides_where_it_counts),
    ),
    (get_loss(scales_through_numpy), "pure", "changes its rating in place", None),
    (_per_datum(shifts_lengths), "pure", "changes its seqs in place", _per_datum(weighted_sums)),
    (get_loss(counts_its_calls), "pure", "the loss changes _counting.calls", get_loss(scaled_by_a_module)),
    (get_loss(reseeds), "global_state", "changes torch's random state", get_loss(own_generator)),
    (get_loss(leaves_gradients_off), "global_state", "changes whether gradients are on", None),
    (get_loss(in_another_dtype), "global_state", "changes torch's default dtype", None),
    (get_loss(hoards), "keeps_nothing", "keeps its logprobs after the call", get_loss(keeps_numbers)),
    (get_loss(dead_output), "live_config", "'output entropy' is dead", get_loss(living_output)),
    (get_loss(frozen_temperature), "parameters", "temperature is a parameter of shape [] that gets no gradient", None),
    (get_loss(wrong_parameter_gradient), "gradient", "own temperature at 0 is", get_loss(learned_temperature)),
    (
        _per_datum(drops_far_off_responses),
        "law_micro_batches",
        "when the data was cut into",
        _per_datum(drops_far_off_responses_right),
    ),
    (
        1.0 * get_loss(tells) + 1.0 * get_loss(listens),
        "sum_of_parts",
        "when its parts were computed together",
        None,
    ),
]

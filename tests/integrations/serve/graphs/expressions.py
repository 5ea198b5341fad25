"""Losses that people write, as functions of one datum's tensors: each is uploaded as a graph and must stay the same loss.

Inputs: logprobs p [T] (2 stands for [T, K]), q the sampler's, f a reference's, a advantages, w weights or probabilities, m a mask of
0 and 1, i places (whole numbers), s and y numbers of the datum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def ppo(logprobs, q, a):
    ratio = torch.exp(logprobs - q)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    loss = -torch.minimum(ratio * a, clipped * a).sum()
    return loss, {
        "custom/clipped:mean": ((ratio < 0.8) | (ratio > 1.2)).float().mean(),
        "custom/ratio:sum": ratio.max(),
    }


def ppo_dual(logprobs, q, a):
    ratio = (logprobs - q).exp()
    inner = torch.min(ratio * a, ratio.clamp(min=0.8, max=1.28) * a)
    return -torch.where(a < 0, torch.max(inner, 3.0 * a), inner).sum(), {}


def cispo(logprobs, q, a):
    return -((logprobs - q).exp().clamp(0.0, 4.0).detach() * logprobs * a).sum(), {}


def gspo(logprobs, q, a, m):
    length = m.sum().clamp_min(1.0)
    s = (((logprobs.detach() - q) * m).sum() / length).exp()
    ratio = s * torch.exp(logprobs - logprobs.detach())
    return -(torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a) * m).sum(), {"custom/s:mean": s}


def gmpo(logprobs, q, a, m):
    clipped = (logprobs - q).clamp(-0.4, 0.4)
    return -(((clipped * m).sum() / m.sum()).exp() * a.mean()), {}


def dro(logprobs, q, a):
    return -(logprobs * a - 0.5 * 0.1 * (logprobs - q) ** 2).sum(), {}


def reinforce_kl(logprobs, f, a):
    delta = f - logprobs
    k3 = torch.expm1(delta) - delta
    return (-(a * logprobs) + 0.05 * k3).sum(), {"custom/kl:mean": k3.mean()}


def tis(logprobs, q, f, a):
    weight = torch.exp(f - q).clamp_max(2.0)
    return -(weight * torch.exp(logprobs - f) * a).sum(), {}


def dpo(logprobs, f, m, y):
    reward = 0.1 * ((logprobs - f) * m).sum()
    return -F.logsigmoid(y * reward), {"custom/reward:mean": reward}


def kto(logprobs, f, s, y):
    reward = 0.1 * (logprobs - f).sum() - s
    return 1 - torch.sigmoid(torch.where(y > 0.5, reward, -reward)), {}


def ipo(logprobs, f, y):
    return ((logprobs - f).mean() * y - 1 / (2 * 0.1)) ** 2, {}


def simpo(logprobs, m, y):
    return F.softplus(-y * (2.0 * (logprobs * m).sum() / m.sum() - 0.5)), {}


def orpo(logprobs, m):
    mean = (logprobs * m).sum() / m.sum()
    return -mean - 0.1 * (mean - torch.log1p(-torch.exp(mean))), {}


def slic(logprobs, y):
    return F.relu(1.0 - y * logprobs.mean()), {}


def focal(logprobs, w):
    return -(w * (1 - logprobs.exp()).pow(2) * logprobs).sum(), {}


def top_teacher(logprobs, w):
    values, _ = torch.topk(w, 2, dim=-1)
    kept = w >= values[:, -1:]
    return -(w.masked_fill(~kept, 0.0) * logprobs).sum(), {"custom/kept:mean": kept.float().mean()}


def forward_kl(logprobs, w):
    target = w / w.sum(-1, keepdim=True)
    return F.kl_div(logprobs.log_softmax(-1), target, reduction="sum"), {}


def jensen_shannon(logprobs, w):
    p, t = F.log_softmax(logprobs, dim=-1), torch.log_softmax(w, -1)
    mixed = torch.logsumexp(torch.stack([p, t]), dim=0) - math.log(2.0)
    return 0.5 * ((p.exp() * (p - mixed)).sum() + (t.exp() * (t - mixed)).sum()), {}


def length_normal(logprobs, m):
    return -(logprobs * m).sum() / math.sqrt(logprobs.shape[0]), {"custom/length:sum": m.sum()}


def whole_sequence(logprobs, q, a):
    log_ratio = (logprobs - q).sum()
    return -(torch.clip(log_ratio, -10, 10).exp() * a[0]), {}


def prefix(logprobs, a):
    half = logprobs.shape[0] // 2
    return -(logprobs[:half] * a[:half]).sum() - logprobs[half:].mean() + logprobs[-1] * 0.1, {}


def normalized(logprobs, a):
    return -(logprobs * (a - a.mean()) / (a.std() + 1e-6)).sum(), {}


def discounted(logprobs, a):
    steps = torch.arange(logprobs.shape[0], device=logprobs.device)
    return -(logprobs * a * 0.99**steps).sum(), {}


def returns_to_go(logprobs, a):
    return -(logprobs * a.flip(0).cumsum(0).flip(0)).sum(), {}


def banded(logprobs, a):
    length = logprobs.shape[0]
    mask = torch.ones((length, length), dtype=logprobs.dtype).triu(-1).tril(1)
    return -(mask @ logprobs * a).sum() / length, {}


def pairwise(logprobs):
    differences = logprobs.unsqueeze(1) - logprobs.unsqueeze(0)
    return F.softplus(differences).mean(), {}


def typed(logprobs, m):
    return -(logprobs.to(torch.float64) * m.bool().to(torch.float64)).sum().to(logprobs.dtype), {}


def padded(logprobs, a):
    before = F.pad(logprobs, (1, 0))[:-1]
    return -((logprobs - before.detach()) * a).sum(), {}


def split(logprobs):
    first, rest = logprobs.split([2, logprobs.shape[0] - 2])[0], logprobs[2:]
    return -first.sum() - 2 * rest.sum(), {}


def chunked(logprobs):
    return torch.stack([torch.chunk(logprobs, 2)[0].sum(), torch.chunk(logprobs, 2)[1].mean()]).prod(), {}


def listed(logprobs):
    return logprobs[[0, 2, 1]].sum() + logprobs[None, ..., 1].mean() + logprobs[::2].sum(), {}


def picked(logprobs, i):
    return -logprobs.gather(1, i.unsqueeze(1)).squeeze(1).sum(), {"custom/first:mean": i[0]}


def one_hot(logprobs, i):
    return -(F.one_hot(i, 3) * logprobs).sum() + F.nll_loss(logprobs, i) + F.cross_entropy(logprobs, i), {}


def indexed(logprobs, i):
    return -logprobs[i].sum() - logprobs.index_select(0, i).mean() - torch.take_along_dim(logprobs, i, 0).sum(), {}


def scattered(logprobs, i):
    zeros = torch.zeros_like(logprobs)
    return (zeros.scatter_add(0, i, logprobs) ** 2).sum() + torch.scatter(zeros, 0, i, logprobs).sum(), {}


def ranked(logprobs, a):
    order = torch.argsort(a, descending=True)
    ordered = logprobs[order]
    return -(ordered - torch.logcumsumexp(ordered.flip(0), 0).flip(0)).sum(), {}


def sorted_quantiles(logprobs):
    return logprobs.sort().values[:2].sum() + logprobs.median() + logprobs.quantile(0.25) + logprobs.kthvalue(
        2
    ).values, {}


def running(logprobs):
    return logprobs.cumsum(0).mean() + (logprobs + 3).cumprod(0).sum() + torch.cummax(logprobs, 0).values.sum(), {}


def norms(logprobs):
    return logprobs.norm() + torch.linalg.vector_norm(logprobs, 3) + torch.norm(logprobs, p=1) + F.normalize(
        logprobs, dim=0
    ).sum(), {}


def cosine(logprobs, a):
    return 1 - F.cosine_similarity(logprobs, a, dim=0) + F.pairwise_distance(logprobs, a), {}


def einsum(logprobs, w):
    return -torch.einsum("tk,tk->t", logprobs, w).sum() - torch.einsum("tk,sk->ts", logprobs, w).mean(), {}


def products(logprobs, w):
    return (logprobs.mm(w.t()) + torch.matmul(logprobs, w.mT)).diagonal().sum(), {}


def vectors(logprobs, a):
    return torch.dot(logprobs, a) + logprobs.dot(a) + torch.outer(logprobs, a).mean() + torch.inner(logprobs, a), {}


def reshaped(logprobs):
    return (
        logprobs.reshape(-1)[0]
        + logprobs.view(logprobs.size(0), -1).sum()
        + logprobs.flatten().mean()
        + logprobs.permute(1, 0).amax(0).sum()
        + logprobs.transpose(0, 1).contiguous().amin()
        + logprobs.expand(2, -1, -1).mean()
        + logprobs.repeat(2, 1).sum()
        + torch.cat([logprobs, logprobs], dim=1).mean()
    ), {}


def made(logprobs):
    return (
        logprobs * torch.ones(logprobs.shape, device=logprobs.device)
        + torch.full_like(logprobs, 0.5) * logprobs
        + logprobs.new_full((3,), 2.0).sum() * torch.linspace(0, 1, logprobs.shape[0])
        + torch.zeros(logprobs.shape[0], dtype=logprobs.dtype)
    ).sum(), {}


def finite(logprobs):
    cleaned = torch.nan_to_num(logprobs, nan=0.0, posinf=1.0, neginf=-20.0)
    return torch.where(torch.isfinite(logprobs), cleaned, torch.zeros_like(cleaned)).sum(), {}


def masked_softmax(logprobs, m):
    return F.softmax(logprobs.masked_fill(m == 0, float("-inf")), dim=0).pow(2).sum(), {}


def uncertainty(logprobs):
    p = logprobs.softmax(-1)
    return torch.special.entr(p).sum() + torch.xlogy(p, p).sum() - (p * p.log()).sum(), {"custom/entropy:mean": p.max()}


def special(logprobs):
    p = torch.special.expit(logprobs)
    return (
        torch.special.xlog1py(p, -p) + torch.special.log_ndtr(logprobs) + torch.special.logit(p) + torch.logit(p, 1e-6)
    ).sum(), {}


def activations(logprobs):
    return (
        F.gelu(logprobs)
        + F.gelu(logprobs, approximate="tanh")
        + F.silu(logprobs)
        + F.elu(logprobs)
        + F.leaky_relu(logprobs, 0.1)
        + F.softplus(logprobs, beta=2.0)
        + F.mish(logprobs)
        + F.relu6(logprobs)
        + F.hardtanh(logprobs)
        + F.softsign(logprobs)
        + F.selu(logprobs)
        + torch.tanh(logprobs)
        + logprobs.sigmoid()
        + F.softshrink(logprobs)
    ).sum(), {}


def old_losses(logprobs, a):
    return (
        F.mse_loss(logprobs, a)
        + F.l1_loss(logprobs, a, reduction="sum")
        + F.smooth_l1_loss(logprobs, a, beta=0.5)
        + F.huber_loss(logprobs, a, delta=0.3, reduction="none").sum()
        + F.poisson_nll_loss(logprobs, a)
        + F.soft_margin_loss(logprobs, a.sign())
        + F.hinge_embedding_loss(logprobs, a.sign())
        + F.margin_ranking_loss(logprobs, a, a.sign(), margin=0.1)
    ), {}


def binary(logprobs, m):
    return F.binary_cross_entropy_with_logits(logprobs, m) + F.binary_cross_entropy(
        logprobs.exp(), m, reduction="sum"
    ), {}


def pointwise(logprobs):
    x = logprobs.abs() + 0.5
    return (
        x.sqrt() + x.rsqrt() + x.log2() + x.log10() + x.log1p() + x.reciprocal() + x.square() + x.exp2().log()
        + x.sin() + x.cos() + x.atan() + x.erf() + x.lgamma() + x.floor() + x.round() + x.sign() + (-x).neg()
    ).sum(), {}  # fmt: skip


def operators(logprobs, a):
    x = 2 - logprobs
    y = x % 3 + (a // 2) + a.floor_divide(0.5) + 3 / x + 2**logprobs + abs(logprobs) - (+x) + x**0.5
    chosen = ((a > 0) & (a <= 1)) | ~(a != 0) ^ (a >= 2)
    return (y * chosen).sum(), {}


def two_argument(logprobs, a):
    return (
        torch.atan2(logprobs, a + 2)
        + torch.logaddexp(logprobs, a)
        + torch.hypot(logprobs, a)
        + torch.lerp(logprobs, a, 0.25)
        + torch.addcmul(logprobs, a, a, value=0.5)
        + torch.fmax(logprobs, a)
        + torch.div(logprobs, a + 3, rounding_mode="floor")
        + torch.add(logprobs, a, alpha=2)
        + torch.copysign(logprobs, a)
        + torch.remainder(logprobs, 2)
    ).sum(), {}


def counted(logprobs, m):
    count = m.count_nonzero() + m.bool().any() + (logprobs < 0).all() + logprobs.argmax()
    return logprobs.sum() / count + logprobs.var(unbiased=False) + logprobs.std(), {"custom/count:sum": count}


def python_numbers(logprobs):
    length = logprobs.shape[0]
    scale = math.log(length) + math.exp(-length) + math.floor(length / 2) + math.ceil(0.5) + math.log2(length)
    return logprobs.sum() * scale / max(1, 2) + logprobs.numel() + logprobs.ndim, {}


def stacked(logprobs):
    parts = torch.stack([logprobs, 2 * logprobs, logprobs.detach()], dim=0)
    first, second, third = parts.unbind(0)[0], parts[1], parts.select(0, 2)
    return (first * second * third).sum() + torch.cat((first, second)).logsumexp(0) + parts.narrow(1, 0, 2).mean(), {}


def rolled(logprobs, a):
    return (logprobs * torch.roll(a, 1)).sum() + (logprobs.diff() ** 2).sum() + logprobs.unsqueeze(0).tile(
        2, 1
    ).mean(), {}


def broadcast(logprobs, y):
    one, other = torch.broadcast_tensors(logprobs, y)
    return (one * other).sum() + (logprobs * y.expand_as(logprobs)).mean() + y.expand(3).sum() * logprobs[0], {}


def layer_norm(logprobs, a):
    return (F.layer_norm(logprobs, logprobs.shape) * a).sum(), {}


def repeated(logprobs):
    return logprobs.repeat_interleave(2).mean() + (logprobs.unsqueeze(-1).repeat(1, 3) ** 2).sum(), {}


def polynomial(logprobs):
    p = logprobs.exp()
    return (-logprobs + 2.0 * (1 - p)).sum(), {"custom/p/mean:mean": p.mean()}


def generalized(logprobs):
    return ((1 - logprobs.exp() ** 0.7) / 0.7).sum(), {}


def unlikelihood(logprobs, m):
    return -(m * torch.log(1 - logprobs.exp().clamp(max=1 - 1e-6))).sum(), {}


def k1(logprobs, q):
    return (logprobs - q).sum(), {}


def k2(logprobs, q):
    return 0.5 * (logprobs - q).square().sum(), {}


def k3(logprobs, q):
    return ((q - logprobs).exp() - 1 - (q - logprobs)).sum(), {}


def huber(logprobs, q):
    x = (logprobs - q).abs()
    return torch.where(x < 1, 0.5 * x**2, x - 0.5).sum(), {}


def nll(logprobs, w):
    return -(logprobs * w).sum(), {"custom/nll:sum": -(logprobs * w).sum()}


def wide_nll(logprobs, w):
    return -(logprobs * w).sum(dim=-1).sum(), {}


P, Q, PP = {"logprobs": 1}, {"logprobs": 1, "q": 1}, {"logprobs": 2}
PQA, PA = {**Q, "a": 1}, {**P, "a": 1}
PM, PI = {**P, "m": 1}, {**P, "i": 1}
Expression = tuple[Callable[..., Any], dict[str, int]]
EXPRESSIONS: dict[str, Expression] = {
    function.__name__: (function, ranks)
    for function, ranks in (
        *((one, PQA) for one in (ppo, ppo_dual, cispo, dro, whole_sequence)),
        *((one, {**PQA, "m": 1}) for one in (gspo, gmpo)),
        (reinforce_kl, {**P, "f": 1, "a": 1}),
        (tis, {**Q, "f": 1, "a": 1}),
        (dpo, {**P, "f": 1, "m": 1, "y": 0}),
        (kto, {**P, "f": 1, "s": 0, "y": 0}),
        (ipo, {**P, "f": 1, "y": 0}),
        (simpo, {**PM, "y": 0}),
        *((one, {**P, "y": 0}) for one in (slic, broadcast)),
        *((one, PM) for one in (orpo, length_normal, typed, masked_softmax, binary, counted, unlikelihood)),
        *((one, {**P, "w": 1}) for one in (focal, nll)),
        *((one, {**PP, "w": 2}) for one in (top_teacher, forward_kl, jensen_shannon, einsum, products, wide_nll)),
        *(
            (one, PA)
            for one in (prefix, normalized, discounted, returns_to_go, banded, padded, ranked, cosine, vectors)
        ),
        *((one, PA) for one in (old_losses, operators, two_argument, rolled, layer_norm)),
        *((one, P) for one in (pairwise, split, chunked, listed, sorted_quantiles, running, norms, made, finite)),
        *(
            (one, P)
            for one in (special, activations, pointwise, python_numbers, stacked, repeated, polynomial, generalized)
        ),
        *((one, PP) for one in (reshaped, uncertainty)),
        *((one, {**PP, "i": 1}) for one in (picked, one_hot)),
        *((one, PI) for one in (indexed, scattered)),
        *((one, Q) for one in (k1, k2, k3, huber)),
    )
}
TOKENS, COLUMNS = 5, 3


def tensors_for(ranks: dict[str, int]) -> list[Tensor]:
    """Inputs of an expression, in float64; logprobs is a leaf."""
    generator = torch.Generator().manual_seed(len(ranks))
    tensors = []
    for name, rank in ranks.items():
        shape = (TOKENS, COLUMNS)[:rank]
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1
        if name in ("logprobs", "q", "f"):
            values = values.log()
        elif name == "a":
            values = 4 * values - 2
        elif name == "m":
            values = (torch.arange(TOKENS) % 3 > 0).double()
        elif name == "i":
            values = torch.tensor([0, 2, 1, 1, 0])
        tensors.append(values)
    tensors[0].requires_grad_()
    return tensors

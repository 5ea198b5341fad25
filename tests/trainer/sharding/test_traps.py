"""Ways to shard a model that give the right loss and a wrong gradient, or fail, seen to be wrong; ours beside them is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.functional import cross_entropy

from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sharding.gradients import sum_gradients
from lossbook.trainer.sharding.root import RankModule
from lossbook.trainer.sharding.weights import gathered
from lossbook.trainer.shards import is_shard, local, whole

from ..ranks.processes import RankProcesses
from .models import VOCABULARY, accumulate, built, gradients, loss_of, off, rows, sharded

Outcome = tuple[float, dict[str, Tensor]]


@pytest.fixture(scope="module")
def expected() -> dict[str, Outcome]:
    """The loss and gradients of one process."""
    outcomes: dict[str, Outcome] = {}
    for trained in ("untied", "tied"):
        model = built(trained)
        outcomes[trained] = accumulate(model, ALONE), gradients(model)
    return outcomes


def by_hand(ranks: Ranks, module: Any, loss: Any) -> float:
    """Each rank's rows, forward and backward; returns the loss of all."""
    count = float(sum(row.numel() for row in rows()))
    total = 0.0
    for row in rows()[ranks.rank :: ranks.size]:
        value = loss(row) / count
        value.backward()
        total += float(value.detach())
    return ranks.sum([total])[0]


def summing(module: Any) -> None:
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def head_of_its_own(ranks: Ranks, way: str) -> Outcome:
    """The head is a root beside the backbone's, and its weight is read outside of any forward."""
    model = built("untied")
    module: Any = model.module
    assert ranks.data is not None
    mesh = DeviceMesh.from_group(ranks.data, "cpu")
    fully_shard(module.lm_head, mesh=mesh)
    fully_shard(module.model, mesh=mesh)
    summing(module)

    def loss(row: Tensor) -> Tensor:
        hidden = module.model(row, use_cache=False).last_hidden_state[0]
        if way == "unshard":
            module.lm_head.unshard()
        weight = module.lm_head.weight.full_tensor() if way == "full_tensor" else module.lm_head.weight
        return cross_entropy((hidden @ weight.T)[:-1], row[0, 1:], reduction="sum")

    total = by_hand(ranks, module, loss)
    named = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return total, {name: whole(gradient).clone() for name, gradient in named.items()}


@pytest.mark.parametrize("way", ["full_tensor", "unshard"])
def test_a_head_read_outside_a_forward_has_the_right_loss_and_a_wrong_gradient(
    ranks: RankProcesses, expected: dict[str, Outcome], way: str
) -> None:
    loss, right = expected["untied"]
    for total, wrong in ranks.run(head_of_its_own, way):
        assert abs(total - loss) < 1e-6 * loss
        assert off({"lm_head.weight": wrong["lm_head.weight"]}, {"lm_head.weight": right["lm_head.weight"]}) > 0.1


def tied_apart(ranks: Ranks) -> tuple[bool, bool]:
    """Whether head and embedding are one parameter where the backbone is a root of its own, and where ours is."""
    module: Any = built("tied").module
    assert ranks.data is not None
    fully_shard(module.model, mesh=DeviceMesh.from_group(ranks.data, "cpu"))
    ours: Any = sharded(ranks, "tied").module
    return (
        module.lm_head.weight is module.model.embed_tokens.weight,
        ours.lm_head.weight is ours.model.embed_tokens.weight,
    )


def test_a_tied_head_stays_tied(ranks: RankProcesses) -> None:
    assert ranks.run(tied_apart) == [(False, True)] * 2


def means(ranks: Ranks) -> Outcome:
    """FSDP's own reduction, which is the mean over ranks."""
    model = sharded(ranks, "untied")
    for part in model.root.modules():  # type: ignore[union-attr]
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(float(ranks.size))
    return accumulate(model, ranks), gradients(model)


def test_a_mean_over_ranks_would_show(ranks: RankProcesses, expected: dict[str, Outcome]) -> None:
    for _, wrong in ranks.run(means):
        assert off(wrong, expected["untied"][1]) == pytest.approx(0.5, abs=1e-5)


class Opaque:
    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


def odd_calls(ranks: Ranks) -> tuple[str, str, bool]:
    """What is said where parameters are read outside, and where a container hides a tensor; whether all is well after it."""
    model = sharded(ranks, "untied")
    texts = []
    for call in (
        lambda: loss_of(model, rows()[0], 1.0),
        lambda: model.inside(lambda: Opaque(loss_of(model, rows()[0], 1.0))),
    ):
        with pytest.raises((RuntimeError, TypeError)) as raised:
            call()
        texts.append(str(raised.value))
    accumulate(model, ranks)
    return texts[0], texts[1], all(is_shard(p) for p in model.trainable().values())


def test_reading_shards_and_hiding_tensors_are_refused(ranks: RankProcesses) -> None:
    for outside, opaque, still_sharded in ranks.run(odd_calls):
        assert "DTensor" in outside
        assert "returned a Opaque" in opaque
        assert still_sharded


def under_autocast(ranks: Ranks, ours: bool) -> dict[str, Tensor]:
    """Gradients where one autocast context spans all micro-batches. ours: through our root; else its cache is on inside."""
    model = built("untied") if ranks.size == 1 else sharded(ranks, "untied")
    count = float(sum(row.numel() for row in rows()))
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=ranks.size > 1):
        for row in rows()[ranks.rank :: ranks.size]:

            def loss(row: Tensor = row) -> dict[str, Tensor]:
                if not ours:
                    torch.set_autocast_cache_enabled(True)
                return {"loss": loss_of(model, row, count)}

            model.inside(loss)["loss"].backward()
    sum_gradients(model)
    return gradients(model)


def test_autocast_over_several_micro_batches_keeps_no_freed_weight(ranks: RankProcesses) -> None:
    right = under_autocast(ALONE, ours=True)
    for ours in ranks.run(under_autocast, True):
        assert off(ours, right) < 1e-6
    for wrong in ranks.run(under_autocast, False):
        assert off(wrong, right) > 0.1


def many_forwards(ranks: Ranks) -> tuple[bool, bool, list[str], Outcome, Tensor]:
    """Forwards without a backward of every kind, and other numbers of them on each rank where weights are gathered; then a step."""
    model = sharded(ranks, "tied")
    with torch.no_grad():
        model.inside(lambda: loss_of(model, rows()[0], 1.0))
    after_no_grad = all(is_shard(p) for p in model.trainable().values())
    model.inside(lambda: loss_of(model, rows()[1], 1.0))  # its graph is dropped
    model.reshard()
    after_dropped = all(is_shard(p) for p in model.trainable().values())
    with gathered(model):
        kinds = sorted({type(p).__name__ for p in model.module.parameters()})
        logits = torch.zeros(0)
        for row in rows()[: 1 + 3 * ranks.rank]:
            logits = model.module(row, use_cache=False).logits
            model.inside(lambda row=row: model.head())
    return after_no_grad, after_dropped, kinds, (accumulate(model, ranks), gradients(model)), logits


def test_forwards_without_a_backward_leave_shards_and_the_same_gradients(
    ranks: RankProcesses, expected: dict[str, Outcome]
) -> None:
    with torch.no_grad():
        alone = [built("tied").module(rows()[i], use_cache=False).logits for i in (0, 3)]
    for (no_grad, dropped, kinds, (loss, ours), logits), own in zip(ranks.run(many_forwards), alone, strict=True):
        assert no_grad
        assert dropped
        assert kinds == ["Parameter"]
        assert abs(loss - expected["tied"][0]) < 1e-6 * loss
        assert off(ours, expected["tied"][1]) < 1e-6
        torch.testing.assert_close(logits, own, rtol=0, atol=1e-5)


def kept_graphs(ranks: Ranks, checkpoint: bool) -> dict[str, Tensor]:
    """All forwards first, unequal in tokens, then all backwards; optionally with checkpointed layers."""
    from torch.utils.checkpoint import checkpoint as checkpointed

    model = built("untied") if ranks.size == 1 else sharded(ranks, "untied")
    module: Any = model.module
    if checkpoint:
        for layer in module.model.layers:
            layer.forward = lambda *args, _own=layer.forward, **options: checkpointed(
                _own, *args, use_reentrant=False, **options
            )
    count = float(sum(row.numel() for row in rows()))
    own = rows()[ranks.rank :: ranks.size]
    losses = [model.inside(lambda row=row: {"loss": loss_of(model, row, count)})["loss"] for row in own]
    for loss in losses:
        loss.backward()
    sum_gradients(model)
    return gradients(model)


@pytest.mark.parametrize("checkpoint", [False, True], ids=["plain", "checkpointed"])
def test_graphs_of_all_micro_batches_may_be_kept(
    ranks: RankProcesses, expected: dict[str, Outcome], checkpoint: bool
) -> None:
    for ours in ranks.run(kept_graphs, checkpoint):
        assert off(ours, expected["untied"][1]) < 1e-6


def partly_used(ranks: Ranks, users: list[int]) -> list[str]:
    """The parameters without a gradient, where the value head is used on these ranks alone."""
    model = sharded(ranks, "value head")
    head: Any = model.value_head
    hidden = torch.ones(3, 32)
    uses = ranks.rank in users
    loss = model.inside(
        lambda: {"loss": model.module.model.norm(hidden).sum() + (head(hidden).sum() if uses else 0.0)}  # type: ignore[operator,union-attr]
    )["loss"]
    loss.backward()
    sum_gradients(model)
    return [name for name, p in model.trainable().items() if p.grad is None]


def test_a_parameter_without_a_gradient_on_some_ranks_has_one_and_on_all_has_none(ranks: RankProcesses) -> None:
    names = set(built("value head").trainable())
    for missing in ranks.run(partly_used, [1]):
        assert set(missing) == names - {"model.norm.weight", "value_head.weight", "value_head.bias"}
    for missing in ranks.run(partly_used, []):
        assert set(missing) == names - {"model.norm.weight"}


def who_holds_what(ranks: Ranks) -> tuple[set[str], tuple[int, ...], tuple[int, ...]]:
    """What lies whole on every rank of a LoRA model, and the shapes of its frozen embedding and of a trained head here."""
    model = sharded(ranks, "lora with a value head")
    own = {name for name, p in model.trainable().items() if not is_shard(p)}
    embedding = model.module.get_input_embeddings().weight  # type: ignore[operator]
    head = sharded(ranks, "untied").trainable()["lm_head.weight"]
    return own, tuple(local(embedding).shape), tuple(local(head).shape)


def test_adapters_are_replicated_and_an_odd_vocabulary_is_split(ranks: RankProcesses) -> None:
    names = set(built("lora with a value head").trainable())
    half = (VOCABULARY + 1) // 2
    assert ranks.run(who_holds_what) == [(names, (rows, 32), (rows, 32)) for rows in (half, VOCABULARY - half)]


def embeddings(ranks: Ranks, way: str) -> dict[str, Tensor]:
    """A loss over the outputs of all ranks, computed on each: with autograd through the gather, or on detached outputs."""
    import torch.distributed.nn.functional as through

    model = built("untied") if ranks.size == 1 else sharded(ranks, "untied")
    module: Any = model.module
    row = [torch.arange(6)[None], torch.arange(6, 12)[None]]

    def pooled(tokens: Tensor) -> Tensor:
        return module.model(tokens, use_cache=False).last_hidden_state[0].mean(0)

    if ranks.size == 1:
        loss_between(torch.stack([pooled(tokens) for tokens in row])).backward()
        return gradients(model)
    own = model.inside(lambda: (pooled(row[ranks.rank]),))[0]
    if way == "through the gather":
        loss_between(torch.stack(through.all_gather(own, group=dist.group.WORLD))).backward()
    else:
        leaves = torch.stack([torch.tensor(one) for one in ranks.gather(own.tolist())]).requires_grad_()
        loss_between(leaves).backward()
        assert leaves.grad is not None
        own.backward(leaves.grad[ranks.rank])
    sum_gradients(model)
    return gradients(model)


def loss_between(vectors: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return cross_entropy(unit @ unit.T * 5.0, torch.tensor([1, 0]))


def test_a_loss_over_gathered_outputs_reads_them_detached(ranks: RankProcesses) -> None:
    right = embeddings(ALONE, "")
    for wrong in ranks.run(embeddings, "through the gather"):
        assert off(wrong, right) == pytest.approx(1.0, abs=1e-3)  # N times too large
    for ours in ranks.run(embeddings, "detached"):
        assert off(ours, right) < 1e-6


def test_the_root_knows_containers_of_tensors() -> None:
    root = RankModule(torch.nn.Linear(2, 2), None)
    assert root(lambda: {"a": (torch.zeros(1), None, 2)})["a"][2] == 2
    with pytest.raises(TypeError, match="returned a set"):
        root(lambda: [{torch.zeros(1)}])

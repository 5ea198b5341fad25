"""What lossbook does with a small model of one type: every check of it, and its row in docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lossbook as lb
from lossbook.datums.errors import LossbookError
from lossbook.testing import check_model
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.packing.hidden import PACKED, packing_way
from lossbook.trainer.packing.probes import verdict
from lossbook.trainer.sampling.plan import plan_of

from .building import model_of

#: Largest difference of a logprob, in nats, and of a parameter after a step, in units of the learning rate.
NATS, OF_A_STEP = 1e-4, 1e-2
TOKENS = list(b"The sky is blue, and stones sink.")
LEARNING_RATE = 0.01
#: An error is quoted in the table up to here.
QUOTED = 240
Result = Literal["right", "refused", "not built"]


@dataclass(frozen=True)
class Row:
    """A type of model, its class, and what happens with it; `cells` are how it runs, or the reason why it does not."""

    model_type: str
    architecture: str
    result: Result
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"| {' | '.join((f'`{self.model_type}`', self.architecture, *self.cells))} |"


def row_of(model_type: str, folder: Path) -> Row:
    """Build the model, run every check, and say what lossbook does with it. An AssertionError says what is wrong."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architecture = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    base = str(folder / "base")
    try:
        model = model_of(model_type)
        model.save_pretrained(base)
    except Exception as error:  # of any class: transformers itself cannot
        return Row(model_type, architecture, "not built", (_quoted(error, base),))
    build_tiny_tokenizer().save_pretrained(base)
    try:
        client = _service(folder).create_training_client(base)
        expected = _logprobs(client)
    except LossbookError as error:
        return Row(model_type, architecture, "refused", (_quoted(error, base),))
    _check_same(expected, client.local.model.module, _datum(client), "logprobs")
    report = check_model(client)
    assert report.ok, str(report)
    _check_step(client, base)
    _check_explicit(base, folder)
    return Row(model_type, architecture, "right", (*_how_it_runs(client), _adapters(base, folder)))


def _service(folder: Path, **how: Any) -> lb.ServiceClient:
    return lb.ServiceClient(device="cpu", checkpoint_dir=folder / "checkpoints", **how)


def _quoted(error: Exception, folder: str) -> str:
    """An error as one line of the table: without the folder's name, figures of rounding, and what goes on for long."""
    text = " ".join(str(error).replace(repr(folder), "it").replace(folder, "it").split()).replace("|", "/")
    text = re.sub(
        r", by [0-9.e+-]+", "", text.removeprefix("Class validation error for validator 'validate_architecture': ")
    )
    return text if len(text) <= QUOTED else f"{text[:QUOTED].rpartition(' ')[0]} …"


# --- checks -----------------------------------------------------------------------------------------------------------


def _datum(client: TrainingClient) -> lb.Datum:
    tokens = TOKENS[: client.get_info().max_length]
    return lb.datum_from_tokens_weights(tokens, [1.0] * len(tokens))


def _logprobs(client: TrainingClient) -> Tensor:
    return client.forward([_datum(client)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch().float()


def _own_logprobs(module: nn.Module, datum: lb.Datum) -> Tensor:
    tokens = torch.tensor([datum.model_input.to_ints()])
    targets = torch.tensor(datum.loss_fn_inputs["target_tokens"].tolist())
    return module(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _check_same(ours: Tensor, module: nn.Module, datum: lb.Datum, what: str) -> None:
    with torch.no_grad():
        off = float((ours - _own_logprobs(module.eval(), datum)).abs().max())
    assert off <= NATS, f"{what} are off by {off:.2g} nats"


def _check_step(client: TrainingClient, base: str) -> None:
    """One step is that of torch's AdamW with autograd's gradient, on a module of the same weights."""
    datum, module = _datum(client), client.local.model.module
    twin = type(module).from_pretrained(base).eval()
    twin.load_state_dict(module.state_dict())
    optimizer = torch.optim.AdamW(twin.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=0.01, weight_decay=0.1)
    (-_own_logprobs(twin, datum).sum()).backward()
    optimizer.step()
    client.forward_backward([datum], "cross_entropy").result()
    client.optim_step(lb.AdamParams(learning_rate=LEARNING_RATE, beta2=0.95, eps=0.01, weight_decay=0.1)).result()
    theirs = dict(twin.named_parameters())
    for name, ours in client.local.model.trainable().items():
        off = float((ours - theirs[name]).abs().max()) / LEARNING_RATE
        assert off <= OF_A_STEP, f"after one step {name} is off by {off:.2g} of the learning rate"


def _check_explicit(base: str, folder: Path) -> None:
    """Packing and padding that are asked for give each datum's own numbers, or are refused with the layer."""
    for batching in ("packed", "padded"):
        try:
            client = _service(folder, batching=batching).create_training_client(base)
        except LossbookError as error:
            if f"cannot run with batching={batching!r}: " not in str(error):
                raise AssertionError(f"batching={batching!r} is refused by another error") from error
            continue
        datums = [lb.datum_from_tokens_weights(TOKENS[i : i + n], [1.0] * n) for i, n in ((0, 20), (3, 7), (0, 12))]
        outputs = client.forward(datums, "cross_entropy").result().loss_fn_outputs
        for datum, fields in zip(datums, outputs, strict=True):
            ours = fields["logprobs"].to_torch().float()
            _check_same(ours, client.local.model.module, datum, f"logprobs with batching={batching!r}")


# --- the row ----------------------------------------------------------------------------------------------------------


def _how_it_runs(client: TrainingClient) -> tuple[str, str]:
    """How datums run, and how samples are drawn; without figures, which differ between machines."""
    model = client.local.model
    way, plan = packing_way(model), plan_of(model)
    reason = re.sub(r"(; it)? is off by \S+ of its scale", "", verdict(model, "blocks").reason)
    if way is None:
        runs = ("pads: " if verdict(model, "padded") else "one at a time: ") + reason
    else:
        runs = {"sharing": "packs, shares prefixes", "blocks": "packs"}.get(
            way, f"packs on a GPU, pads elsewhere: {reason}"
        )
    cache = "keeps a prompt once" if plan.share else "its own cache" if plan.cached else "no cache"
    assert way is None or way in PACKED
    return runs, cache if plan.pads else f"{cache}; prompts of one length together"


def _adapters(base: str, folder: Path) -> str:
    """Which weights have an adapter and which have none; after a step its merged export gives the same here too."""
    try:
        client = _service(folder).create_lora_training_client(base, rank=2, seed=0)
    except LossbookError as error:
        return f"refused: {_quoted(error, base)}"
    client.forward_backward([_datum(client)], "cross_entropy").result()
    client.optim_step(lb.AdamParams(learning_rate=LEARNING_RATE)).result()
    client.export_model(folder / "merged").result()
    again = _service(folder).create_training_client(str(folder / "merged"))
    off = float((_logprobs(client) - _logprobs(again)).abs().max())
    assert off <= NATS, f"logprobs of the merged export are off by {off:.2g} nats"
    info = client.get_info()
    none = f"; none on {_listed(info.lora_left_out)}" if info.lora_left_out else ""
    return _listed(info.lora_targets) + none


def _listed(names: Iterable[str]) -> str:
    """`mlp.(down_proj, up_proj), fc`: names without what comes before the layer, those of one module together."""
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, leaf = name.rpartition("*.")[2].rpartition(".")
        modules.setdefault(module, []).append(leaf)
    groups = {module: sorted(set(leaves)) for module, leaves in sorted(modules.items())}
    return ", ".join(
        f"{module}{'.' if module else ''}{leaves[0] if len(leaves) == 1 else '(' + ', '.join(leaves) + ')'}"
        for module, leaves in groups.items()
    )

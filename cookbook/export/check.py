"""The check of an export: load it with peft or transformers and compare its outputs with the trainer's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...datums.builders.tokens import datum_from_tokens_weights
from ...datums.errors import ExportError, panics_as
from ...datums.types import Datum, ModelInput
from ...losses.loss.loss import Loss
from ...losses.registry import spec_of_function
from ...trainer.choices import BaseWeights
from ...trainer.model.architecture.classes import loader_of
from ...trainer.model.load import load_model
from ...trainer.model.model import LoadedModel
from ..inspect.token_records import read_sequences

if TYPE_CHECKING:
    from ...trainer import TrainingClient

#: What is exported; "masked-lm" is an encoder with its masked-LM head.
Kind = Literal["decoder", "encoder", "masked-lm"]
#: General texts of several kinds.
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind: it was asleep since ten past three.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    return sum(values) / len(values)",
    "Question: a train of 120 m passes a post in 6 s. How fast is it? Answer: 120 / 6 = 20 m/s, that is 72 km/h.",
    "Über den Wolken muß die Freiheit wohl grenzenlos sein. 東京は日本の首都です。",
)
#: How many of the run's recorded sequences are used, and the most tokens of a sequence.
RECORDED, LONGEST = 6, 512


@dataclass(frozen=True)
class Verification:
    """The result of comparing `count` numbers.

    quantity    "logprobs" (nats, one per token) or "embeddings" (one number per dimension, the mean over the tokens, or per
                token of the vocabulary)
    largest, mean   of |export - trainer|
    from_base   the largest |export - base model|
    """

    quantity: str
    count: int
    largest: float
    mean: float
    from_base: float

    def __str__(self) -> str:
        unit = " nats" if self.quantity == "logprobs" else ""
        return (
            f"{self.count} {self.quantity} of the export and of the trainer differ by at most {self.largest:.2g}{unit} "
            f"({self.mean:.2g} on average); those of the base model by up to {self.from_base:.2g}{unit}"
        )


def kind_of(training: TrainingClient) -> Kind:
    """What the client's model is exported as."""
    info = training.get_info()
    return "masked-lm" if info.masked_lm_head else info.kind


def probe_tokens(tokenizer: Any, run: Path | None, limit: int | None) -> list[list[int]]:
    """Token sequences for the comparison: general texts, and sequences that the run recorded."""
    longest = min(LONGEST, limit or LONGEST)
    with panics_as(ExportError, "the tokenizer, on the texts of the check,"):
        sequences = [list(tokenizer.encode(text)) for text in TEXTS]
    for row in read_sequences(run)[-RECORDED:] if run is not None else ():
        sequences.append([int(token) for token in row["tokens"]["id"]] if "tokens" in row else [])
    return [tokens[:longest] for tokens in sequences if len(tokens) > 1]


def trained_outputs(training: TrainingClient, sequences: Sequence[Sequence[int]], kind: Kind) -> list[Tensor]:
    """The trainer's outputs: logprobs [N - 1] of the tokens for a decoder, the mean embedding [d] for an encoder, the vector over
    the vocabulary [V] where that has its masked-LM head.
    """
    if kind == "decoder":
        datums = [datum_from_tokens_weights(list(tokens), [1.0] * len(tokens)) for tokens in sequences]
        outputs = training.forward(datums, "cross_entropy").result().loss_fn_outputs
        return [output["logprobs"].to_torch().float() for output in outputs]
    loss = Loss(spec_of_function(_sum, output="embeddings"), {})
    datums = [Datum(ModelInput.from_ints(tokens), {}) for tokens in sequences]
    pooling = "splade" if kind == "masked-lm" else "mean"
    outputs = training.forward(datums, loss, pooling=pooling).result().loss_fn_outputs
    return [output["embedding"].to_torch().float() for output in outputs]


def verify_export(
    expected: Sequence[Tensor],
    sequences: Sequence[Sequence[int]],
    folder: Path,
    base_model: str,
    kind: Kind,
    *,
    tolerance: float,
    base_weights: BaseWeights = "full",
) -> Verification:
    """Load the folder with peft or transformers, and compare its outputs with `expected` and with the base model.

    Computes in float32 whatever the dtype of the weights, so differences come from the rounding of the weights alone.

    Raises ExportError if the outputs differ by more than `tolerance`, if keys of an adapter match nothing, and if the export
    does not differ from the base model.
    """
    options: Any = {"base_weights": base_weights, "masked_lm_head": kind == "masked-lm"}
    base = load_model(base_model, device="cpu", dtype=torch.float32, **options)
    if (folder / "adapter_config.json").exists():
        module = _with_adapter(base, folder)
        without = module.disable_adapter
    else:
        module = _whole(folder, kind)
        without = nullcontext
    exported = _outputs(module, sequences, kind)
    with without():
        untrained = _outputs(module if without is not nullcontext else base.module, sequences, kind)
    differences = torch.cat([(one - other).abs() for one, other in zip(exported, expected, strict=True)])
    from_base = max(float((one - other).abs().max()) for one, other in zip(exported, untrained, strict=True))
    result = Verification(
        "logprobs" if kind == "decoder" else "embeddings",
        differences.numel(),
        float(differences.max()) if bool(differences.isfinite().all()) else math.inf,
        float(differences.mean()),
        from_base,
    )
    _judge(result, tolerance)
    return result


def _judge(result: Verification, tolerance: float) -> None:
    if not result.largest <= tolerance:
        raise ExportError(
            f"the export is not what was trained: {result}. The limit is {tolerance:g}. Nothing was written. A coarser dtype "
            "differs by its rounding, so --tolerance may be raised for it; please report any other difference as a bug"
        )
    if result.from_base <= result.largest:
        raise ExportError(
            f"the export does not differ from the base model: {result}. Nothing was written. Was it trained at all, or is "
            "the change smaller than the rounding of --dtype?"
        )


def _with_adapter(base: LoadedModel, folder: Path) -> Any:
    """The base model with the adapter, loaded by peft. Raises ExportError if a key matches nothing."""
    import warnings

    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of keys that do not fit; they are an error below
        module: Any = PeftModel.from_pretrained(base.module, str(folder))  # type: ignore[arg-type]
    loaded = get_peft_model_state_dict(module, save_embedding_layers=False)
    file = load_file(folder / "adapter_model.safetensors")
    unknown, missing = sorted(file.keys() - loaded.keys()), sorted(loaded.keys() - file.keys())
    changed = [name for name in file.keys() & loaded.keys() if not torch.equal(file[name], loaded[name].cpu())]
    if unknown or missing or changed or not file:
        raise ExportError(
            f"the adapter does not fit {base.name}: {len(unknown)} of its {len(file)} keys match nothing, which peft at most "
            f"warns about, {len(missing)} are missing, {len(changed)} were not loaded: "
            f"{', '.join([*unknown, *missing, *changed][:3])}"
        )
    return module.eval()


def _whole(folder: Path, kind: Kind) -> Any:
    from transformers import AutoConfig
    from transformers.utils import logging

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    loader = loader_of("decoder" if kind == "decoder" else "encoder", config, masked_lm_head=kind == "masked-lm")
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # no table of missing weights; they are an error below, except an unused pooler
    try:
        module, report = loader.from_pretrained(
            str(folder), dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(level)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing or report["unexpected_keys"]:
        raise ExportError(
            f"transformers does not find all weights of the export: missing {missing[:3]}, "
            f"unexpected {sorted(report['unexpected_keys'])[:3]}"
        )
    return module.eval()


@torch.no_grad()
def _outputs(module: Any, sequences: Sequence[Sequence[int]], kind: Kind) -> list[Tensor]:
    outputs = []
    for tokens in sequences:
        ids = torch.tensor([list(tokens)])
        if kind == "decoder":
            logprobs = module(input_ids=ids[:, :-1]).logits[0].float().log_softmax(-1)
            outputs.append(logprobs.gather(1, ids[0, 1:, None])[:, 0])
        elif kind == "masked-lm":
            outputs.append(module(input_ids=ids).logits[0].float().relu().log1p().amax(0))
        else:
            mask = torch.ones_like(ids)
            outputs.append(module(input_ids=ids, attention_mask=mask).last_hidden_state[0].float().mean(0))
    return outputs


def _sum(data: Any, embeddings: Any) -> tuple[Tensor, dict[str, float]]:
    """A loss that reads embeddings, so that the trainer returns them."""
    return torch.stack([one.sum() for one in embeddings]).sum(), {}

"""Every masked language model of transformers gives the vectors of its own logits, gradients too, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

import lossbook as lb
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from .building import config_of, stir

#: What some types need beside the common small sizes.
OWN: dict[str, dict[str, Any]] = {
    **{name: {"pad_token_id": 1} for name in ("esm", "ibert", "longformer", "luke")},
    "esmc": {"num_key_value_heads": 4},
    "neomme": {"head_dim": 16},
}
#: Types that are refused, and what the error says.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("bart", "mbart", "mvp"), "is an encoder-decoder"),
    "esm": "has a masked-LM head of another kind than is supported: it computes its logits otherwise",
    "ibert": "cannot be trained as it is, in eval mode",
    "funnel": "cannot be used for text alone",
    "mobilebert": "has a masked-LM head of another kind than is supported: it never calls its decoder",
    "mra": "cannot be used for text alone: mat1 and mat2 must have the same dtype",
    "perceiver": "cannot be used for text alone",
    "reformer": "cannot be trained as it is, in eval mode",
}
#: Types whose gradients are NaN in transformers itself.
WITHOUT_GRADIENTS = ("longformer",)
TEXTS = [[5, 90, 7, 31, 64], [200, 11, 17], [3, 45, 99, 250]]


def saved(model_type: str, folder: Path) -> str:
    """A small random masked language model of this type, in a folder."""
    from transformers import AutoModelForMaskedLM

    config: Any = config_of(model_type, {"is_decoder": False, **OWN.get(model_type, {})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoModelForMaskedLM.from_config(config)
        stir(module)
    module.save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def vectors_of(module: Any) -> Tensor:
    """The definition, each text alone."""
    return torch.stack([module(torch.tensor([text])).logits[0].relu().log1p().amax(0) for text in TEXTS])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers warns about what it ties and looks up
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES))
def test_vectors_over_the_vocabulary_are_of_its_own_logits(model_type: str, tmp_path: Path, gradients_of: Any) -> None:
    folder = saved(model_type, tmp_path)
    if (reason := REFUSED.get(model_type)) is not None:
        with pytest.raises(lb.errors.ModelError, match=reason):
            load_model(folder, device="cpu", dtype=torch.float64, masked_lm_head=True)
        return
    own = load_model(folder, device="cpu", dtype=torch.float64, masked_lm_head=True).train_all_weights()
    upstream = torch.randn(len(TEXTS), own.vocab_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = vectors_of(own.module)
    (wanted * upstream).sum().backward()
    service = lb.ServiceClient(device="cpu", dtype=torch.float64)
    client = service.create_training_client(folder, masked_lm_head=True)
    datums = [lb.Datum(lb.ModelInput.from_ints(text), {}) for text in TEXTS]
    seen: list[Tensor] = []

    def weighed(_: Any, vectors: Any) -> tuple[Tensor, dict[str, float]]:
        seen.append(torch.stack(list(vectors)))
        return (seen[0] * upstream.to(seen[0].dtype)).sum(), {}

    client.forward_backward_custom(datums, weighed, output="embedding", pooling="splade").result()
    torch.testing.assert_close(seen[0].detach().double(), wanted.detach(), rtol=1e-6, atol=1e-6)
    if model_type in WITHOUT_GRADIENTS:
        return
    gradients = gradients_of(client)
    assert gradients.keys() == own.trainable().keys()
    for name, parameter in own.trainable().items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradients[name], expected, rtol=1e-5, atol=1e-6)

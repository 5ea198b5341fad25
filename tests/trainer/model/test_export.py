"""A whole model written for transformers: what it computes there is what it computed here."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.model.export import export_model
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from ..head.test_memory import LiveBytes

TEXTS = [list(b"The sky is blue."), list(b"A stone sinks in water, wood does not.")]


def trained(base_model: str, **how: Any) -> lb.TrainingClient:
    """A client three steps away from where it began."""
    service = lb.ServiceClient()
    if how:
        training = service.create_lora_training_client(base_model, rank=4, seed=0, **how)
    else:
        training = service.create_training_client(base_model)
    for _ in range(3):
        if base_model == "tiny":
            data = [lb.datum_from_tokens_weights(text, [1.0] * len(text)) for text in TEXTS]
            training.forward_backward(data, "cross_entropy").result()
        else:
            data = [lb.Datum(lb.ModelInput.from_ints(text), {}) for text in TEXTS * 2]
            training.forward_backward(data, "ntxent").result()
        training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    return training


@pytest.mark.parametrize("how", [{}, {"train_unembed": True}], ids=["all weights", "adapters"])
def test_a_decoder_gives_the_same_logprobs_in_transformers(tmp_path: Path, how: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    training = trained("tiny", **how)
    data = [lb.datum_from_tokens_weights(text, [1.0] * len(text)) for text in TEXTS]
    before = [output["logprobs"].data for output in training.forward(data).result().loss_fn_outputs]
    training.export_model(tmp_path).result()
    after = [output["logprobs"].data for output in training.forward(data).result().loss_fn_outputs]
    assert after == before  # exporting changes nothing
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("The") == list(b"The")
    for text, ours in zip(TEXTS, before, strict=True):
        with torch.no_grad():
            theirs = loaded(torch.tensor([text[:-1]])).logits[0].log_softmax(-1)
        expected = theirs.gather(1, torch.tensor(text[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", [{}, {"train_mlp": True}], ids=["all weights", "adapters"])
def test_an_encoder_gives_the_same_embeddings_in_transformers(tmp_path: Path, how: dict[str, Any]) -> None:
    from transformers import AutoModel

    training = trained("tiny-encoder", **how)
    data = [lb.Datum(lb.ModelInput.from_ints(text), {}) for text in TEXTS * 2]
    ours = training.forward(data, "ntxent", pooling="mean").result().loss_fn_outputs
    training.export_model(tmp_path).result()
    loaded = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    for text, output in zip(TEXTS, ours, strict=False):
        with torch.no_grad():
            theirs = loaded(torch.tensor([text])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(output["embedding"].to_torch(), theirs, atol=1e-5, rtol=1e-5)


# -- files of bounded size ---------------------------------------------------------------------------------------------

WIDTH, EXPERTS, LAYERS = 32, 4, 3


def of_experts(folder: Path) -> LoadedModel:
    """A mixture of experts, whose weights are named and cut otherwise on disk, with an adapter that does something."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=260, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, num_local_experts=EXPERTS, num_experts_per_tok=2
    )  # fmt: skip
    if not folder.exists():
        MixtralForCausalLM(config).save_pretrained(folder)
        build_tiny_tokenizer().save_pretrained(folder)
    model = add_lora(load_model(str(folder), device="cpu", dtype=torch.float32), rank=4, seed=0)
    for name, parameter in sorted(model.trainable().items()):
        torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


@torch.no_grad()
def logits(module: Any) -> torch.Tensor:
    return module.eval()(torch.tensor([TEXTS[0]])).logits


@pytest.mark.parametrize("file_bytes", [40_000, 10**9], ids=["many files", "one file"])
def test_weights_in_files_of_bounded_size_give_the_same_logits_in_transformers(tmp_path: Path, file_bytes: int) -> None:
    from transformers import AutoModelForCausalLM

    model, out = of_experts(tmp_path / "base"), tmp_path / "out"
    before = logits(model.module)
    export_model(model, out, file_bytes=60_000)  # what is left of an older export is not read in place of the new one
    export_model(model, out, file_bytes=file_bytes)
    files = sorted(out.glob("model*.safetensors"))
    assert len(files) == (1 if file_bytes == 10**9 else len(files))
    assert (out / "model.safetensors.index.json").exists() == (len(files) > 1)
    if len(files) > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert {*index["weight_map"].values()} == {path.name for path in files}
        assert len(files) > 5
        assert max(path.stat().st_size for path in files) < file_bytes + 4000  # a header with names and shapes
    assert torch.equal(logits(model.module), before)
    both: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    loaded, report = both
    assert not any(report.values()), report
    torch.testing.assert_close(logits(loaded), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["as they are", "another dtype"])
def test_beside_the_model_one_files_weights_are_in_memory(tmp_path: Path, dtype: torch.dtype | None) -> None:
    """Merging a weight takes its sum and its adapters' product; experts that are cut apart lie in one weight before."""
    model = of_experts(tmp_path / "base")
    largest = max(parameter.nbytes for parameter in model.module.parameters())
    whole = sum(parameter.nbytes for parameter in model.module.parameters())
    file_bytes = 30_000
    with LiveBytes(*model.module.parameters(), *model.module.buffers()) as live:
        export_model(model, tmp_path / "out", dtype=dtype, file_bytes=file_bytes)
    assert live.peak > largest, "what is merged is counted"
    assert live.peak < file_bytes + 2 * largest < whole / 3


def test_a_weight_that_transformers_would_not_tie_again_is_named() -> None:
    model = load_model("tiny", device="cpu", dtype=torch.float32)
    layers = model.module.get_submodule("model.layers")
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"layers.0.mlp.up_proj.weight, .* are one weight, but"):
        export_model(model, tempfile.gettempdir())

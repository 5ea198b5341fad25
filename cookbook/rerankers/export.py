"""A trained reranker for others: an encoder as a CrossEncoder of Sentence Transformers, a language model's adapter for transformers."""

from __future__ import annotations

import json

from ...datums import disk
from ...trainer.checkpoint.folder import read_checkpoint
from ..preferences.reward_models import HEAD_BIAS, HEAD_WEIGHT, export_scorer
from ..run.names import MODEL
from ..run.runs import Run, find_checkpoint, writing_run
from .lists import PairEncoder

#: The modules of a CrossEncoder: the encoder, its first token, and the head.
MODULES = {
    "": "sentence_transformers.base.modules.transformer.Transformer",
    "1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "2_Dense": "sentence_transformers.base.modules.dense.Dense",
}


def export_reranker(run: Run, encode: PairEncoder) -> str:
    """Write what others need beside the run's weights; returns a line about it."""
    if not encode.is_encoder:
        return export_scorer(run)
    if not (run.path / MODEL / "config.json").exists():
        return f"reranker {find_checkpoint(run.path)}: lossbook.cookbook.rerankers.ranking.Reranker reads it"
    return write_cross_encoder(run, encode.max_length)


def write_cross_encoder(run: Run, max_length: int) -> str:
    """Make `model/` of the run a CrossEncoder of Sentence Transformers 6: the head, and the files that name the modules.

    Its scores are the head's, without an activation, and a pair is one segment, as in training.
    """
    from safetensors.torch import save_file

    folder = run.path / MODEL
    tensors = read_checkpoint(find_checkpoint(run.path), names=["weights"]).tensors["weights"]
    weight, bias = tensors[HEAD_WEIGHT], tensors[HEAD_BIAS]
    width = weight.shape[1]
    described = [
        {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(MODULES.items())
    ]
    dense = {"in_features": width, "out_features": 1, "bias": True, "module_output_name": "scores"}
    written = {
        "modules.json": described,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.linear.Identity",
        },
        "1_Pooling/config.json": {"embedding_dimension": width, "pooling_mode": "cls", "include_prompt": True},
        "2_Dense/config.json": {**dense, "activation_function": "torch.nn.modules.linear.Identity"},
    }
    names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    written["tokenizer_config.json"] = {**names, "model_input_names": ["input_ids", "attention_mask"]}
    with writing_run(folder):
        for file, value in written.items():
            disk.make_folder((folder / file).parent)
            disk.write_file(folder / file, json.dumps(value, indent=2) + "\n")
        with disk.writing(path := folder / "2_Dense" / "model.safetensors"):
            save_file({"linear.weight": weight, "linear.bias": bias}, path)
    return f"reranker {folder} (loads as a CrossEncoder of Sentence Transformers)"

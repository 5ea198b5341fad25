"""What stands around a recipe's loop: where training begins, what is kept beside a checkpoint, and the place of errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lossbook as lb
from lossbook.cookbook.cli import main
from lossbook.cookbook.loop import Loop, begin, introduce
from lossbook.cookbook.run.configs import adam_params, configured_loss
from lossbook.cookbook.run.runs import find_checkpoint, read_rows
from lossbook.cookbook.settings.base import MEMORY, RecipeConfig
from lossbook.datums.errors import CheckpointError, LossbookError, LossContractError, NonFiniteLossError, RunError
from lossbook.trainer.engine import activation_memory
from lossbook.trainer.model.tiny import build_tiny_model, build_tiny_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture
def datums() -> list[lb.Datum]:
    """Two short sequences."""
    return [
        lb.datum_from_tokens_weights([1, 2, 3, 4], [0.0, 1.0, 1.0, 1.0]),
        lb.datum_from_tokens_weights([5, 6], [0, 1]),
    ]


def config_in(folder: Path, **changes: Any) -> RecipeConfig:
    return RecipeConfig(
        out=folder, learning_rate=1e-2, **({} if changes.get("all_weights") else {"rank": 2}), **changes
    )


def train(config: RecipeConfig, datums: list[lb.Datum], total: int, **options: Any) -> Any:
    """The smallest recipe there is; returns its client."""
    run, training = begin(config)
    introduce(config, run, training, rows=len(datums), steps=total)
    with Loop(config, run, training, total, **options) as loop:
        for step in loop:
            output = training.forward_backward(datums, config.loss).result()
            update = training.optim_step(adam_params(config, step, total)).result()
            loop.log(step, datums, output, update, {"extra": 7.0}, loss=config.loss)
    return training


def logprobs(training: Any, datums: list[lb.Datum]) -> torch.Tensor:
    outputs = training.forward(datums).result().loss_fn_outputs
    return torch.cat([output["logprobs"].to_torch() for output in outputs])


@pytest.mark.parametrize("all_weights", [False, True])
def test_a_run_can_start_from_another_runs_weights_with_a_fresh_optimizer(
    tmp_path: Path, datums: list[lb.Datum], all_weights: bool
) -> None:
    first = train(config_in(tmp_path / "first", all_weights=all_weights), datums, 3)
    config = config_in(tmp_path / "second", all_weights=all_weights, start_from=tmp_path / "first")
    _, training = begin(config)
    assert torch.equal(logprobs(training, datums), logprobs(first, datums))
    step = training.forward_backward(datums, "cross_entropy").result()
    assert step.metrics["loss:sum"] > 0
    assert training.optim_step(adam_params(config, 1, 1)).result().step == 1


def test_the_flags_choose_the_adapters_and_the_first_lines_say_what_is_trained_and_where_they_are(
    tmp_path: Path, capsys
) -> None:
    config = config_in(tmp_path / "run", train_mlp=False, lora_alpha=4.0, lora_dropout=0.25)
    run, training = begin(config)
    introduce(config, run, training, rows=1234, steps=5678)
    lora = training.local.model.lora
    assert lora is not None
    assert (lora.alpha, lora.dropout, lora.train_mlp) == (4.0, 0.25, False)
    first, runs, line = capsys.readouterr().out.splitlines()
    trained = sum(parameter.numel() for parameter in training.local.model.trainable().values())
    everything = trained + sum(parameter.numel() for parameter in build_tiny_model().parameters())
    assert first.startswith(f"tiny: {trained:,} of {everything:,} parameters trained on cpu")
    assert first.endswith(" in float32; 1,234 rows, 5,678 steps, loss cross_entropy")
    assert runs.startswith("tiny packs;")
    assert line == "LoRA of rank 2 on " + ", ".join(f"model.layers.*.self_attn.{leaf}_proj" for leaf in "koqv")
    named = config_in(tmp_path / "named", lora_targets=("layers.0.mlp.up_proj",))
    introduce(named, *begin(named), rows=1, steps=1)
    assert capsys.readouterr().out.splitlines()[2] == "LoRA of rank 2 on model.layers.*.mlp.up_proj"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (None, "tiny packs; shares prefixes; cuts what is not read; samples with a cache that keeps each prompt once"),
        (
            transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
            "pads (packs: no, layer 0 has attention sinks); shares no prefixes; cuts what is not read; "
            "samples with the model's own cache",
        ),
        (
            transformers.BloomConfig(vocab_size=260, hidden_size=32, n_layer=1, n_head=2),
            "pads (packs: no, layer 0 (BloomBlock) is off by",
        ),
    ],
    ids=["a model that packs", "sinks", "biases by distance"],
)
def test_the_first_line_says_how_the_model_runs_and_why_not_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any, line: str
) -> None:
    model = "tiny"
    if config is not None:
        model = str(tmp_path / "model")
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(model)
        build_tiny_tokenizer().save_pretrained(model)
    capsys.readouterr()
    settings = config_in(tmp_path / "run", model=model, all_weights=True)
    run, training = begin(settings)
    introduce(settings, run, training, rows=2, steps=3)
    printed = capsys.readouterr().out.splitlines()[1:]
    assert len(printed) == 1
    assert line in printed[0]
    info = training.get_info()
    assert (info.batching == "packed", info.shares) == ("packs;" in printed[0], "; shares prefixes" in printed[0])
    assert info.cache is not None
    assert (info.cache == "shared prompts") == ("keeps each prompt once" in printed[0])


def test_a_run_of_an_older_version_is_resumed_with_the_defaults_of_what_it_lacks(
    tmp_path: Path, datums: list[lb.Datum]
) -> None:
    train(config_in(tmp_path / "run"), datums, 2)
    path = tmp_path / "run" / "config.json"
    settings = json.loads(path.read_text())
    for name in ("lora_alpha", "lora_targets", "train_mlp", "deterministic", "fused_layers", *MEMORY):
        del settings[name]
    path.write_text(json.dumps(settings))
    train(config_in(tmp_path / "run", resume=True), datums, 3)
    assert json.loads(path.read_text())["lora_alpha"] == 32.0
    path.write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"lora_alpha was 32\.0, is 8\.0"):
        begin(config_in(tmp_path / "run", resume=True, lora_alpha=8.0))


def test_what_is_done_about_memory_changes_how_a_run_computes_and_no_number(
    tmp_path: Path, datums: list[lb.Datum], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointed, offloaded = [], []
    checkpoint, save_on_cpu = activation_memory.checkpoint, torch.autograd.graph.save_on_cpu
    monkeypatch.setattr(activation_memory, "checkpoint", lambda *a, **k: checkpointed.append(1) or checkpoint(*a, **k))
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", lambda **k: offloaded.append(1) or save_on_cpu(**k))
    plain = train(config_in(tmp_path / "plain", seed=1), datums, 2)
    assert not checkpointed
    assert not offloaded
    memory = {"tokens_per_micro_batch": 3, "checkpoint_layers": True, "offload_activations": True}
    small = train(config_in(tmp_path / "small", seed=1, **memory), datums, 2)
    assert len(checkpointed) == 2 * 2 * 2  # steps, micro-batches, layers
    assert len(offloaded) == 2 * 2
    torch.testing.assert_close(logprobs(small, datums), logprobs(plain, datums), rtol=1e-5, atol=1e-5)
    train(config_in(tmp_path / "small", seed=1, resume=True), datums, 3)  # on a machine with more memory
    assert len(checkpointed) == 2 * 2 * 2


@pytest.mark.parametrize("recipe", ["sft", "dpo", "reward", "rl", "distill", "embed"])
def test_every_recipe_takes_the_flags_of_memory(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--help"]) == 0
    printed = capsys.readouterr().out
    for flag in ("--tokens-per-micro-batch", "--checkpoint-layers", "--offload-activations"):
        assert flag in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tokens_per_micro_batch": 0}, "greater than or equal to 1"),
        ({"all_weights": True, "lora_targets": ("q_proj",)}, "so lora_targets would be ignored"),
        ({"all_weights": True, "train_mlp": False}, "so train_mlp would be ignored"),
        ({"lora_targets": ("q_proj",), "train_mlp": False}, "not by both"),
        ({"lora_dropout": 1.0}, "less than 1"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_in(tmp_path, **flags)


def test_start_from_says_what_is_wrong_with_a_folder(tmp_path: Path, datums: list[lb.Datum]) -> None:
    with pytest.raises(RunError, match="is neither a run nor a checkpoint: there is no such folder"):
        begin(config_in(tmp_path / "run", start_from=tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()
    begin(config_in(tmp_path / "empty"))[0].make()
    with pytest.raises(RunError, match="has no checkpoint"):
        find_checkpoint(tmp_path / "empty")
    train(config_in(tmp_path / "adapters"), datums, 1)
    with pytest.raises(CheckpointError, match=r"rank|lora|LoRA"):
        begin(config_in(tmp_path / "whole", start_from=tmp_path / "adapters", all_weights=True))


def test_what_is_kept_beside_a_checkpoint_is_there_when_the_run_goes_on(tmp_path: Path, datums: list[lb.Datum]) -> None:
    counted: list[int] = []

    def keep() -> Any:
        counted.append(len(counted))
        return {"pending": [1, 2], "saves": len(counted)}

    train(config_in(tmp_path / "run", save_every=2), datums, 5, keep=keep)
    config = config_in(tmp_path / "run", save_every=2, resume=True)
    run, training = begin(config)
    with Loop(config, run, training, 6) as loop:
        assert loop.start == 5
        assert loop.kept == {"pending": [1, 2], "saves": 3}
    with Loop(config_in(tmp_path / "new"), *begin(config_in(tmp_path / "new")), 6) as fresh:
        assert fresh.kept is None


def test_rows_of_steps_that_are_made_again_are_dropped_from_every_file(tmp_path: Path, datums: list[lb.Datum]) -> None:
    config = config_in(tmp_path / "run", save_every=2)
    train(config, datums, 3)
    run, training = begin(config.model_copy(update={"resume": True}))
    before = (run.path / "sequences.jsonl").read_bytes()
    for step in (4, 5):
        run.append("samples.jsonl", {"step": step, "answer": "é"})
        run.append("sequences.jsonl", {"step": step})
    with Loop(config, run, training, 4) as loop:
        assert loop.start == 3
    assert read_rows(run.path / "samples.jsonl") == []
    assert (run.path / "sequences.jsonl").read_bytes() == before != b""
    assert json.loads(run.metrics.read_text().splitlines()[-1])["extra"] == 7.0


def test_an_error_in_the_body_names_the_step(tmp_path: Path, datums: list[lb.Datum]) -> None:
    config = config_in(tmp_path / "run")
    run, training = begin(config)
    with pytest.raises(NonFiniteLossError, match=r"^step 2: it broke"), Loop(config, run, training, 3) as loop:  # noqa: PT012
        for step in loop:
            if step == 2:
                raise NonFiniteLossError("it broke")
    with pytest.raises(LossbookError, match=r"^after the loop"), Loop(config, run, training, 3) as loop:  # noqa: PT012
        list(loop)
        raise LossbookError("after the loop")


def test_evaluations_follow_every_so_many_steps_and_the_last(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", eval_every=3)
    loop = Loop(config, *begin(config), 8)
    assert [step for step in range(1, 9) if loop.is_evaluated(step)] == [3, 6, 8]


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [(0, 5, [1, 5]), (2, 5, [1, 2, 4, 5]), (1, 24, [1, 3, 6, 9, 12, 15, 18, 21, 24]), (7, 4, [1, 4])],
)
def test_sequences_are_recorded_at_the_first_step_at_some_evaluations_and_at_the_last(
    tmp_path: Path, datums: list[lb.Datum], every: int, total: int, steps: list[int]
) -> None:
    train(config_in(tmp_path / "run", eval_every=every), datums, total)
    rows = read_rows(tmp_path / "run" / "sequences.jsonl")
    assert [row["step"] for row in rows] == [step for step in steps for _ in datums]
    assert json.loads((tmp_path / "run" / "loss.json").read_text())["parts"][0]["name"] == "cross_entropy"
    assert rows[0]["tokens"]["gradient"] == [None, -1.0, -1.0, -1.0]


def test_a_preset_that_is_a_mixture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LossContractError, match=r"prime:default is a mixture of .*, but this recipe takes one loss"):
        configured_loss(config_in(tmp_path / "run", loss="prime:default"))

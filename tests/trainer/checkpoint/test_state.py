"""Saving and loading: a resumed run is the uninterrupted one bit for bit, and a load that fails changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import CheckpointError, ModelError
from lossbook.trainer.checkpoint.folder import latest_checkpoint
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
StateOf = Callable[[TrainingClient], dict[str, Any]]
PARAMS = lb.AdamParams(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=1.0)

MODELS: dict[str, Callable[[lb.ServiceClient], TrainingClient]] = {
    "LoRA": lambda service: service.create_lora_training_client("tiny", rank=4, seed=0),
    "all weights": lambda service: service.create_training_client("tiny"),
}


def step(client: TrainingClient, datums: list[lb.Datum]) -> None:
    client.forward_backward(datums, "cross_entropy").result()
    client.optim_step(PARAMS).result()


@pytest.mark.parametrize("create", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("saved_after", [0, 1, 3])
def test_a_resumed_run_is_the_uninterrupted_run_and_a_cold_one_is_not(
    create: Callable[[lb.ServiceClient], TrainingClient],
    saved_after: int,
    service: lb.ServiceClient,
    make_datums: MakeDatums,
    state_of: StateOf,
) -> None:
    datums, client = make_datums(4), create(service)
    for _ in range(saved_after):
        step(client, datums)
    path = client.save_state("here").result().path
    for _ in range(2):
        step(client, datums)
    uninterrupted = state_of(client)

    torch.manual_seed(99)
    resumed = service.create_training_client_from_state(path, optimizer=True)
    for _ in range(2):
        step(resumed, datums)
    assert state_of(resumed) == uninterrupted

    cold = service.create_training_client_from_state(path)
    for _ in range(2):
        step(cold, datums)
    has_moments = saved_after > 0
    assert (state_of(cold)["weights"] != uninterrupted["weights"]) == has_moments


def test_gradients_that_wait_for_a_step_are_saved_with_what_they_count(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    first, second = make_datums(3, seed=1), make_datums(3, seed=2)
    training.forward_backward(first, "cross_entropy").result()
    path = training.save_state("between-two-calls").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    for client in (training, resumed):
        client.forward_backward(second, "cross_entropy").result()
    normalizers = [
        client.optim_step(PARAMS, grad_accumulation_normalization="num_loss_tokens").result().metrics["normalizer"]
        for client in (training, resumed)
    ]
    assert normalizers[0] == normalizers[1] > 0
    assert state_of(resumed) == state_of(training)


def test_the_random_state_is_resumed(training: TrainingClient) -> None:
    torch.manual_seed(5)
    path = training.save_state("seeded").result().path
    expected = torch.rand(3)
    torch.manual_seed(6)
    training.load_state(path).result()
    assert torch.equal(torch.rand(3), expected)


def test_loading_goes_back_in_the_same_client(
    training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    datums = make_datums(3)
    step(training, datums)
    path = training.save_state("back-here").result().path
    before = state_of(training)
    step(training, datums)
    training.forward_backward(datums, "cross_entropy").result()
    assert state_of(training) != before
    training.load_state(path).result()
    assert state_of(training) == before


def test_adapters_drawn_from_another_seed_become_those_of_the_checkpoint(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    step(training, make_datums(3))
    path = training.save_state("of-seed-0").result().path
    other = service.create_lora_training_client("tiny", rank=4, seed=7)
    other.load_state(path).result()
    for client in (training, other):
        step(client, make_datums(3, seed=1))
    assert state_of(other) == state_of(training)


def test_weights_alone_can_be_loaded_without_the_optimizer(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    step(training, make_datums(3))
    path = training.save_weights_for_sampler("weights").result().path
    other = service.create_lora_training_client("tiny", rank=4, seed=0)
    other.load_state(path, optimizer=False).result()
    assert state_of(other)["weights"] == state_of(training)["weights"]
    assert state_of(other)["moments"] == {}


def test_weights_alone_start_a_fresh_optimizer(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    fresh = service.create_lora_training_client("tiny", rank=4, seed=0)
    path = fresh.save_weights_for_sampler("start").result().path
    step(training, make_datums(3, seed=1))
    training.forward_backward(make_datums(3, seed=2), "cross_entropy").result()
    training.load_state(path, optimizer=False).result()
    for client in (training, fresh):
        step(client, make_datums(3, seed=3))
    assert state_of(training) == state_of(fresh)


def test_weights_alone_are_no_place_to_resume_from(
    training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    step(training, make_datums(3))
    path = training.save_weights_for_sampler("weights").result().path
    step(training, make_datums(3))
    before = state_of(training)
    with pytest.raises(CheckpointError, match="holds weights only, no optimizer state; load it with optimizer=False"):
        training.load_state(path).result()
    assert state_of(training) == before


OTHERS: dict[str, tuple[Callable[[lb.ServiceClient], TrainingClient], str]] = {
    "another base model": (
        lambda service: service.create_training_client("tiny-encoder"),
        "base_model='tiny-encoder', but this model has 'tiny'",
    ),
    "all weights instead of an adapter": (lambda service: service.create_training_client("tiny"), "lora=None"),
    "another rank": (lambda service: service.create_lora_training_client("tiny", rank=8, seed=0), "'rank': 8"),
}


@pytest.mark.parametrize(("create", "difference"), OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(
    create: Callable[[lb.ServiceClient], TrainingClient],
    difference: str,
    service: lb.ServiceClient,
    training: TrainingClient,
    make_datums: MakeDatums,
    state_of: StateOf,
) -> None:
    path = create(service).save_state("other").result().path
    step(training, make_datums(3))
    before = state_of(training)
    with pytest.raises(CheckpointError) as caught:
        training.load_state(path).result()
    assert difference in str(caught.value)
    assert state_of(training) == before


def test_a_checkpoint_of_another_precision_is_refused(
    tmp_path: Path, training: TrainingClient, state_of: StateOf
) -> None:
    wide = lb.ServiceClient(device="cpu", dtype=torch.float64, checkpoint_dir=tmp_path / "wide")
    path = wide.create_lora_training_client("tiny", rank=4, seed=0).save_state("wide").result().path
    before = state_of(training)
    with pytest.raises(CheckpointError, match=r"float64.*float32"):
        training.load_state(path).result()
    assert state_of(training) == before


def flip_a_byte(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a byte flipped": flip_a_byte,
    "a file missing": lambda folder: (folder / "random.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "MANIFEST.json").unlink(),
    "all of it missing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    damage: Callable[[Path], Any], training: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    step(training, make_datums(3))
    path = training.save_state("damaged").result().path
    training.forward_backward(make_datums(3), "cross_entropy").result()
    damage(Path(path))
    before = state_of(training)
    with pytest.raises(CheckpointError):
        training.load_state(path).result()
    assert state_of(training) == before
    step(training, make_datums(3))


def test_a_name_that_exists_is_refused_unless_it_may_be_overwritten(training: TrainingClient) -> None:
    training.save_state("once").result()
    with pytest.raises(CheckpointError, match="checkpoint 'once' exists already"):
        training.save_state("once").result()
    training.save_state("once", overwrite=True).result()


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "con"])
def test_a_name_that_is_no_plain_folder_is_refused(name: str, training: TrainingClient) -> None:
    with pytest.raises(CheckpointError, match="cannot be a name in a checkpoint folder"):
        training.save_state(name).result()


def test_a_state_and_weights_for_samplers_have_names_of_their_own(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums
) -> None:
    paths = [training.save_state("final").result().path]
    step(training, make_datums(3))
    paths.append(training.save_weights_for_sampler("final").result().path)
    assert paths == [str(service.checkpoint_dir / "final"), str(service.checkpoint_dir / "sampler_weights" / "final")]
    logprobs = [service.create_sampling_client(path).compute_logprobs([1, 2, 3]).result() for path in paths]
    assert logprobs[0] != logprobs[1]
    assert logprobs[1] == training.save_weights_and_get_sampling_client().compute_logprobs([1, 2, 3]).result()
    with pytest.raises(CheckpointError, match="checkpoint 'final' exists already"):
        training.save_weights_for_sampler("final").result()
    training.load_state(paths[0]).result()
    for name in ("sampler_weights", "Sampler_Weights"):
        with pytest.raises(CheckpointError, match="is the folder of what save_weights_for_sampler saves"):
            training.save_state(name).result()
    assert latest_checkpoint(service.checkpoint_dir) == Path(paths[0])


def test_weights_that_lie_beside_states_load_as_before(service: lb.ServiceClient, training: TrainingClient) -> None:
    root = service.checkpoint_dir.absolute()  # where save_weights_for_sampler of lossbook 0.1 put them
    path = training.in_turn("save", lambda trainer: trainer.save_weights(root, "final", overwrite=False)).result()
    assert path == root / "final"
    expected = training.save_weights_and_get_sampling_client().compute_logprobs([1, 2, 3]).result()
    assert service.create_sampling_client(str(path)).compute_logprobs([1, 2, 3]).result() == expected
    assert training.load_state(str(path), optimizer=False).result().path == str(path)


def test_saving_changes_nothing(training: TrainingClient, make_datums: MakeDatums, state_of: StateOf) -> None:
    step(training, make_datums(3))
    training.forward_backward(make_datums(3), "cross_entropy").result()
    before = state_of(training)
    training.save_state("state").result()
    training.save_weights_for_sampler("weights").result()
    assert state_of(training) == before


def adapter_logprobs(folder: Path, datum: lb.Datum) -> torch.Tensor:
    """The logprobs under a fresh base model with the adapter in `folder`, through peft and transformers alone."""
    from peft import PeftModel

    from lossbook.trainer.model.tiny import build_tiny_model

    model = PeftModel.from_pretrained(build_tiny_model(), str(folder))
    logits = model(torch.tensor([datum.model_input.to_ints()])).logits[0]
    return logits.log_softmax(-1).gather(1, datum.loss_fn_inputs["target_tokens"].to_torch()[:, None])[:, 0].detach()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use of transformers
@pytest.mark.parametrize("through", ["export_adapter", "save_weights_for_sampler"])
def test_an_exported_adapter_gives_the_same_logprobs_in_peft(
    through: str, tmp_path: Path, service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums
) -> None:
    (datum,) = make_datums(1)
    for _ in range(3):
        step(training, [datum])
    folder = Path(
        training.export_adapter(tmp_path / "adapter").result().path
        if through == "export_adapter"
        else training.save_weights_for_sampler("adapter").result().path
    )
    ours = training.forward([datum]).result().loss_fn_outputs[0]["logprobs"].to_torch()
    base = service.create_training_client("tiny").forward([datum]).result().loss_fn_outputs[0]["logprobs"].to_torch()
    torch.testing.assert_close(adapter_logprobs(folder, datum), ours, rtol=0, atol=1e-5)
    assert (ours - base).abs().max() > 1e-2, "the adapter must do something, or reloading it shows nothing"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == 4


def test_exported_names_carry_no_adapter_segment(tmp_path: Path, training: TrainingClient) -> None:
    from safetensors import safe_open

    training.export_adapter(tmp_path / "adapter").result()
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert not [name for name in names if ".default." in name]


def test_all_weights_have_no_adapter_to_export(tmp_path: Path, service: lb.ServiceClient) -> None:
    with pytest.raises(ModelError, match="tiny has no LoRA adapter"):
        service.create_training_client("tiny").export_adapter(tmp_path / "adapter").result()

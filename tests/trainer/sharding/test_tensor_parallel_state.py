"""Steps, checkpoints, samples and exports of ranks that share each matrix are those of one process, and what they lack is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sampling.prompt_scores import Asked
from lossbook.trainer.sharding.shard import shard_model
from lossbook.trainer.sharding.tensor_parallel import SplitLinear
from lossbook.trainer.shards import local, whole
from lossbook.trainer.training.local_models import LocalModels
from lossbook.trainer.training.model_trainer import ModelTrainer

from ..checkpoint.test_resharding import assert_same_checkpoints
from ..kinds import KINDS, model_of
from ..ranks.calls import call_of
from ..ranks.processes import RankProcesses
from .models import built, off
from .tensor_models import trainer_of

DATUMS = call_of("cross_entropy", count=6).data
#: Clipped: norms of gradients are above it.
ADAM = lb.AdamParams(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=0.05)
PROMPTS = [[1, 2, 3, 4, 5], [9, 8], [200, 100, 50]]


def accumulate(trainer: ModelTrainer) -> None:
    trainer.forward_backward(DATUMS, lb.get_loss("cross_entropy"), "mean")


def step(trainer: ModelTrainer) -> dict[str, float]:
    accumulate(trainer)
    accumulate(trainer)
    return trainer.optim_step(ADAM, None).metrics


def lived(ranks: Ranks, architecture: str, width: int) -> dict[str, Any]:
    """Three steps, in float64, where only a mistake is larger than rounding; and what is asked of a model after them."""
    trainer = trainer_of(ranks, architecture, width, torch.float64)
    metrics, frozen = [step(trainer) for _ in range(3)], trainer.frozen()
    own = range(ranks.rank, len(PROMPTS), ranks.size)
    params = lb.SamplingParams(max_tokens=6)
    samples = frozen.sample(
        [PROMPTS[i] for i in own], 2, params, seeds=[7 + i for i in own], asked=[Asked(logprobs=True)] * len(own)
    )
    top = trainer.engine.top_logprobs(DATUMS, 3)
    parameters = trainer.model.trainable()
    return {
        "metrics": metrics,
        "weights": {name: whole(p).clone() for name, p in parameters.items()},
        "samples": dict(zip(own, samples, strict=True)),
        "logprobs": frozen.logprobs(PROMPTS[0])[1:],
        "top": {i: torch.from_numpy(one.logprobs) for i, one in enumerate(top) if len(one.logprobs)},
        "split": sum(isinstance(part, SplitLinear) for part in trainer.model.module.modules()),
        "held": sum(local(p).numel() for p in parameters.values()),
        "gone on": step(trainer)["grad_norm"],
    }


def check_life(ranks: RankProcesses, architecture: str, size: int) -> None:
    alone = lived(ALONE, architecture, 1)
    several = ranks.run(lived, architecture, 2, size=size)
    assert sorted(i for one in several for i in one["samples"]) == list(range(len(PROMPTS)))
    for ours in several:
        assert ours["split"] == 2 * 7
        assert ours["held"] < alone["held"]
        for mine, expected in zip(ours["metrics"], alone["metrics"], strict=True):
            assert mine == pytest.approx(expected, rel=1e-10)
        assert off(ours["weights"], alone["weights"]) < 1e-8  # Adam divides by the square root of small second moments
        assert ours["gone on"] == pytest.approx(alone["gone on"], rel=1e-8)
        assert ours["logprobs"] == pytest.approx(alone["logprobs"], abs=1e-6)
        for i, response in ours["samples"].items():
            expected = alone["samples"][i]
            assert [one.tokens for one in response.sequences] == [one.tokens for one in expected.sequences]
        for i, logprobs in ours["top"].items():
            assert torch.allclose(logprobs, alone["top"][i], atol=1e-6)
    mates = zip(several[::2], several[1::2], strict=True)
    assert all(one["top"].keys() == other["top"].keys() for one, other in mates)


@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_steps_samples_and_logprobs_are_those_of_one_process(ranks: RankProcesses, architecture: str) -> None:
    check_life(ranks, architecture, 2)


@pytest.mark.slow
def test_steps_and_samples_of_two_places_are_those_of_one_process(ranks: RankProcesses) -> None:
    check_life(ranks, "llama with biases", 4)


def saved(ranks: Ranks, width: int, root: Path, name: str) -> str:
    """Two steps, and gradients that wait for the third. What is written then, and the weights' fingerprint."""
    trainer = trainer_of(ranks, "llama with biases", width)
    step(trainer)
    step(trainer)
    accumulate(trainer)
    torch.manual_seed(5)
    return written(trainer, root, name)


def written(trainer: ModelTrainer, root: Path, name: str) -> str:
    trainer.save_state(root, name, overwrite=False)
    fingerprint = trainer.frozen().fingerprint()
    trainer.export_model(root / f"exported-{name}", dtype=None)
    return fingerprint


def saved_again(ranks: Ranks, width: int, root: Path, source: str, name: str) -> str:
    """Into a model of other weights, and out again."""
    trainer = trainer_of(ranks, "llama with biases", width, seed=1)
    trainer.load_state(root / source, optimizer=True)
    return written(trainer, root, name)


@pytest.mark.parametrize(
    "setups",
    [
        [(2, 2), (1, 1), (2, 1), (2, 2)],
        pytest.param([(4, 2), (2, 2), (4, 1), (4, 2), (1, 1)], marks=pytest.mark.slow),
        pytest.param([(1, 1), (4, 2), (1, 1)], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_state_passes_between_any_numbers_of_ranks_and_mates_bit_for_bit(
    setups: list[tuple[int, int]], ranks: RankProcesses, tmp_path: Path
) -> None:
    (size, width), *others = setups
    fingerprints = ranks.run(saved, width, tmp_path, "0", size=size)
    for number, (size, width) in enumerate(others):
        fingerprints += ranks.run(saved_again, width, tmp_path, str(number), str(number + 1), size=size)
    names = [str(number) for number in range(len(setups))]
    assert_same_checkpoints(tmp_path, *names)
    assert len(set(fingerprints)) == 1
    assert len({(tmp_path / f"exported-{name}" / "model.safetensors").read_bytes() for name in names}) == 1


def gone_on(ranks: Ranks, root: Path) -> dict[str, Tensor]:
    """How far a run that went on and one that was resumed are apart."""
    trainer = trainer_of(ranks, "qwen3", 2)
    step(trainer)
    trainer.save_state(root, "middle", overwrite=False)
    resumed = trainer_of(ranks, "qwen3", 2, seed=1)
    resumed.load_state(root / "middle", optimizer=True)
    step(trainer)
    step(resumed)
    theirs = resumed.model.trainable()
    return {name: local(p) - local(theirs[name]) for name, p in trainer.model.trainable().items()}


def test_the_step_after_a_resume_is_the_same_bit_for_bit(ranks: RankProcesses, tmp_path: Path) -> None:
    for rest in ranks.run(gone_on, tmp_path):
        assert not any(one.any() for one in rest.values())


def came_back(ranks: Ranks, root: Path) -> tuple[list[str], list[int], str]:
    """Fingerprints of weights that were saved by name and loaded in each way, how many parts are split, and a refusal."""
    models = LocalModels(EngineSettings(), "cpu", ranks=ranks, tensor_parallel=2)
    trainer = models.all_weights("tiny", value_head=True)
    step(trainer)
    state = trainer.save_state(root, "state", overwrite=False)
    weights = trainer.save_weights(root, "weights", overwrite=False)
    again, saved = models.like(str(state), base_model=None), models.saved(str(weights))
    again.load_state(state, optimizer=True)
    split = [sum(isinstance(p, SplitLinear) for p in one.model.module.modules()) for one in (trainer, again, saved)]
    adapters = LocalModels(EngineSettings(), "cpu", ranks=ranks).adapters("tiny", value_head=False, rank=2, seed=0)
    try:
        models.like(str(adapters.save_weights(root, "adapters", overwrite=False)), base_model=None)
    except ModelError as error:
        return [one.fingerprint() for one in (trainer.frozen(), again.frozen(), saved)], split, str(error)
    return [], split, ""


def test_models_of_checkpoints_are_split_and_adapters_refused(ranks: RankProcesses, tmp_path: Path) -> None:
    for fingerprints, split, refusal in ranks.run(came_back, tmp_path):
        assert len(set(fingerprints)) == 1
        assert split == [14, 14, 14]
        assert "tensor_parallel=2 is for training all weights: adapters are not split" in refusal


def refused(ranks: Ranks, way: str) -> str:
    if way == "adapters":
        model = add_lora(load_model("tiny", device="cpu"), rank=2)
    elif way == "an encoder":
        model = load_model("tiny-encoder", device="cpu")
    elif way in KINDS:
        model = model_of(KINDS[way]())
    else:
        heads = 3 if way == "heads" else 4
        model = built("untied", num_attention_heads=heads, num_key_value_heads=1, hidden_size=48)
    try:
        shard_model(model, ranks, tensor_parallel=2)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("adapters", "^tensor_parallel=2 is for training all weights: adapters are not split"),
        ("an encoder", r"no tensor-parallel plan for tiny-encoder \(bert\)"),
        ("learned positions", "no tensor-parallel plan for gpt2"),
        ("a rotation that switches at 32 tokens", "tensor_parallel=2 was tried with llama, .*, and phi3 is a phi3"),
        ("heads", "tensor_parallel=2 does not divide the 3 num_attention_heads of llama"),
        ("keys", "tensor_parallel=2 does not divide the 1 num_key_value_heads of llama"),
    ],
)
def test_models_that_cannot_be_split_are_refused_by_name(ranks: RankProcesses, way: str, words: str) -> None:
    for text in ranks.run(refused, way):
        assert re.search(words, text), text


def loaded(ranks: Ranks, base: str) -> tuple[str, bool]:
    """Why a model was refused, and whether its weights were read."""
    read: list[Any] = []
    from lossbook.trainer.training import local_models

    whole_load, local_models.load_model = local_models.load_model, lambda *args, **_: read.append(args)  # type: ignore[assignment]
    try:
        LocalModels(EngineSettings(), "cpu", ranks=ranks, tensor_parallel=2).all_weights(base, value_head=False)
    except ModelError as error:
        return str(error), bool(read)
    finally:
        local_models.load_model = whole_load
    return "", True


def test_a_model_is_refused_before_its_weights_are_read(ranks: RankProcesses) -> None:
    for text, is_read in ranks.run(loaded, "tiny-encoder"):
        assert "no tensor-parallel plan" in text
        assert not is_read


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tensor_parallel": 2}, "tensor_parallel is for workers"),
        ({"workers": 3, "tensor_parallel": 2}, "tensor_parallel=2 does not divide 3 workers"),
        ({"workers": 2, "tensor_parallel": 0}, "a whole number of ranks that share each matrix, at least 1, not 0"),
        ({"workers": 2, "tensor_parallel": 2, "dropout": True}, "dropout was not tried with tensor_parallel"),
        ({"workers": 2, "tensor_parallel": 2, "base_weights": "4bit"}, "4-bit base weights are not sharded"),
    ],
    ids=str,
)
def test_services_that_cannot_be_are_refused_before_a_worker_starts(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        lb.ServiceClient(device="cpu", **settings)


def test_adapters_are_refused_before_a_worker_starts() -> None:
    service = lb.ServiceClient(device="cpu", workers=2, tensor_parallel=2)
    with pytest.raises(ModelError, match="tensor_parallel=2 is for training all weights"):
        service.create_lora_training_client("tiny", rank=4)

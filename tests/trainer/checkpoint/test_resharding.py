"""A training state saved on some ranks goes on, bit for bit, on any other number of them, and a bad one changes nothing anywhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

import lossbook as lb
from lossbook.cookbook.export.export import export
from lossbook.datums.errors import CheckpointError
from lossbook.datums.types import AdamParams
from lossbook.trainer.checkpoint.folder import read_checkpoint
from lossbook.trainer.checkpoint.manifest import MANIFEST_NAME
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sharding.shard import shard_model
from lossbook.trainer.shards import local
from lossbook.trainer.training.local_models import LocalModels
from lossbook.trainer.training.model_trainer import ModelTrainer

from ..ranks.processes import RankProcesses
from ..sharding.models import built, rows
from .test_checkpoints import replace_file

GROUPS = ("weights", "optimizer", "gradients", "random")


DATUMS = [lb.datum_from_tokens_weights(row[0].tolist(), [1.0] * row.shape[1]) for row in rows()]


class State(ModelTrainer):
    """A model in training on this rank: random weights, all of them trained or adapters, made the same way each time."""

    def __init__(self, ranks: Ranks, trained: str, *, other_weights: bool = False, **settings: Any) -> None:
        model = built(trained, **settings)
        for parameter in model.trainable().values() if other_weights else ():
            torch.nn.init.normal_(parameter, std=0.1)
        super().__init__(shard_model(model, ranks), EngineSettings())

    def accumulate(self) -> None:
        """The gradients of one more call."""
        self.forward_backward(DATUMS, lb.get_loss("cross_entropy"), "mean")

    def step(self) -> None:
        """One more call and a step, with gradients clipped by their norm over all ranks."""
        self.accumulate()
        self.optim_step(AdamParams(learning_rate=1e-2, grad_clip_norm=0.1), None)

    def save(self, root: Path, name: str) -> Path:
        return self.save_state(root, name, overwrite=True)

    def load(self, path: Path) -> None:
        self.load_state(path, optimizer=True)

    def held(self) -> dict[str, Any]:
        """Copies of all that this rank has of the state."""
        trainable = self.model.trainable().items()
        return {
            "weights": {name: local(p).clone() for name, p in trainable},
            "optimizer": self.optimizer.state_tensors(),
            "gradients": {name: local(p.grad).clone() for name, p in trainable if p.grad is not None},
            "random": {"cpu": torch.get_rng_state()},
            "counts": {name: torch.tensor(value) for name, value in asdict(self.accumulated).items()},
        }


def trained_and_saved(ranks: Ranks, trained: str, root: Path, name: str) -> None:
    """Two steps from the start, and gradients that wait for the third."""
    state = State(ranks, trained)
    state.step()
    state.step()
    state.accumulate()
    torch.manual_seed(5)
    state.save(root, name)


def saved_again(ranks: Ranks, trained: str, root: Path, source: str, name: str) -> None:
    """Into a model of other weights, and out again."""
    state = State(ranks, trained, other_weights=True)
    state.load(root / source)
    state.save(root, name)


def assert_same(
    one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]], groups: tuple[str, ...] = GROUPS
) -> None:
    for group in groups:
        assert one[group].keys() == other[group].keys()
        for name, tensor in one[group].items():
            assert torch.equal(tensor, other[group][name]), f"{name} of {group}"


def assert_same_checkpoints(root: Path, *names: str) -> None:
    first, *others = [read_checkpoint(root / name) for name in names]
    assert set(first.tensors) == set(GROUPS)
    for other in others:
        assert other.manifest == first.manifest
        assert_same(first.tensors, other.tensors)


@pytest.mark.parametrize(
    ("trained", "sizes"),
    [
        ("tied", (1, 2, 1)),
        *(pytest.param("untied", sizes, marks=pytest.mark.slow) for sizes in [(4, 1, 2), (1, 4, 2), (2, 4, 1)]),
        pytest.param("value head", (2, 1, 2), marks=pytest.mark.slow),
        *(pytest.param(trained, (2, 2, 1), marks=pytest.mark.slow) for trained in ("untied", "lora")),
        pytest.param("lora with a value head", (1, 2, 1), marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value),
)
def test_a_state_passes_from_one_number_of_ranks_to_another_bit_for_bit(
    trained: str, sizes: tuple[int, ...], ranks: RankProcesses, tmp_path: Path
) -> None:
    first, *others = sizes
    ranks.run(trained_and_saved, trained, tmp_path, "0", size=first)
    for number, size in enumerate(others):
        ranks.run(saved_again, trained, tmp_path, str(number), str(number + 1), size=size)
    assert_same_checkpoints(tmp_path, *(str(number) for number in range(len(sizes))))


def gone_on(ranks: Ranks, trained: str, root: Path) -> None:
    """The state after one more step, of a run that went on and of one that was resumed."""
    state = State(ranks, trained)
    state.step()
    state.save(root, "middle")
    state.step()
    state.accumulate()
    state.save(root, "went-on")
    resumed = State(ranks, trained, other_weights=True)
    torch.manual_seed(99)
    resumed.load(root / "middle")
    resumed.step()
    resumed.accumulate()
    resumed.save(root, "resumed")
    assert_same(state.held(), resumed.held())


@pytest.mark.parametrize("trained", ["untied", pytest.param("lora", marks=pytest.mark.slow)])
def test_the_next_step_after_a_resume_is_the_same_bit_for_bit(
    trained: str, ranks: RankProcesses, tmp_path: Path
) -> None:
    ranks.run(gone_on, trained, tmp_path)
    assert_same_checkpoints(tmp_path, "went-on", "resumed")


def weights_saved(ranks: Ranks, root: Path) -> None:
    State(ranks, "tied", other_weights=True).save_weights(root, "weights", overwrite=False)


def weights_loaded(ranks: Ranks, root: Path) -> None:
    """Weights alone are taken, and no gradient is left; with an optimizer they are refused."""
    state = State(ranks, "tied")
    state.accumulate()
    with pytest.raises(CheckpointError, match="holds weights only, no optimizer state"):
        state.load(root / "weights")
    state.load_state(root / "weights", optimizer=False)
    assert state.held()["gradients"] == {}
    state.save_weights(root, f"again-{ranks.size}", overwrite=False)


def test_weights_alone_pass_from_ranks_to_ranks_and_to_one_process(ranks: RankProcesses, tmp_path: Path) -> None:
    ranks.run(weights_saved, tmp_path)
    ranks.run(weights_loaded, tmp_path)
    weights_loaded(ALONE, tmp_path)
    first, *others = [read_checkpoint(tmp_path / name) for name in ("weights", "again-2", "again-1")]
    for other in others:
        assert other.manifest == first.manifest
        assert all(
            torch.equal(tensor, other.tensors["weights"][name]) for name, tensor in first.tensors["weights"].items()
        )


# -- adapters ----------------------------------------------------------------------------------------------------------


def adapter_saved(ranks: Ranks, root: Path, name: str) -> None:
    state = State(ranks, "lora")
    state.step()
    state.save(root, name)
    state.save_weights(root, f"{name}-weights", overwrite=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST_NAME}


def test_adapters_are_written_by_the_first_rank_as_one_process_writes_them(
    ranks: RankProcesses, tmp_path: Path
) -> None:
    adapter_saved(ALONE, tmp_path, "alone")
    ranks.run(adapter_saved, tmp_path, "together")
    for suffix in ("", "-weights"):
        alone, together = (contents(tmp_path / f"{name}{suffix}") for name in ("alone", "together"))
        assert alone.keys() == together.keys()
        assert json.loads((tmp_path / f"together{suffix}" / MANIFEST_NAME).read_bytes())["format_version"] == 1
    assert {"adapter_config.json", "adapter_model.safetensors"} < together.keys()
    assert together["adapter_config.json"] == alone["adapter_config.json"]
    weights = read_checkpoint(tmp_path / "together").tensors["weights"]
    adapter = load_file(tmp_path / "together-weights" / "adapter_model.safetensors")
    renamed = {f"base_model.model.{name.replace('.default', '')}": tensor for name, tensor in weights.items()}
    assert renamed.keys() == adapter.keys()
    assert all(torch.equal(tensor, adapter[name]) for name, tensor in renamed.items())


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused_and_unchanged(ranks: Ranks, root: Path, settings: dict[str, Any]) -> str:
    """What a rank is told that loads `root/0`; nothing that it holds is another then."""
    state = State(ranks, "untied", other_weights=True, **settings)
    state.step()
    state.accumulate()
    before = state.held()
    with pytest.raises(CheckpointError) as raised:
        state.load(root / "0")
    assert_same(before, state.held())
    return str(raised.value)


def change(file: str, how: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    """Change the tensors of a file, and mend the manifest."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / file)
        how(tensors)
        replace_file(folder, file, save(tensors))

    return changed


def nothing(folder: Path) -> None: ...


EMBEDDINGS, MOMENT = "model.embed_tokens.weight", "exp_avg_sq.model.embed_tokens.weight"
QUICK = ("NaN in the last rows of a weight", "a wider model")
BAD: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "NaN in the last rows of a weight": (
        change("weights-1-of-2.safetensors", lambda tensors: tensors[EMBEDDINGS][-1].fill_(float("nan"))),
        {},
        rf"weights-\*-of-2.safetensors: '{EMBEDDINGS}' holds NaN",
    ),
    "a square below zero": (
        change("optimizer-0-of-2.safetensors", lambda tensors: tensors[MOMENT][0].fill_(-1.0)),
        {},
        r"optimizer-\*-of-2.safetensors: .*'exp_avg_sq' of 'model.embed_tokens.weight' holds negative numbers",
    ),
    "an infinite gradient": (
        change("gradients-1-of-2.safetensors", lambda tensors: tensors[EMBEDDINGS][0].fill_(float("inf"))),
        {},
        rf"gradients-\*-of-2.safetensors: '{EMBEDDINGS}' holds NaN",
    ),
    "no random state": (
        change("random.safetensors", lambda tensors: tensors.update(cpu=torch.zeros(3))),
        {},
        "random.safetensors: 'cpu' is",
    ),
    "a wider model": (
        nothing,
        {"hidden_size": 64},
        r"weights-[01]-of-2.safetensors: 'lm_head.weight' is \[259, 32\], but the model's is \[259, 64\]",
    ),
    "a deeper model": (nothing, {"num_hidden_layers": 4}, r"weights-\*-of-2.safetensors has no 'model.layers.3"),
    "a shallower model": (nothing, {"num_hidden_layers": 2}, r"has 'model.layers.2.*, which is not trained here"),
}


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in BAD])
def test_what_is_wrong_on_one_rank_is_refused_on_all_and_nothing_changes(
    kind: str, ranks: RankProcesses, tmp_path: Path
) -> None:
    spoil, settings, reason = BAD[kind]
    ranks.run(trained_and_saved, "untied", tmp_path, "0")
    spoil(tmp_path / "0")
    first, second = ranks.run(refused_and_unchanged, tmp_path, settings)
    for told in (first, second):
        assert re.search(reason, told), told


def poisoned(ranks: Ranks, root: Path) -> str:
    """What a rank is told that saves, when a number of the last one's is infinite."""
    state = State(ranks, "untied")
    if ranks.rank == 1:
        local(state.model.trainable()[EMBEDDINGS])[0] = float("inf")
    with pytest.raises(CheckpointError) as raised:
        state.save(root, "0")
    return str(raised.value)


def test_a_state_that_is_infinite_on_one_rank_is_not_saved(ranks: RankProcesses, tmp_path: Path) -> None:
    for told in ranks.run(poisoned, tmp_path):
        assert f"the weight of '{EMBEDDINGS}' holds NaN or infinite numbers" in told
    assert os.listdir(tmp_path) == []


def tiny_saved(ranks: Ranks, root: Path) -> None:
    trainer = LocalModels(EngineSettings(), device="cpu", ranks=ranks).all_weights("tiny", value_head=False)
    trainer.forward_backward(DATUMS, lb.get_loss("cross_entropy"), "mean")
    trainer.optim_step(AdamParams(learning_rate=1e-2), None)
    trainer.save_state(root, "state", overwrite=False)
    trainer.save_weights(root, "weights", overwrite=False)


@pytest.mark.slow
def test_one_process_goes_on_from_samples_and_exports_what_ranks_saved(
    ranks: RankProcesses, tmp_path: Path, service: lb.ServiceClient
) -> None:
    ranks.run(tiny_saved, tmp_path)
    training = service.create_training_client_from_state_with_optimizer(str(tmp_path / "state"))
    sampler = service.create_sampling_client(model_path=str(tmp_path / "weights"))
    prompt, greedy = lb.ModelInput.from_ints([84, 104, 101]), lb.SamplingParams(max_tokens=4, temperature=0.0)
    saved, loaded = (
        one.sample(prompt, 1, greedy).result().sequences[0]
        for one in (sampler, training.save_weights_and_get_sampling_client())
    )
    assert saved.tokens == loaded.tokens
    assert saved.logprobs == loaded.logprobs
    checked = export(tmp_path / "state", tmp_path / "out")  # which compares what it wrote with the trainer
    assert "differ by at most" in str(checked)
    assert (tmp_path / "out" / "model.safetensors").exists()
    training.forward_backward(DATUMS, "cross_entropy").result()
    assert training.optim_step(AdamParams()).result().step == 2

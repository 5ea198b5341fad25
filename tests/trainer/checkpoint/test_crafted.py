"""Checkpoints that somebody else wrote: whatever is in them, a client takes all of it rightly, or refuses it and is as before."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook.datums.errors import CheckpointError
from lossbook.trainer.checkpoint.folder import Checkpoint, read_checkpoint, write_checkpoint
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
StateOf = Callable[[TrainingClient], dict[str, Any]]


class Saved:
    """A good checkpoint, and a client of the same model in another state; `write` seals changed contents as a new checkpoint."""

    def __init__(self, folder: Path, good: Checkpoint, client: TrainingClient, service: lb.ServiceClient) -> None:
        self.folder, self.good, self.client, self.service = folder, good, client, service

    def write(self, tensors: dict[str, dict[str, torch.Tensor]], manifest: dict[str, Any]) -> str:
        path = write_checkpoint(self.folder, "changed", tensors=tensors, manifest=manifest, overwrite=True)
        return str(path)

    def parts(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        tensors = {key: {name: t.clone() for name, t in group.items()} for key, group in self.good.tensors.items()}
        return tensors, copy.deepcopy(self.good.manifest)


@pytest.fixture
def saved(tmp_path: Path, make_datums: MakeDatums) -> Saved:
    service = lb.ServiceClient(device="cpu", checkpoint_dir=tmp_path)
    client = service.create_lora_training_client("tiny", rank=1, seed=0, train_mlp=False, value_head=True)
    for seed in range(2):
        client.forward_backward(make_datums(2, seed=seed), "cross_entropy").result()
        client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    client.forward_backward(make_datums(2, seed=2), "cross_entropy").result()
    path = client.save_state("good").result().path
    client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    client.forward_backward(make_datums(2, seed=3), "cross_entropy").result()
    return Saved(tmp_path, read_checkpoint(Path(path)), client, service)


def first(group: dict[str, torch.Tensor], prefix: str = "") -> str:
    return next(name for name in sorted(group) if name.startswith(prefix))


def set_first(group: str, value: float, prefix: str = "") -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda tensors, manifest: tensors[group][first(tensors[group], prefix)].fill_(value)


CRAFTED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "no accumulated": (lambda t, m: m.pop("accumulated"), r"MANIFEST.json: manifest.*lacks 'accumulated'"),
    "no base model": (lambda t, m: m.pop("base_model"), r"MANIFEST.json: manifest.base_model: Field required"),
    "a newer key": (lambda t, m: m.update(ema=0.9), r"MANIFEST.json: manifest.ema: Extra inputs are not permitted"),
    "steps of 10**40": (
        lambda t, m: m["optimizer"].update(steps=10**40),
        r"manifest.optimizer.steps: Input should be less",
    ),
    "negative steps": (
        lambda t, m: m["optimizer"].update(steps=-1),
        r"manifest.optimizer.steps: Input should be greater",
    ),
    "steps that are true": (
        lambda t, m: m["optimizer"].update(steps=True),
        r"manifest.optimizer.steps: .*valid integer",
    ),
    "tokens 'many'": (
        lambda t, m: m["accumulated"].update(tokens="many"),
        r"manifest.accumulated.tokens: .*valid integer",
    ),
    "tokens 1.5": (lambda t, m: m["accumulated"].update(tokens=1.5), r"manifest.accumulated.tokens: .*valid integer"),
    "no calls": (lambda t, m: m["accumulated"].update(calls=0), r"accumulated.calls is 0, but there are gradients"),
    "a rank of text": (lambda t, m: m["lora"].update(rank="1"), r"manifest.lora.rank: .*valid integer"),
    "another alpha": (lambda t, m: m["lora"].update(alpha=7.0), r"was saved with lora=.*'alpha': 7.0"),
    "weights of NaN": (set_first("weights", float("nan")), r"weights.safetensors: '.*' holds NaN or infinite numbers"),
    "gradients of infinity": (
        set_first("gradients", float("inf")),
        r"gradients.safetensors: '.*' holds NaN or infinite",
    ),
    "negative squares": (
        set_first("optimizer", -1.0, "exp_avg_sq"),
        r"optimizer.safetensors: 'exp_avg_sq' of .* negative",
    ),
    "moments of NaN": (set_first("optimizer", float("nan"), "exp_avg."), r"optimizer.safetensors: 'exp_avg' of .* NaN"),
    "more steps than there were": (
        set_first("optimizer", 9.0, "step."),
        r"optimizer.safetensors: 'step' of .* is 9 of 2 steps",
    ),
    "half a step": (set_first("optimizer", 0.5, "step."), r"optimizer.safetensors: 'step' of .* is 0.5 of 2 steps"),
    "gradients of another shape": (
        lambda t, m: t["gradients"].update({first(t["gradients"]): torch.zeros(3)}),
        r"gradients.safetensors: '.*' is \[3\] torch.float32, but the model's is",
    ),
    "gradients of something else": (
        lambda t, m: t["gradients"].update({"model.norm.weight": torch.zeros(3)}),
        r"gradients.safetensors has 'model.norm.weight', which is not trained here",
    ),
    "a weight too many": (
        lambda t, m: t["weights"].update(more=torch.zeros(3)),
        r"weights.safetensors has 'more', which is not trained here",
    ),
    "a random state of another size": (
        lambda t, m: t["random"].update(cpu=torch.zeros(7, dtype=torch.uint8)),
        r"random.safetensors: 'cpu' is no random state of this torch",
    ),
    "a random state of zeros": (
        lambda t, m: t["random"]["cpu"].zero_(),
        r"random.safetensors: 'cpu' is no random state",
    ),
    "no random state": (lambda t, m: t["random"].pop("cpu"), r"random.safetensors has no 'cpu'|holds no"),
    "a file of a newer version": (
        lambda t, m: t.update(ema={"x": torch.zeros(1)}),
        r"ema.safetensors, which this lossbook does not know",
    ),
    "no optimizer file": (lambda t, m: t.pop("optimizer"), r"lacks optimizer.safetensors"),
}


@pytest.mark.parametrize(("change", "message"), CRAFTED.values(), ids=CRAFTED.keys())
def test_a_crafted_checkpoint_is_refused_by_file_and_key_and_changes_nothing(
    change: Callable[[dict[str, Any], dict[str, Any]], Any], message: str, saved: Saved, state_of: StateOf
) -> None:
    tensors, manifest = saved.parts()
    change(tensors, manifest)
    path = saved.write(tensors, manifest)
    before = state_of(saved.client)
    with pytest.raises(CheckpointError, match=message) as caught:
        saved.client.load_state(path).result()
    assert path in str(caught.value)
    assert state_of(saved.client) == before
    check_created(saved, path)


def check_created(saved: Saved, path: str) -> None:
    """A client made from the checkpoint holds what is in it, or is refused."""
    try:
        client = saved.service.create_training_client_from_state_with_optimizer(path)
    except CheckpointError:
        return
    again = client.save_state("again", overwrite=True).result().path
    assert held(read_checkpoint(Path(again))) == held(read_checkpoint(Path(path)))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([10**40, -(10**40), 2**53, 2**53 + 1, 0.5, 1e308, "", "many", "tiny", "hub/model", "."])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=3,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested JSON, but the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


def change_manifest(manifest: dict[str, Any], place: int, how: str, key: str, value: Any) -> None:
    known = places(manifest)
    if not known:
        return
    *parents, last = known[place % len(known)]
    inside: Any = manifest
    for parent in parents:
        inside = inside[parent]
    if how == "delete":
        del inside[last]
    elif how != "add":
        inside[last] = value
    elif isinstance(inside, dict):
        inside[key] = value
    else:
        inside.append(value)


TENSOR_CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t + 1,
    "infinite": lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else ~t,
    "negative": lambda t: -t - 1,
    "other numbers": lambda t: t + 1,
    "zeros": torch.zeros_like,
    "flat": lambda t: t.reshape(-1),
    "one more dimension": lambda t: t[None],
    "cut": lambda t: t[: len(t) // 2].clone() if t.ndim else t[None],
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "int64": lambda t: t.long(),
    "empty": lambda t: t.new_zeros(0),
}


def change_tensors(tensors: dict[str, dict[str, torch.Tensor]], place: int, how: str) -> None:
    known = [(group, name) for group in sorted(tensors) for name in sorted(tensors[group])]
    if not known:
        return
    group, name = known[place % len(known)]
    if how in TENSOR_CHANGES:
        tensors[group][name] = TENSOR_CHANGES[how](tensors[group][name])
    elif how == "delete":
        del tensors[group][name]
    elif how == "rename":
        tensors[group][f"{name}x"] = tensors[group].pop(name)
    elif how == "add":
        tensors[group]["another"] = torch.zeros(2)
    elif how == "delete the file":
        del tensors[group]
    else:
        tensors["another"] = {"x": torch.zeros(1)}


PLACE = st.integers(0, 10**6)
OTHERS = ("delete", "rename", "add", "delete the file", "another file")
CHANGES = st.tuples(
    st.just("manifest"), PLACE, st.sampled_from(["set", "delete", "add"]), st.text(max_size=5), JSON
) | st.tuples(st.just("tensors"), PLACE, st.sampled_from([*TENSOR_CHANGES, *OTHERS]))


def held(checkpoint: Checkpoint) -> tuple[Any, ...]:
    """What a client takes from a checkpoint, for `==`."""
    manifest = copy.deepcopy(checkpoint.manifest)
    for listed in ("parameters", "with_moments"):
        manifest["optimizer"][listed] = sorted(manifest["optimizer"][listed])
    manifest.setdefault("value_head", None)
    if isinstance(lora := manifest.get("lora"), dict):
        lora.pop("seed", None)  # how adapters were drawn, which a client that takes others keeps
    tensors = {
        (group, name): (str(t.dtype), t.tolist())
        for group, named in checkpoint.tensors.items()
        for name, t in named.items()
        if (group, name) != ("random", "cuda")  # of another device
    }
    return json.dumps(manifest, sort_keys=True), tensors


def check_whatever(saved: Saved, state_of: StateOf, changes: list[tuple[Any, ...]]) -> None:
    tensors, manifest = saved.parts()
    for what, *change in copy.deepcopy(changes):
        if what == "manifest":
            change_manifest(manifest, *change)
        else:
            change_tensors(tensors, *change)
    path = saved.write(tensors, manifest)
    saved.client.load_state(str(saved.good.path)).result()
    before = state_of(saved.client)
    error = saved.client.load_state(path).exception()
    if error is None:
        again = saved.client.save_state("again", overwrite=True).result().path
        assert held(read_checkpoint(Path(again))) == held(read_checkpoint(Path(path)))
        return
    assert isinstance(error, CheckpointError)
    assert path in str(error)
    assert state_of(saved.client) == before
    check_created(saved, path)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_a_checkpoint_with_anything_changed_is_taken_rightly_or_refused_whole(
    changes: list[tuple[Any, ...]], saved: Saved, state_of: StateOf
) -> None:
    check_whatever(saved, state_of, changes)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_many_checkpoints_with_anything_changed_are_taken_rightly_or_refused_whole(
    changes: list[tuple[Any, ...]], saved: Saved, state_of: StateOf
) -> None:
    check_whatever(saved, state_of, changes)


def test_a_checkpoint_does_not_decide_which_model_is_downloaded(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, manifest = saved.parts()
    path = saved.write(tensors, {**manifest, "base_model": "somebody/else"})
    asked: list[str] = []

    def look(name: str, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        asked.append(name)
        return {}, {}

    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", look)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", look)
    for create in (
        lambda: saved.service.create_training_client_from_state(path),
        lambda: saved.service.create_training_client_from_state_with_optimizer(path),
        lambda: saved.service.create_sampling_client(model_path=path),
        lambda: saved.service.create_reference_client(model_path=path),
        lambda: saved.client.create_sampling_client(path),
    ):
        with pytest.raises(
            CheckpointError, match=r"does not decide what is downloaded. Give base_model='somebody/else' if"
        ):
            create()
    assert asked == []
    with pytest.raises(CheckpointError, match="was saved from 'somebody/else', not from 'tiny'"):
        saved.service.create_training_client_from_state(path, base_model="tiny")
    with pytest.raises(CheckpointError, match="describes a model that cannot be made"):
        saved.service.create_training_client_from_state(path, base_model="somebody/else")
    assert set(asked) == {"somebody/else"}, "given by the caller, it is looked for"


def test_weights_alone_leave_no_gradient_of_a_value_head_behind(saved: Saved) -> None:
    plain = saved.service.create_lora_training_client("tiny", rank=1, seed=0, train_mlp=False)
    path = plain.save_weights_for_sampler("plain").result().path
    saved.client.load_state(path, optimizer=False).result()
    assert all(p.grad is None for p in saved.client.local.model.trainable().values())


def test_a_state_that_nothing_could_go_on_from_is_not_saved(saved: Saved, state_of: StateOf) -> None:
    parameter = next(iter(saved.client.local.model.trainable().values()))
    assert parameter.grad is not None
    parameter.grad.fill_(float("nan"))
    before = state_of(saved.client)
    with pytest.raises(CheckpointError, match=r"the gradient of '.*' holds NaN or infinite numbers"):
        saved.client.save_state("never").result()
    assert state_of(saved.client) == before
    saved.client.discard_gradients().result()
    saved.client.save_state("then").result()

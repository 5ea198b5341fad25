"""Linear weights that are cast once per call give the bits that autocast gives; a failed call leaves the float32 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.verdict import Verdict
from lossbook.trainer.model.weights import narrow
from lossbook.trainer.model.weights.narrow import PROBE, casts_once, linear_parameters

from ..kinds import KINDS, model_of

MakeDatums = Callable[..., list[lb.Datum]]
StateOf = Callable[[TrainingClient], dict[str, Any]]
PARAMS = lb.AdamParams(learning_rate=1e-2)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def client_of(name: str, *, once: bool, tokens: int = 24, **settings: Any) -> TrainingClient:
    """All weights in training, products in bfloat16, several micro-batches per call; once=False: cast by autocast alone."""
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.bfloat16, "tokens_per_micro_batch": tokens, **settings}
    service = lb.ServiceClient(**options)
    client = service.create_training_client(name)
    assert casts_once(client.local.model)
    if not once:
        client.local.model.verdicts[PROBE] = Verdict(False, "for comparison")
    return client


@pytest.mark.parametrize("settings", [{}, {"checkpoint_layers": True}, {"kept_graph_tokens": 0}], ids=str)
@pytest.mark.parametrize("name", ["tiny", "tiny-encoder", "dropout"])
def test_training_in_bfloat16_gives_autocasts_bits(
    name: str, settings: dict[str, Any], make_datums: MakeDatums, model_with_dropout: str, state_of: StateOf
) -> None:
    source = model_with_dropout if name == "dropout" else name
    kind = {"tiny-encoder": "info_nce"}.get(name, "cross_entropy")
    states = []
    for once in (True, False):
        torch.manual_seed(0)
        client = client_of(source, once=once, dropout=name == "dropout", **settings)
        for step in range(2):
            for part in (1, 2):
                client.forward_backward(make_datums(6, seed=10 * step + part), kind).result()
            if step == 0:
                client.optim_step(PARAMS).result()
        states.append((state_of(client), client.forward(make_datums(4), kind).result().metrics))
    assert states[0] == states[1]


@needs_cuda
def test_on_a_gpu_too_the_bits_are_autocasts(make_datums: MakeDatums, state_of: StateOf) -> None:
    states = []
    for once in (True, False):
        client = client_of("tiny", once=once, device="cuda", deterministic=True)
        for seed in (1, 2):
            client.forward_backward(make_datums(6, seed=seed), "cross_entropy").result()
            client.optim_step(PARAMS).result()
        client.forward_backward(make_datums(6), "cross_entropy").result()
        states.append(state_of(client))
    assert states[0] == states[1]


@pytest.mark.parametrize("kind", KINDS)
def test_any_architecture_gives_autocasts_bits_or_is_left_to_autocast(kind: str, make_datums: MakeDatums) -> None:
    gradients = []
    for once in (True, False):
        model = model_of(KINDS[kind]())
        for p in model.module.parameters():
            p.data = p.data.bfloat16()
        model.train_all_weights()
        for p in model.module.parameters():  # weights that bfloat16 rounds, as after a step
            p.data = p.data * 1.003
        engine = Engine(model, EngineSettings(tokens_per_micro_batch=24))
        if not once:
            model.verdicts[PROBE] = Verdict(False, "for comparison")
        elif not casts_once(model):
            assert "float32 too" in casts_once(model).reason
            return
        output = engine.forward_backward(short_vocabulary(make_datums(4)), lb.get_loss("cross_entropy"))
        gradients.append((output.metrics, {name: p.grad for name, p in model.trainable().items()}))
    assert gradients[0][0] == gradients[1][0]
    for name, gradient in gradients[0][1].items():
        other = gradients[1][1][name]
        assert (gradient is None) == (other is None)
        assert gradient is None or other is None or (gradient.dtype == other.dtype and torch.equal(gradient, other)), (
            name
        )


def short_vocabulary(datums: list[lb.Datum]) -> list[lb.Datum]:
    """The datums with tokens below 96."""
    return [
        lb.Datum(
            lb.ModelInput.from_ints([token % 96 for token in datum.model_input.to_ints()]),
            {
                "target_tokens": datum.loss_fn_inputs["target_tokens"].to_numpy() % 96,
                "weights": datum.loss_fn_inputs["weights"].to_numpy(),
            },
        )
        for datum in datums
    ]


def test_what_reads_a_weight_in_float32_too_is_left_to_autocast() -> None:
    class Careful(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return nn.functional.linear(input.float(), self.weight.float())

    model = load_model("tiny", device="cpu", dtype=torch.bfloat16).train_all_weights()
    layer: Any = model.backbone.get_submodule("layers.0.mlp.down_proj")
    layer.__class__ = Careful
    verdict = casts_once(model)
    assert not verdict
    assert verdict.reason == "LlamaForCausalLM reads linear weights in float32 too"


def test_an_embedding_that_is_the_head_too_stays_float32() -> None:
    model = load_model("tiny", device="cpu", dtype=torch.bfloat16).train_all_weights()
    embedding = model.module.get_input_embeddings().weight  # type: ignore[operator]
    assert all(p is not embedding for p in linear_parameters(model))


@contextmanager
def casts() -> Iterator[list[str]]:
    """The casts and foreach operations inside."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name() in ("aten::_to_copy", "aten::_foreach_copy_", "aten::_foreach_add_.List"):
                seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


def test_two_casts_per_weight_and_micro_batch_are_saved(make_datums: MakeDatums) -> None:
    counts = {}
    for once in (True, False):
        model = load_model("tiny", device="cpu", dtype=torch.bfloat16).train_all_weights()
        engine = Engine(model, EngineSettings(tokens_per_micro_batch=24))
        if not once:
            model.verdicts[PROBE] = Verdict(False, "for comparison")
        with casts() as seen:
            output = engine.forward_backward(make_datums(8), lb.get_loss("cross_entropy"))
        counts[once] = seen
    parts, weights = int(output.metrics["micro_batches"]), len(linear_parameters(model))
    assert parts > 2
    saved = counts[False].count("aten::_to_copy") - counts[True].count("aten::_to_copy")
    assert saved == 2 * parts * weights
    assert counts[True].count("aten::_foreach_copy_") == 1 + parts
    assert counts[True].count("aten::_foreach_add_.List") == parts - 1
    assert not counts[False].count("aten::_foreach_copy_")


@pytest.mark.parametrize("waiting", [0, 20_000])
def test_gradients_that_wait_are_added_before_they_take_much_memory(
    waiting: int, make_datums: MakeDatums, state_of: StateOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for limit in (narrow.WAITING_BYTES, waiting):
        monkeypatch.setattr(narrow, "WAITING_BYTES", limit)
        client = client_of("tiny", once=True)
        client.forward_backward(make_datums(8), "cross_entropy").result()
        states.append(state_of(client))
    assert states[0] == states[1]


@pytest.mark.parametrize("accumulated", [False, True])
def test_a_failed_call_leaves_the_float32_weights_and_their_gradients(
    accumulated: bool, make_datums: MakeDatums, state_of: StateOf
) -> None:
    client, calls = client_of("tiny", once=True), []
    if accumulated:
        client.forward_backward(make_datums(3), "cross_entropy").result()

    def failing(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the second backward")

    before = state_of(client)
    layer: Any = client.local.model.backbone.get_submodule("layers.0.mlp.down_proj")
    hook = layer.weight.register_post_accumulate_grad_hook(failing)
    with pytest.raises(RuntimeError, match="in the second backward"):
        client.forward_backward(make_datums(8), "cross_entropy").result()
    hook.remove()
    assert state_of(client) == before
    assert {p.dtype for p in client.local.model.module.parameters()} == {torch.float32}


def test_checkpoints_exports_and_samplers_see_the_float32_weights(make_datums: MakeDatums, tmp_path: Path) -> None:
    clients = [client_of("tiny", once=once, checkpoint_dir=tmp_path) for once in (True, False)]
    prints = []
    for number, client in enumerate(clients):
        client.forward_backward(make_datums(4), "cross_entropy").result()
        client.optim_step(PARAMS).result()
        saved = client.save_state(f"state{number}").result().path
        client.forward_backward(make_datums(4, seed=1), "cross_entropy").result()
        client.optim_step(PARAMS).result()
        client.load_state(saved).result()
        client.forward_backward(make_datums(4, seed=2), "cross_entropy").result()
        client.optim_step(PARAMS).result()
        prints.append(client.create_reference_client().fingerprint().result())
    assert prints[0] == prints[1]


def test_how_weights_are_cast_is_told(service: lb.ServiceClient) -> None:
    client = client_of("tiny", once=True)
    assert client.get_info().narrow_weights == len(linear_parameters(client.local.model)) > 0
    assert "casts its linear weights once per call" in client.how_it_runs().result()
    plain = service.create_training_client("tiny")
    assert plain.get_info().narrow_weights == 0
    assert "casts" not in plain.how_it_runs().result()

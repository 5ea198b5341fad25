"""One attention call per layer, as on CUDA: the numbers of attention block by block, or attention block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lossbook as lb
from lossbook.benchmarks.varlen_on_cpu import as_flash_attention, register_varlen_on_cpu
from lossbook.trainer.device import taking_gpu_path
from lossbook.trainer.engine.activation_memory import layers_as_set
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.packing import layouts
from lossbook.trainer.packing.attention import Layout
from lossbook.trainer.packing.block_attention import BlockAttention
from lossbook.trainer.packing.hidden import choose_batching, hidden_states, packing_way
from lossbook.trainer.packing.paths import attention_path
from lossbook.trainer.packing.rows import pack_row
from lossbook.trainer.packing.varlen import VarlenAttention

from ..kinds import KINDS, SIZES, model_of
from .test_attention import PACKED, SEQUENCES, decoder, gradients
from .test_probes import check_each_datum
from .test_rows import batches

#: Heads of queries and keys larger than those of values, neither a multiple of 8.
UNEVEN = transformers.DeepseekV3Config(
    **SIZES | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 7, "v_head_dim": 6},
    **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 2},
)
#: Heads of 10 numbers.
SMALL_HEADS = transformers.LlamaConfig(**SIZES | {"head_dim": 10})


@pytest.fixture(autouse=True)
def gpu_path() -> Iterator[None]:
    register_varlen_on_cpu()
    with taking_gpu_path():
        yield


class Operations(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        name = operation.name()
        self.counts[name] = self.counts.get(name, 0) + 1
        return operation(*given, **(options or {}))


@settings(max_examples=60)
@given(
    sequences=batches().filter(len),
    share=st.booleans(),
    group=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 2, 5, 24, 400]),
    scaling=st.sampled_from([None, 0.7]),
    depths=st.sampled_from([(8, 8), (5, 3), (3, 9)]),
)
def test_one_call_gives_what_blocks_give(
    sequences: list[np.ndarray],
    share: bool,
    group: int,
    window: int | None,
    scaling: float | None,
    depths: tuple[int, int],
) -> None:
    row = pack_row(sequences, share=share)
    torch.manual_seed(0)
    depth, width = depths
    shapes = (4, depth), (4 // group, depth), (4 // group, width)
    inputs = [torch.randn(len(row.tokens), *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    upstream = torch.randn(len(row.tokens), 4, width, dtype=torch.float64)
    results: list[list[Tensor]] = []
    for kind in (VarlenAttention, BlockAttention):
        layout = kind(row.blocks).to(torch.device("cpu"))
        attended = layout.attend(*inputs, dropout=0.0, scaling=scaling, window=window)
        results.append([attended, *torch.autograd.grad(attended, inputs, upstream)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [*PACKED.values(), UNEVEN], ids=[*PACKED, "uneven heads"])
def test_hidden_states_and_gradients_of_a_model_are_those_of_blocks(config: Any) -> None:
    model = decoder(config)
    assert attention_path(model) == "varlen"
    results = [layouts.sharing(model, SEQUENCES, path).run(model) for path in ("varlen", "blocks")]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    ours, theirs = (gradients(model, hidden) for hidden in results)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12 * float(gradient.abs().max()) + 1e-15)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2)
@given(data=st.data())
def test_each_datum_has_the_numbers_of_its_own_forward(kind: str, data: st.DataObject) -> None:
    model = model_of(KINDS[kind]()).train_all_weights()
    if packing_way(model) is not None:
        check_each_datum(model, data)


@pytest.mark.parametrize("kind", ["grouped queries", "a window", "no positions"])
def test_a_layer_makes_one_call_for_the_row_and_gathers_only_where_a_prefix_is_shared(kind: str) -> None:
    model = model_of(KINDS[kind]())
    assert choose_batching(model, None) == "packed"
    for sequences, gathers in ((SEQUENCES, 2), ([s + 1 for s in SEQUENCES[3:]], 0)):
        with Operations() as operations:
            hidden_states(model, sequences, "packed")
        assert operations.counts["torch_attn::_varlen_attn"] == 2, "layers"
        assert operations.counts.get("aten::index_select", 0) == 2 * gathers
        assert not [name for name in operations.counts if "scaled_dot_product" in name or "softmax" in name]


def test_rows_are_padded_where_attention_would_run_block_by_block() -> None:
    with as_flash_attention():
        model = model_of(
            SMALL_HEADS
        )  # of a size that no other test tries with the operation, which would be remembered
        assert choose_batching(model, None) == "padded"
        assert choose_batching(model, "packed") == "packed"
        assert attention_path(model) == "blocks"


def test_bfloat16_products_of_float32_weights_run_in_one_call() -> None:
    model = model_of(KINDS["grouped queries"]())
    model.module.bfloat16()
    model.train_all_weights()
    assert attention_path(model) == "varlen"
    dtypes: list[torch.dtype] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), options: Any = None) -> Any:
            if operation.name() == "torch_attn::_varlen_attn":
                dtypes.extend(x.dtype for x in given[:3])
            return operation(*given, **(options or {}))

    with model.precision(), Noting():
        one_call = hidden_states(model, SEQUENCES, "packed")
    assert set(dtypes) == {torch.bfloat16}
    with model.precision():
        by_blocks = layouts.sharing(model, SEQUENCES, "blocks").run(model)
    assert float((one_call - by_blocks).detach().norm() / by_blocks.detach().norm()) < 0.02


class WrongWindow(VarlenAttention):
    """Sees one token too many."""

    def attend(self, *given: Tensor, window: int | None, **options: Any) -> Tensor:
        return super().attend(*given, window=None if window is None else window + 1, **options)


class WrongGradient(VarlenAttention):
    """Its outputs are right."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return super().attend(query, key + 0.1 * (key.detach() - key), value, **options)


class NotANumber(VarlenAttention):
    def attend(self, *given: Tensor, **options: Any) -> Tensor:
        return super().attend(*given, **options) * float("nan")


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (WrongWindow, "a window longer than a probe"),
        (WrongGradient, "grouped queries"),
        (NotANumber, "grouped queries"),
    ],
)
def test_an_operation_that_is_wrong_is_not_used(
    wrong: type[Layout], kind: str, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(layouts.LAYOUTS, "varlen", wrong)
    model = model_of(KINDS[kind]())
    if narrow:
        model.module.bfloat16()
    assert attention_path(model) == "blocks"
    assert "of 8 in torch." in model.verdicts["varlen"].reason
    assert "off by" in model.verdicts["varlen"].reason


def test_an_operation_that_refuses_is_not_used_and_its_words_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(VarlenAttention):
        def attend(self, *given: Tensor, **options: Any) -> Tensor:
            raise RuntimeError("FlashAttention only supports\nAmpere GPUs or newer.")

    monkeypatch.setitem(layouts.LAYOUTS, "varlen", Refusing)
    model = model_of(KINDS["grouped queries"]())
    assert attention_path(model) == "blocks"
    reason = model.verdicts["varlen"].reason
    assert reason == "not for heads of 8 in torch.float32: FlashAttention only supports Ampere GPUs or newer."
    sequences = [list(range(3, 9)), list(range(7, 47))]
    apart = torch.cat([model.backbone(input_ids=torch.tensor([s])).last_hidden_state[0] for s in sequences])
    torch.testing.assert_close(hidden_states(model, sequences, "packed"), apart, rtol=1e-4, atol=1e-4)


def test_a_torch_whose_operation_has_no_window_or_scale_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn(query: Tensor, key: Tensor, value: Tensor, *lengths: Any, is_causal: bool = False) -> Tensor:
        raise AssertionError("of torch 2.10")

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
    model = model_of(transformers.LlamaConfig(**SIZES | {"head_dim": 24}))  # what was tried before is not tried again
    assert attention_path(model) == "blocks"
    assert "has no scale and no window_size" in model.verdicts["varlen"].reason


def test_dropout_in_attention_draws_as_block_by_block(model_with_dropout: str) -> None:
    model = load_model(model_with_dropout, device="cpu").train_all_weights()
    assert attention_path(model) == "varlen"
    model.module.train()
    results: list[Tensor] = []
    for path in ("varlen", "blocks"):
        torch.manual_seed(0)
        results.append(layouts.blocks(model, SEQUENCES[1:3], path).run(model))
    assert torch.equal(*results)


def test_a_mask_goes_with_as_many_heads_of_keys_as_of_queries() -> None:
    """CUDA's fast kernels take fewer heads of keys only without a mask."""
    seen: list[tuple[bool, bool]] = []

    class Noting(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
            if function is torch.nn.functional.scaled_dot_product_attention:
                seen.append((options["attn_mask"] is not None, options["enable_gqa"]))
            return function(*given, **(options or {}))

    model = model_of(KINDS["grouped queries"]())
    with Noting():
        together = layouts.sharing(model, SEQUENCES, "blocks").run(model)
    assert set(seen) == {(True, False), (False, True)}
    torch.testing.assert_close(together, layouts.sharing(model, SEQUENCES, "varlen").run(model), rtol=1e-5, atol=1e-5)


def test_a_client_says_how_attention_runs(make_datums: Any) -> None:
    client = lb.ServiceClient(device="cpu").create_training_client("tiny")
    assert client.get_info().attention == "varlen"
    assert client.how_it_runs().result().startswith("packs, one attention call per layer; ")
    padded = lb.ServiceClient(device="cpu", batching="padded").create_training_client("tiny")
    assert padded.get_info().attention == "sdpa"


def test_a_checkpointed_layer_makes_its_call_again_in_the_backward_and_changes_no_number() -> None:
    model = decoder(PACKED["windows in some layers"])
    assert choose_batching(model, None) == "packed"
    results: list[dict[str, Tensor]] = []
    counts: list[int] = []
    for checkpointed in (False, True):
        with layers_as_set(model, EngineSettings(checkpoint_layers=checkpointed)), Operations() as operations:
            hidden = hidden_states(model, SEQUENCES, "packed")
            results.append(gradients(model, hidden))
        counts.append(operations.counts["torch_attn::_varlen_attn"])
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" not in operations.counts
    assert counts == [2, 4]
    for name, gradient in results[0].items():
        assert torch.equal(results[1][name], gradient), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_layers_hold_the_call_and_are_compiled_once_for_all_rows() -> None:
    torch._dynamo.reset()
    model = model_of(KINDS["grouped queries"]()).train_all_weights()
    assert choose_batching(model, None) == "packed"
    torch._dynamo.utils.counters.clear()
    graphs: list[int] = []
    for rows in (SEQUENCES, SEQUENCES[3:], SEQUENCES[:2]):
        expected = gradients(model, hidden_states(model, rows, "packed"))
        with layers_as_set(model, EngineSettings(compile_layers=True)):
            ours = gradients(model, hidden_states(model, rows, "packed"))
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-4 * float(gradient.abs().max()) + 1e-6)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert not torch._dynamo.utils.counters["graph_break"]
    assert graphs == [1, 2, 2], "one where a prefix is shared, one where none is"

"""A step equals torch's AdamW bit for bit, a refused step changes nothing, and a resumed run is the same run."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lossbook.datums.errors import CheckpointError, NonFiniteGradientError, OptimizerError
from lossbook.datums.types import AdamParams
from lossbook.trainer.device import taking_gpu_path
from lossbook.trainer.optim.adamw import AdamW

SHAPES = {"embed.weight": (5, 3), "layer.bias": (7,), "scale": (), "long": (3, 2, 700)}
PARAMS = AdamParams(learning_rate=1e-2, weight_decay=0.01)


def make_parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def set_gradients(parameters: dict[str, Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in parameters.values():
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)


def snapshot(parameters: dict[str, Parameter], optimizer: AdamW) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "weights": {name: p.detach() for name, p in parameters.items()},
            "gradients": {name: p.grad for name, p in parameters.items()},
            "state": optimizer.state_tensors(),
            "meta": optimizer.meta(),
        }
    )


def assert_same(left: Any, right: Any) -> None:
    """Bit for bit, NaN equal to NaN."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    else:
        assert left == right


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_ten_steps_equal_torchs_adamw_bit_for_bit(dtype: torch.dtype, weight_decay: float) -> None:
    ours, theirs = make_parameters(dtype=dtype), make_parameters(dtype=dtype)
    optimizer = AdamW(ours)
    reference = torch.optim.AdamW(
        theirs.values(),
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-12,
        weight_decay=weight_decay,
        fused=dtype == torch.float32 or None,
    )
    for step in range(10):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        metrics = optimizer.step(AdamParams(learning_rate=1e-2, weight_decay=weight_decay))
        reference.step()
        assert metrics["step"] == step + 1
    assert_same({name: p.detach() for name, p in ours.items()}, {name: p.detach() for name, p in theirs.items()})
    state = optimizer.state_tensors()
    for name, p in theirs.items():
        for key, value in reference.state[p].items():
            assert_same(state[f"{key}.{name}"], value)


def test_the_defaults_of_a_step_are_tinkers() -> None:
    params = AdamParams()
    assert (params.learning_rate, params.beta1, params.beta2, params.eps) == (1e-4, 0.9, 0.95, 1e-12)
    assert (params.weight_decay, params.grad_clip_norm) == (0.0, 0.0)


def test_the_first_step_moves_each_weight_by_the_learning_rate_against_its_gradient() -> None:
    # m / (1 - beta1) = g and v / (1 - beta2) = g^2, so the update is lr * g / |g|; on paper, whatever the betas
    parameters = {"w": Parameter(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))}
    parameters["w"].grad = torch.tensor([3.0, -0.001, 0.0], dtype=torch.float64)
    AdamW(parameters).step(AdamParams(learning_rate=0.25))
    torch.testing.assert_close(parameters["w"].detach(), torch.tensor([0.75, 1.25, 1.0], dtype=torch.float64))


def test_each_step_takes_its_own_numbers() -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer, reference = AdamW(ours), torch.optim.AdamW(theirs.values(), fused=True)
    for step, params in enumerate([PARAMS, AdamParams(learning_rate=0.5, beta1=0.0, beta2=0.999, eps=1e-3)]):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        reference.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        optimizer.step(params)
        reference.step()
    assert_same({n: p.detach() for n, p in ours.items()}, {n: p.detach() for n, p in theirs.items()})


def test_gradients_are_cleared_by_a_step() -> None:
    parameters = make_parameters()
    set_gradients(parameters, 0)
    AdamW(parameters).step(PARAMS)
    assert all(p.grad is None for p in parameters.values())


def test_parameters_without_a_gradient_take_no_part() -> None:
    parameters = make_parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    set_gradients(parameters, 0)
    parameters["scale"].grad = None
    optimizer = AdamW(parameters)
    metrics = optimizer.step(AdamParams(learning_rate=0.1, weight_decay=0.5))
    assert torch.equal(parameters["scale"], before["scale"])
    assert not torch.equal(parameters["layer.bias"], before["layer.bias"])
    assert metrics["parameters_updated"] == 5 * 3 + 7 + 3 * 2 * 700
    assert "scale" not in optimizer.meta()["with_moments"]


def test_a_learning_rate_of_zero_is_a_step_that_moves_no_weight() -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    set_gradients(parameters, 0)
    assert optimizer.step(AdamParams(learning_rate=0.0, weight_decay=0.1))["step"] == 1
    assert_same({name: p.detach() for name, p in parameters.items()}, before)
    assert optimizer.state_tensors()["step.scale"] == 1
    assert optimizer.state_tensors()["exp_avg.embed.weight"].abs().sum() > 0


def test_the_divisor_divides_the_gradients_before_the_clip() -> None:
    ours, theirs = make_parameters(), make_parameters()
    set_gradients(ours, 0, scale=100.0)
    set_gradients(theirs, 0, scale=100.0)
    for p in theirs.values():
        assert p.grad is not None
        p.grad.div_(37.0)
    norm = math.hypot(*(float(p.grad.double().norm()) for p in theirs.values() if p.grad is not None))
    metrics = AdamW(ours).step(replace(PARAMS, grad_clip_norm=1e6), divisor=37.0)
    torch.optim.AdamW(theirs.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.01, fused=True).step()
    assert_same({n: p.detach() for n, p in ours.items()}, {n: p.detach() for n, p in theirs.items()})
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert metrics["grad_norm_clipped"] == metrics["grad_norm"], "1e6 is above the norm only after the division"


@pytest.mark.parametrize(
    ("clip", "applied"),
    [
        pytest.param(0.0, 5.0, id="0 means no clipping"),
        pytest.param(10.0, 5.0, id="a bound above the norm changes nothing"),
        pytest.param(math.inf, 5.0, id="an infinite bound changes nothing"),
        pytest.param(2.5, 2.5, id="a bound below the norm is the norm"),
    ],
)
def test_clipping_scales_all_gradients_to_the_bound(clip: float, applied: float) -> None:
    # gradients 3 and 4: norm 5. A first moment of beta1 = 0 is the gradient that was applied.
    parameters = {name: Parameter(torch.zeros(1, dtype=torch.float64)) for name in ("a", "b")}
    for p, gradient in zip(parameters.values(), (3.0, 4.0), strict=True):
        p.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer = AdamW(parameters)
    metrics = optimizer.step(AdamParams(beta1=0.0, grad_clip_norm=clip))
    state = optimizer.state_tensors()
    assert metrics["grad_norm"] == pytest.approx(5.0, rel=1e-12)
    assert metrics["grad_norm_clipped"] == pytest.approx(applied, rel=1e-12)
    assert state["exp_avg.a"].item() == pytest.approx(3 * applied / 5, rel=1e-12)
    assert state["exp_avg.b"].item() == pytest.approx(4 * applied / 5, rel=1e-12)


def test_clipping_agrees_with_torchs_clip_grad_norm() -> None:
    ours, theirs = make_parameters(dtype=torch.float64), make_parameters(dtype=torch.float64)
    optimizer = AdamW(ours)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        metrics = optimizer.step(replace(PARAMS, grad_clip_norm=0.5, beta1=0.0))
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-12)
        for name, p in theirs.items():
            # torch divides by norm + 1e-6, which is all they may differ by
            torch.testing.assert_close(optimizer.state_tensors()[f"exp_avg.{name}"], p.grad, rtol=1e-6, atol=0)


gradient_values = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(values=st.lists(st.lists(gradient_values, min_size=1, max_size=9), min_size=1, max_size=4))
def test_the_gradient_norm_neither_overflows_nor_vanishes(values: list[list[float]]) -> None:
    parameters = {str(i): Parameter(torch.zeros(len(row))) for i, row in enumerate(values)}
    for p, row in zip(parameters.values(), values, strict=True):
        p.grad = torch.tensor(row, dtype=torch.float32)
    # float64 holds the squares of every float32; a clip of 1 keeps Adam's own squares finite
    expected = math.hypot(*(x for row in values for x in row))
    metrics = AdamW(parameters).step(AdamParams(grad_clip_norm=1.0))
    assert metrics["grad_norm"] == pytest.approx(expected, rel=2e-6, abs=0)
    assert metrics["grad_norm_clipped"] == pytest.approx(min(expected, 1.0), rel=2e-6, abs=0)
    assert all(bool(torch.isfinite(p).all()) for p in parameters.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["in one row", "transposed in memory"])
@pytest.mark.parametrize("path", [nullcontext, taking_gpu_path], ids=["on a CPU", "as on a GPU"])
def test_the_gradient_norm_of_a_million_numbers_is_numpys(
    dtype: torch.dtype, layout: str, path: Callable[[], AbstractContextManager[None]]
) -> None:
    values = torch.full((1000, 1003), 0.1).to(dtype)  # equal numbers: where rounding adds up worst
    parameters = {"w": Parameter(torch.zeros_like(values)), "scale": Parameter(torch.zeros((), dtype=dtype))}
    parameters["w"].grad = values.t().contiguous().t() if layout == "transposed in memory" else values
    parameters["scale"].grad = torch.tensor(3.0, dtype=dtype)
    squares = np.square(values.double().numpy()).sum(dtype=np.float64) + 9
    with path():
        metrics = AdamW(parameters).step(PARAMS)
    in_float64 = dtype == torch.float64 or path is taking_gpu_path
    assert metrics["grad_norm"] == pytest.approx(math.sqrt(squares), rel=1e-10 if in_float64 else 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_steps_as_a_cpu_does_and_waits_once() -> None:
    ours, theirs = make_parameters(), {name: Parameter(p.detach().cuda()) for name, p in make_parameters().items()}
    on_cpu, on_gpu, params = AdamW(ours), AdamW(theirs), replace(PARAMS, grad_clip_norm=0.5)
    for step in range(3):
        set_gradients(ours, step)
        for name, p in theirs.items():
            gradient = ours[name].grad
            assert gradient is not None
            p.grad = gradient.cuda()
        expected = on_cpu.step(params, divisor=3.0)
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            metrics = on_gpu.step(params, divisor=3.0)
            torch.cuda.set_sync_debug_mode("default")
        assert len([one for one in waits if "synchroniz" in str(one.message)]) == 1
        assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)
    for name, p in ours.items():
        torch.testing.assert_close(theirs[name].detach().cpu(), p.detach(), rtol=1e-5, atol=1e-6)


class Dispatched(TorchDispatchMode):
    """Lists the operations dispatched inside, apart from views, empty tensors and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        others = ("empty", "_local_scalar_dense", "profiler")
        if not func.is_view and not any(name in func.name() for name in others):
            self.operations.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "by foreach"])
@pytest.mark.parametrize("number", [2, 300])
def test_a_step_takes_twenty_operations_and_one_read_for_any_number_of_parameters(
    number: int, dtype: torch.dtype
) -> None:
    # of these a GPU launches each once for all parameters; the first step makes the moments too
    parameters = {str(i): Parameter(torch.ones(2, 3, dtype=dtype)) for i in range(number)}
    optimizer = AdamW(parameters)
    for _ in range(2):
        for p in parameters.values():
            p.grad = torch.ones_like(p)
        with taking_gpu_path(), Dispatched() as dispatched, reads() as seen:
            optimizer.step(replace(PARAMS, grad_clip_norm=0.5), divisor=3.0)
        assert len(dispatched.operations) <= 20, dispatched.operations
        own = [
            name for name in seen if dtype == torch.float32 or name != "item"
        ]  # torch's step counters lie on the host
        assert own == ["tolist"]


@contextmanager
def reads() -> Iterator[list[str]]:
    """The calls inside that bring numbers of a tensor to the host."""
    seen: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu", "numpy"):
                seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


def transposed(values: torch.Tensor) -> torch.Tensor:
    return values.t().contiguous().t()


LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "gradient transposed in memory": (torch.clone, transposed),
    "parameter transposed in memory": (transposed, torch.clone),
    "both transposed in memory": (transposed, transposed),
    "parameter with gaps in memory": (lambda v: torch.stack([v, v], dim=2)[..., 0], torch.clone),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_keep_their_own_gradient_whatever_the_layout_in_memory(layout: str) -> None:
    """torch's fused kernel alone gets this wrong: it pairs entries by their place in memory."""
    generator = torch.Generator().manual_seed(0)
    weight, gradients = torch.randn(4, 3, generator=generator), torch.randn(3, 4, 3, generator=generator)
    lay_weight, lay_gradient = LAYOUTS[layout]
    ours, theirs = {"w": Parameter(lay_weight(weight))}, {"w": Parameter(weight.clone())}
    optimizer, reference = AdamW(ours), torch.optim.AdamW(theirs.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-12)
    for gradient in gradients:
        ours["w"].grad, theirs["w"].grad = lay_gradient(gradient), gradient.clone()
        optimizer.step(AdamParams(learning_rate=1e-2))
        reference.param_groups[0]["weight_decay"] = 0.0
        reference.step()
        state, meta = optimizer.state_tensors(), optimizer.meta()
        optimizer = AdamW(ours)
        optimizer.load_state_tensors(state, meta)
    torch.testing.assert_close(ours["w"], theirs["w"], rtol=1e-6, atol=1e-6)


BAD_PARAMS = [
    ("learning_rate", value, "a number >= 0 and finite. Usual: 1e-4") for value in (-1e-4, math.nan, math.inf, None)
] + [
    *[("beta1", value, r"a number in \[0, 1\). Usual: 0.9") for value in (-0.1, 1.0, math.nan)],
    *[("beta2", value, r"a number in \[0, 1\). Usual: 0.95") for value in (-0.1, 1.0, math.nan, "0.95")],
    *[("eps", value, "a number > 0 and finite. Usual: 1e-12") for value in (0.0, -1e-8, math.nan, math.inf)],
    *[("weight_decay", value, "a number >= 0 and finite. Usual: 0.0") for value in (-0.1, math.nan, math.inf)],
    *[("grad_clip_norm", value, "a number >= 0. Usual: 1.0, or 0.0") for value in (-1.0, math.nan)],
]


@pytest.mark.parametrize(("field", "value", "remedy"), BAD_PARAMS)
def test_an_impossible_number_is_refused_by_name_and_changes_nothing(field: str, value: Any, remedy: str) -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    set_gradients(parameters, 0)
    before = snapshot(parameters, optimizer)
    with pytest.raises(OptimizerError, match=rf"AdamParams.{field} is .*; it must be {remedy}"):
        optimizer.step(replace(PARAMS, **{field: value}))
    assert_same(snapshot(parameters, optimizer), before)


def test_numbers_of_numpy_are_taken() -> None:
    parameters = make_parameters()
    set_gradients(parameters, 0)
    metrics = AdamW(parameters).step(AdamParams(learning_rate=np.float32(0.5), weight_decay=np.float64(0)))  # type: ignore[arg-type]
    assert metrics["learning_rate"] == 0.5


@pytest.mark.parametrize("divisor", [0.0, -3.0, math.nan, math.inf, 5e-324])
def test_a_divisor_that_is_not_a_positive_count_is_refused(divisor: float) -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    set_gradients(parameters, 0)
    before = snapshot(parameters, optimizer)
    with pytest.raises(OptimizerError, match=r"gradients cannot be divided by .* grad_accumulation_normalization"):
        optimizer.step(PARAMS, divisor=divisor)
    assert_same(snapshot(parameters, optimizer), before)


def test_a_step_with_nothing_accumulated_is_refused() -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    set_gradients(parameters, 0)
    optimizer.step(PARAMS)
    before = snapshot(parameters, optimizer)
    with pytest.raises(OptimizerError, match=r"nothing to apply: no parameter has a gradient. Call forward_backward"):
        optimizer.step(PARAMS)
    assert_same(snapshot(parameters, optimizer), before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("warm", [False, True], ids=["first step", "later step"])
def test_a_non_finite_gradient_is_refused_and_changes_nothing(value: float, warm: bool) -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    if warm:
        set_gradients(parameters, 0)
        optimizer.step(PARAMS)
    set_gradients(parameters, 1)
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    gradients["layer.bias"][[2, 5]] = value
    gradients["long"][0, 0, 0] = math.nan
    before = snapshot(parameters, optimizer)
    message = r"gradient of 'layer.bias' is NaN or infinite at 2 of 7 entries \(2 of 4 parameters.*Nothing was changed"
    with pytest.raises(NonFiniteGradientError, match=message):
        optimizer.step(replace(PARAMS, grad_clip_norm=1.0), divisor=3.0)
    assert_same(snapshot(parameters, optimizer), before)


@pytest.mark.parametrize(
    ("gradient", "divisor", "refused"),
    [
        pytest.param(1e18, 1.0, False, id="its square is finite in float32"),
        pytest.param(1e20, 1.0, True, id="its square is not"),
        pytest.param(1e20, 1e3, False, id="its square is, after the division"),
        pytest.param(1e10, 1e-12, True, id="the division makes it too large"),
    ],
)
def test_a_gradient_whose_square_overflows_is_refused_for_it_would_freeze_the_weight(
    gradient: float, divisor: float, refused: bool
) -> None:
    parameters = {"w": Parameter(torch.zeros(3))}
    optimizer = AdamW(parameters)
    parameters["w"].grad = torch.full((3,), gradient)
    before = snapshot(parameters, optimizer)
    if refused:
        with pytest.raises(NonFiniteGradientError, match=r"gradient of 'w' reaches .* whose square overflows"):
            optimizer.step(PARAMS, divisor=divisor)
        assert_same(snapshot(parameters, optimizer), before)
    else:
        optimizer.step(PARAMS, divisor=divisor)
        assert bool(torch.isfinite(optimizer.state_tensors()["exp_avg_sq.w"]).all())


def test_running_out_of_memory_for_the_moments_leaves_the_gradients_undivided(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    set_gradients(parameters, 0)
    before = snapshot(parameters, optimizer)
    real, calls = torch.empty_like, []

    def empty_like(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("simulated")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "empty_like", empty_like)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(replace(PARAMS, grad_clip_norm=0.1), divisor=3.0)
    assert_same(snapshot(parameters, optimizer), before)


def run(parameters: dict[str, Parameter], optimizer: AdamW, steps: range) -> None:
    for step in steps:
        set_gradients(parameters, step)
        if step % 3 == 1:
            parameters["scale"].grad = None  # its own step count falls behind
        optimizer.step(replace(PARAMS, grad_clip_norm=1.0), divisor=7.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("saved_at", [0, 1, 2, 4])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit_and_a_cold_one_is_not(
    saved_at: int, dtype: torch.dtype
) -> None:
    whole = make_parameters(dtype=dtype)
    optimizer = AdamW(whole)
    run(whole, optimizer, range(saved_at))
    weights = {name: p.detach().clone() for name, p in whole.items()}
    state, meta = optimizer.state_tensors(), copy.deepcopy(optimizer.meta())
    run(whole, optimizer, range(saved_at, 8))

    resumed = {name: Parameter(value.clone()) for name, value in weights.items()}
    resumed_optimizer = AdamW(resumed)
    resumed_optimizer.load_state_tensors(state, meta)
    run(resumed, resumed_optimizer, range(saved_at, 8))

    cold = {name: Parameter(value.clone()) for name, value in weights.items()}
    run(cold, AdamW(cold), range(saved_at, 8))

    assert_same(snapshot(resumed, resumed_optimizer), snapshot(whole, optimizer))
    same_as_cold = all(torch.equal(whole[name], cold[name]) for name in whole)
    assert same_as_cold == (saved_at == 0)


def test_a_loaded_state_replaces_the_one_there_is() -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    state, meta = optimizer.state_tensors(), optimizer.meta()
    assert state == {}
    run(parameters, optimizer, range(3))
    optimizer.load_state_tensors(state, meta)
    assert optimizer.state_tensors() == {}
    assert optimizer.meta() == meta


def test_saved_and_loaded_states_share_no_memory_with_the_optimizer() -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    run(parameters, optimizer, range(2))
    state = optimizer.state_tensors()
    kept = copy.deepcopy(state)
    optimizer.load_state_tensors(state, optimizer.meta())
    run(parameters, optimizer, range(2, 4))
    assert_same(state, kept)


def drop(key: str) -> Callable[[dict, dict], object]:
    return lambda state, meta: state.pop(key)


BAD_STATES: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "a moment is missing": (drop("exp_avg_sq.layer.bias"), "of 'layer.bias' is incomplete: 'exp_avg_sq' is missing"),
    "a step count is missing": (drop("step.scale"), "of 'scale' is incomplete: 'step' is missing"),
    "all is missing": (lambda state, meta: state.clear(), "of 'embed.weight' is incomplete"),
    "another rank": (
        lambda state, meta: state.update({"exp_avg.embed.weight": torch.zeros(9, 3)}),
        r"'exp_avg' of 'embed.weight' is torch.float32 of shape \[9, 3\].*of shape \[5, 3\]",
    ),
    "another precision": (
        lambda state, meta: state.update({"exp_avg.scale": torch.zeros((), dtype=torch.bfloat16)}),
        "'exp_avg' of 'scale' is torch.bfloat16",
    ),
    "a tensor that nobody listed": (
        lambda state, meta: state.update({"exp_avg.other": torch.zeros(1)}),
        "holds 'exp_avg.other', which its own list does not name",
    ),
    "another model's parameter": (
        lambda state, meta: meta.update(parameters=[*meta["parameters"], "extra"]),
        r"is about 'extra', which is not trained here.*5 parameters there, 4 here",
    ),
    "a parameter it knows nothing of": (
        lambda state, meta: meta.update(parameters=meta["parameters"][1:]),
        "has nothing about 'embed.weight', which is trained now",
    ),
    "moments of a stranger": (
        lambda state, meta: meta.update(with_moments=["stranger"]),
        "is about 'stranger', which is not trained here",
    ),
    "no meta at all": (lambda state, meta: meta.clear(), "this is no AdamW state: optimizer=None"),
    "another optimizer": (lambda state, meta: meta.update(optimizer="sgd"), "no AdamW state: optimizer='sgd'"),
    "a negative step count": (lambda state, meta: meta.update(steps=-1), "steps=-1"),
    "no list of parameters": (lambda state, meta: meta.pop("parameters"), "does not list its 'parameters'"),
}


@pytest.mark.parametrize("fault", BAD_STATES)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(fault: str) -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    run(parameters, optimizer, range(2))
    state, meta = optimizer.state_tensors(), copy.deepcopy(optimizer.meta())
    run(parameters, optimizer, range(2, 3))
    before = snapshot(parameters, optimizer)
    spoil, message = BAD_STATES[fault]
    spoil(state, meta)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_tensors(state, meta)
    assert_same(snapshot(parameters, optimizer), before)

"""Whatever is drawn over the table's operations is the function that it was drawn as, or is refused; nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.integrations.serve.graphs import dry_run, read_graph, run_graph
from lossbook.integrations.serve.graphs.table import FUNCTIONS, METHODS, OPERATIONS
from lossbook.integrations.serve.refusals import Failed, Refused
from lossbook.integrations.serve.settings import Limits

from .encoding import LOGPROBS, gradient, graph, node, read

SMALL = Limits(graph_elements=100_000, graph_seconds=10)
NUMBERS = st.sampled_from([0.5, 2.0, -1.5])


# --- functions of random formulas: the graph is the function ----------------------------------------------------------

UNARY = {
    "exp": lambda x: torch.exp(x.clamp(max=2.0)),
    "tanh": lambda x: x.tanh(),
    "sigmoid": torch.sigmoid,
    "abs": abs,
    "negated": lambda x: -x,
    "softplus": torch.nn.functional.softplus,
    "log": lambda x: (x.abs() + 1).log(),
    "cumsum": lambda x: x.cumsum(0),
    "softmax": lambda x: torch.softmax(x, dim=0),
    "detached": lambda x: x.detach(),
    "halves": lambda x: torch.cat([x[x.shape[0] // 2 :], x[: x.shape[0] // 2]]),
    "sorted": lambda x: x.sort(descending=True).values,
    "centered": lambda x: x - x.mean(),
    "reversed": lambda x: x.flip(0),
}
BINARY = {
    "added": lambda x, y: x + y,
    "subtracted": lambda x, y: x - y,
    "multiplied": lambda x, y: x * y,
    "divided": lambda x, y: x / (1 + y.abs()),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "chosen": lambda x, y: torch.where(x > y, x, 2 * y),
    "outer": lambda x, y: (x.unsqueeze(1) * y).mean(-1),
    "masked": lambda x, y: x.masked_fill(y < 0, 0.5),
}
Plan = list[tuple[str, int, int]]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Steps (operation, place of its first operand, place of its second), each over the results so far."""
    names = st.sampled_from([*UNARY, *BINARY])
    return [
        (draw(names), draw(st.integers(0, i + 1)), draw(st.integers(0, i + 1))) for i in range(draw(st.integers(1, 12)))
    ]


def planned(plan: Plan) -> Any:
    """The plan as a function of logprobs and advantages."""

    def loss(logprobs: Tensor, a: Tensor) -> Any:
        results = [logprobs, a]
        for name, first, second in plan:
            one = results[first]
            results.append(UNARY[name](one) if name in UNARY else BINARY[name](one, results[second]))  # type: ignore[no-untyped-call]
        return results[-1].sum() + 0.5 * logprobs.sum(), {"custom/last:mean": results[-1].mean()}

    return loss


@given(plan=plans(), tokens=st.integers(2, 6))
@settings(max_examples=10)
def test_a_random_formula_as_a_graph_is_the_formula(plan: Plan, tokens: int) -> None:
    function = planned(plan)
    made = read(function, {"logprobs": 1, "a": 1})
    dry_run(made)
    leaf = torch.linspace(-2.0, -0.1, tokens, dtype=torch.float64).requires_grad_()
    a = torch.linspace(-1.0, 1.5, tokens, dtype=torch.float64)
    value, metrics = function(leaf, a)
    loss, values = run_graph(made, leaf, [a])
    assert torch.equal(loss, value)
    assert torch.equal(values["custom/last:mean"], metrics["custom/last:mean"].detach())
    assert torch.equal(gradient(loss, leaf), gradient(value, leaf))


# --- random uses of the whole table: a value or a refusal -------------------------------------------------------------

ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "T": st.just("@logprobs"),
    "X": st.just("@logprobs") | NUMBERS,
    "N": NUMBERS,
    "I": st.integers(-3, 3) | st.just(2**31),
    "C": st.integers(1, 4096),
    "B": st.booleans(),
    "D": st.integers(-2, 2),
    "XD": st.integers(-2, 2) | st.just("@logprobs"),
    "DS": st.integers(-2, 2) | st.lists(st.integers(-2, 2), max_size=3),
    "S": st.lists(st.integers(-1, 6) | st.just(2**20), max_size=3),
    "SI": st.integers(-1, 6) | st.lists(st.integers(-1, 6), max_size=3),
    "PAD": st.lists(st.integers(-2, 4), max_size=4),
    "DT": st.sampled_from(["float32", "float64", "int64", "bool", "bfloat16"]).map(lambda name: {"dtype": name}),
    "TO": st.sampled_from([{"dtype": "float64"}, {"device": "cuda:0"}, "@logprobs"]),
    "TS": st.lists(st.just("@logprobs"), min_size=1, max_size=3),
    "P": NUMBERS | st.just("fro"),
    "EQ": st.sampled_from(["i,i->i", "i->", "i,j->ij", "ii", "ij->j"]),
    "SEQ": st.just("@logprobs"),
    "NAME": st.sampled_from(["shape", "T", "__class__", "values", "dtype"]),
    "IDX": st.integers(-6, 6) | st.just({"slice": [None, 2, None]}) | st.just({"ellipsis": True}),
}


@st.composite
def uses(draw: st.DrawFn) -> dict[str, Any]:
    """One node with arguments of the kinds that its operation takes, sometimes of another."""
    operation = draw(st.sampled_from(OPERATIONS))
    arguments: list[Any] = []
    for parameter in operation.parameters:
        if parameter.by_name or (parameter.optional and draw(st.booleans())):
            break
        kind = parameter.kind if draw(st.integers(0, 19)) else draw(st.sampled_from(sorted(ARGUMENTS)))
        choices = st.sampled_from(kind.strip("'").split("|")) if kind.startswith("'") else ARGUMENTS[kind]
        arguments.append(draw(choices))
    if operation.functions:
        return node(operation.functions[0], *arguments)
    return node(operation.methods[0], "@logprobs", *arguments[1:], op="call_method")


def tried(raw: dict[str, Any]) -> str:
    """What became of a graph: a value, or one line."""
    try:
        made = read_graph(json.loads(json.dumps(raw)), LOGPROBS, SMALL)
        dry_run(made, SMALL)
        loss, _ = run_graph(made, torch.linspace(-2.0, -0.1, 4).requires_grad_(), [], SMALL)
    except (Refused, Failed) as refusal:
        answer = refusal.message
    else:
        assert loss.ndim == 0
        assert loss.requires_grad
        answer = "a value"
    assert "\n" not in answer
    assert len(answer) < 500
    return answer


@given(use=uses())
@settings(max_examples=40)
def test_any_use_of_an_operation_gives_a_loss_or_one_line(use: dict[str, Any]) -> None:
    tried(graph(use))


@pytest.mark.slow
@given(use=uses())
@settings(max_examples=600)
def test_any_use_of_an_operation_gives_a_loss_or_one_line_at_length(use: dict[str, Any]) -> None:
    tried(graph(use))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just({"ref": "logprobs"}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["ref", "tuple", "slice", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(
    target=st.sampled_from([*FUNCTIONS, *METHODS, "os.system"]) | st.text(max_size=12),
    op=st.sampled_from(["call_function", "call_method", "placeholder", "output", "get_attr"]) | st.text(max_size=5),
    args=st.lists(JSON, max_size=4),
    kwargs=st.dictionaries(st.text(max_size=6), JSON, max_size=2),
)
@settings(max_examples=40)
def test_any_json_in_a_node_is_answered_by_one_line_or_runs(
    target: str, op: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    tried(graph({"op": op, "name": "x", "target": target, "args": args, "kwargs": kwargs}))

"""A function that was traced by the SDK, encoded by it, read and run here computes what the function computes."""

from __future__ import annotations

import pytest
import torch

from lossbook.integrations.serve.graphs import dry_run, run_graph

from .encoding import gradient, read
from .expressions import EXPRESSIONS, tensors_for


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_graph_has_its_functions_value_gradient_and_metrics(name: str) -> None:
    function, ranks = EXPRESSIONS[name]
    graph = read(function, ranks)
    dry_run(graph)
    leaf, *inputs = tensors_for(ranks)
    value, metrics = function(leaf, *inputs)
    loss, values = run_graph(graph, leaf, inputs)
    assert torch.equal(loss, value)
    assert torch.equal(gradient(loss, leaf), gradient(value, leaf))
    assert values.keys() == metrics.keys()
    for key, one in metrics.items():
        assert values[key].shape == ()
        assert float(values[key]) == float(one.detach())


def test_there_are_many_expressions() -> None:
    assert len(EXPRESSIONS) >= 60

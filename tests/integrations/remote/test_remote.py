"""A loss is the same loss whichever way it goes to a service of Tinker's protocol, and the same as on our own trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook.datums.errors import ConfigError, LossContractError, MissingInput
from lossbook.integrations import tinker
from lossbook.integrations.tinker import settings as door
from lossbook.losses.testing import strategies
from lossbook.trainer.model.tiny import HIDDEN

from ...losses.cases import NEEDED, shipped

ONCE = settings(
    max_examples=1,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
    database=None,
    derandomize=True,
)
WAYS = ("id", "traced", "function")
#: A step that is almost proportional to the gradient, and never large.
STEP = {"learning_rate": 0.05, "beta1": 0.0, "beta2": 0.0, "eps": 1.0}
PROBE = [lb.Datum(lb.ModelInput.from_ints([7, 40, 90, 13, 200]), {"target_tokens": [40, 90, 13, 200, 31]})]


class Both:
    """The same model through the door and on our own trainer."""

    def __init__(self) -> None:
        parts: dict[str, Any] = {"rank": 4, "seed": 0, "train_unembed": True}
        self.service = tinker.ServiceClient()
        self.through = self.service.create_lora_training_client("tiny", **parts).result()
        self.remote = lb.remote.RemoteClient(self.through, self.service)
        self.own = lb.ServiceClient(device="cpu").create_lora_training_client("tiny", value_head=True, **parts)

    def check(self, data: list[lb.Datum], loss: Any, way: Any) -> None:
        """Value, metrics and the step are those of our own trainer."""
        got = self.remote.forward_backward(data, loss, way=way).result()
        expected = self.own.forward_backward(data, loss).result()
        assert got.way == way
        assert got.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-4, abs=1e-4)
        for name in got.metrics.keys() & expected.metrics.keys():
            if "capped" not in name:
                assert got.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-3, abs=1e-3, nan_ok=True), name
        self.remote.optim_step(tinker.AdamParams(**STEP)).result()
        self.own.optim_step(lb.AdamParams(**STEP)).result()
        clients: list[Any] = [self.through, self.own]
        seen = [
            client.forward(PROBE, "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
            for client in clients
        ]
        np.testing.assert_allclose(seen[0], seen[1], rtol=0, atol=2e-3)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    before = door.current()
    door.configure(root=tmp_path_factory.mktemp("door"), device="cpu", models={}, value_head=True)
    yield Both()
    door.configure(root=before.root, value_head=False)


def rollouts(groups: tuple[int, ...] = (0, 0, 1), **more: Any) -> list[lb.Datum]:
    made = []
    for i, group in enumerate(groups):
        n = 3 + i
        made.append(
            lb.Datum(
                lb.ModelInput.from_ints(list(range(20 + i, 20 + i + n))),
                {
                    "target_tokens": list(range(60 - n, 60)),
                    "weights": [0.0, 1.0, 0.5, 1.0, 2.0][:n],
                    "sampling_logprobs": [-5.0 - 0.1 * k for k in range(n)],
                    "ref_logprobs": [-5.2 + 0.1 * k for k in range(n)],
                    "advantages": [0.5 - 0.4 * k for k in range(n)],
                    "group": group,
                    **more,
                },
            )
        )
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("config", [{"reduction": "token-mean"}, {"reduction": "prompt-mean"}])
def test_a_policy_loss_is_the_same_whichever_way_it_goes(both: Both, way: str, config: dict[str, Any]) -> None:
    both.check(rollouts(), lb.get_loss("grpo", **config), way)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "config",
    [
        {"reduction": "sum"},
        {"reduction": "seq-mean-token-mean"},
        {"reduction": "seq-mean-token-sum"},
        {"reduction": "seq-mean-token-sum-norm", "norm_length": 7},
    ],
    ids=lambda config: config["reduction"],
)
def test_a_policy_loss_is_the_same_under_every_reduction(both: Both, way: str, config: dict[str, Any]) -> None:
    both.check(rollouts(), lb.get_loss("grpo", **config), way)


def test_a_mixture_goes_as_a_function(both: Both) -> None:
    mixture = 0.75 * lb.get_loss("grpo") + 0.25 * lb.get_loss("focal")
    assert both.remote.way(rollouts(), mixture) == "function"
    both.check(rollouts(), mixture, "function")


@pytest.mark.slow
def test_every_shipped_loss_that_can_go_is_the_same_each_way(both: Both) -> None:
    went: dict[str, list[str]] = {way: [] for way in WAYS}

    @ONCE
    @given(st.data())
    def check(name: str, data: st.DataObject) -> None:
        loss: Any = lb.get_loss(name, **NEEDED.get(name, {}))
        drawn: Any = data.draw(strategies.datums(loss, min_groups=2))
        for one in drawn:
            if "teacher_embedding" in one.loss_fn_inputs:  # as wide as the model's own
                one.loss_fn_inputs["teacher_embedding"] = lb.TensorData.from_numpy(np.ones(HIDDEN, dtype=np.float32))
        for way in WAYS:
            with contextlib.suppress(LossContractError):  # this way is closed to it
                both.check(drawn, loss, way)
                went[way].append(name)

    for name in shipped():
        loss: Any = lb.get_loss(name, **NEEDED.get(name, {}))
        if not loss.spec.reads_vocabulary:  # the SDK has no word for a teacher
            check(name)
    assert len(went["id"]) > 100, went["id"]
    assert len(went["function"]) > 60, went["function"]
    assert len(went["traced"]) > 30, went["traced"]


class Elsewhere:
    """A service that has Tinker's losses alone."""

    def __init__(self, real: Any) -> None:
        self.real, self.asked = real, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def forward(self, data: Any, loss: str, config: Any = None) -> Any:
        self.asked.append(loss)
        raise tinker.RequestFailedError(f"unknown loss {loss}", "1", tinker.types.RequestErrorCategory.User)


def test_a_refused_id_is_asked_once_and_the_loss_goes_another_way(both: Both) -> None:
    training = Elsewhere(both.through)
    with_graphs = lb.remote.RemoteClient(training, both.service, api=tinker)
    without = lb.remote.RemoteClient(training, api=tinker)
    assert [with_graphs.way(rollouts(), "grpo") for _ in range(2)] == ["traced", "traced"]
    assert training.asked == ["grpo"]
    assert without.way(rollouts(), "grpo") == "function"
    with pytest.raises(
        LossContractError, match=r"grpo cannot go to this service. id: .*refuses it \(unknown loss grpo\)"
    ):
        without.forward_backward(rollouts(), "grpo", way="id")


def test_a_call_that_is_cut_into_requests_is_not_divided_by_each(both: Both) -> None:
    many = rollouts((0,) * 3) * 60
    assert both.remote.way(many, "grpo", {"reduction": "sum"}) == "id"
    assert both.remote.way(many, "grpo", {"reduction": "token-mean"}) == "traced"


def test_what_no_service_hands_out_is_said_in_one_line(both: Both) -> None:
    remote = lb.remote.RemoteClient(Elsewhere(both.through), both.service, api=tinker)
    data = [lb.Datum(lb.ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3], "weights": [1.0, 1.0]})]
    with pytest.raises(LossContractError, match=r"reads the model's .*, and a service hands out logprobs only") as said:
        remote.forward_backward(data, "eaft")
    assert "\n" not in str(said.value)


def test_mistakes_are_said_before_any_request(both: Both) -> None:
    training = Elsewhere(both.through)
    remote = lb.remote.RemoteClient(training, api=tinker)
    with pytest.raises(MissingInput, match="advantages"):
        remote.forward_backward([lb.Datum(lb.ModelInput.from_ints([1]), {"target_tokens": [2]})], "grpo")
    with pytest.raises(ConfigError, match=r"way='graph'.*id, traced, function"):
        remote.forward_backward(rollouts(), "grpo", way="graph")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Elsewhere is no client"):
        lb.remote.RemoteClient(training)
    assert training.asked == []


def test_a_second_client_of_a_service_uses_the_graph_that_is_there(both: Both) -> None:
    for _ in range(2):
        client = lb.remote.RemoteClient(both.through, both.service)
        assert client.forward_backward(rollouts(), "focal", way="traced").result().way == "traced"
    both.own.forward_backward(rollouts(), "focal").result()
    both.own.forward_backward(rollouts(), "focal").result()


async def _awaited(both: Both) -> Any:
    return await both.remote.forward_backward(rollouts(), "grpo", way="function")


def test_a_call_can_be_awaited(both: Both) -> None:
    import asyncio

    assert asyncio.run(_awaited(both)).way == "function"
    both.own.forward_backward(rollouts(), "grpo").result()

"""How long polls are held."""

from __future__ import annotations

from starlette.testclient import TestClient

from lossbook.integrations.serve.http.app import create_app
from lossbook.integrations.serve.settings import ServeSettings

from .fake import FakeDesk


def test_polls_that_begin_together_end_apart_and_none_is_held_longer_than_it_may_be() -> None:
    settings = ServeSettings(hold_seconds=0.02)
    desk = FakeDesk(settings)
    with TestClient(create_app(settings, desk), base_url="http://localhost") as client:
        step = {"model_id": "s:train:0", "seq_id": 3, "adam_params": {"learning_rate": 1e-3}}
        promise = client.post("/api/v1/optim_step", json=step).json()
        for _ in range(20):
            polled = client.post("/api/v1/retrieve_future", json={"request_id": promise["request_id"]})
            assert polled.status_code == 408
    assert len(set(desk.holds)) == 20
    assert 0.014 <= min(desk.holds) < max(desk.holds) <= 0.02
    assert max(desk.holds) - min(desk.holds) > 0.001

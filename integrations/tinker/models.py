"""Models in training: how they come to be, and the runs that tell of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...trainer.clients import training as lossbook
from .process import Session
from .sampling import base_model_of
from .training import TrainingClient
from .types import GetInfoResponse, ModelData

#: Which parts of a model have adapters.
_PARTS = ("train_mlp", "train_attn", "train_unembed")


def fresh_model(session: Session, base_model: str, lora: Mapping[str, Any] | None) -> lossbook.TrainingClient:
    """Lossbook's client of a base model with new adapters, or without `lora` of all its weights.

    lora: `rank`, `seed`, `train_mlp`, `train_attn` and `train_unembed`
    """
    name, head = session.settings.model(base_model), session.settings.value_head
    if lora is None:
        return session.service.create_training_client(name, value_head=head)
    return session.service.create_lora_training_client(name, **lora, value_head=head)


def model_from_state(
    session: Session, path: str, base_model: str | None, *, optimizer: bool
) -> tuple[lossbook.TrainingClient, dict[str, Any]]:
    """Lossbook's client of a `save_state` checkpoint's model, and what its run trains as far as it is known.

    base_model: the model that it was trained from; another is refused. optimizer: take the optimizer and all other state too.
    """
    stored = session.store.locate(path, kind="weights")
    given = None if base_model is None else session.settings.model(base_model)
    client = session.service.create_training_client_from_state(
        str(stored.folder), optimizer=optimizer, base_model=given
    )
    facts = {"base_model": base_model_of(stored), **{name: getattr(stored.run, name, None) for name in _PARTS}}
    return client, facts


def begin_run(
    session: Session, client: lossbook.TrainingClient, facts: Mapping[str, Any], number: int | None = None
) -> TrainingClient:
    """A run of a model in training, and the client of it. number: of the run, which the session must not have; None: the next."""
    made = client.get_info()
    name = str(facts["base_model"])
    of_run: dict[str, Any] = {**facts, "is_lora": made.is_lora, "lora_rank": made.lora_rank}
    run_id = session.store.new_run(session.id, **of_run, number=number)
    loaded = session.settings.model(name)
    data = ModelData(arch=made.model_data.arch, model_name=name, tokenizer_id=None if loaded == name else loaded)
    info = GetInfoResponse(
        type="get_info",
        model_data=data,
        model_id=run_id,
        is_lora=made.is_lora,
        lora_rank=made.lora_rank,
        model_name=name,
    )
    return TrainingClient(session, client, info)

"""Sampling workers: processes that each hold a whole copy of a model in training, and sample while its ranks train on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator

from .groups import Group
from .held import WorkersFrozen
from .models import WorkersTrainer
from .workers import Workers

#: Bytes of weights that travel in one call, through this process; a larger weight travels alone.
AT_ONCE = 2**26
REMEDY = "the model in training is untouched, and save_weights_and_get_sampling_client() starts new sampling workers with its weights"


class SamplingWorkers:
    """Copies of models in training, on a group of their own whose processes share the prompts of a call.

    make: starts the group: with the first sampler, and anew after one of its processes died.

    For each sampler the copies first get the trained weights, adapters or all of them, through this process and a few at a time:
    on the way no process holds all of them. Where an earlier sampler is still in use, the copies keep its weights too.
    """

    def __init__(self, make: Callable[[], Group]) -> None:
        self._workers = Workers(lambda: _with_remedy(make()))
        self._copies: weakref.WeakKeyDictionary[WorkersTrainer, tuple[Group, int]] = weakref.WeakKeyDictionary()

    def frozen(self, trainer: WorkersTrainer) -> WorkersFrozen:
        """The trainer's weights as they are now, on the sampling workers."""
        group, number = self._copy(trainer)
        for names in _together(trainer.trained()):
            self._workers.call(group, "take", number, trainer.weights(names))
        own = self._workers.number()
        facts = self._workers.call(group, "freeze", number, own)[0]
        return WorkersFrozen(self._workers, None, (group, own, facts))

    def _copy(self, trainer: WorkersTrainer) -> tuple[Group, int]:
        """The group at work, and its model like the trainer's; made where there is none."""
        group, recipe = self._workers.group(), trainer.recipe
        held = self._copies.get(trainer)
        if held is None or held[0] is not group:
            number = self._workers.number()
            self._workers.call(group, "make", number, recipe.models, recipe.method, recipe.arguments, True)
            self._copies[trainer] = held = group, number
            self._workers.forget_with(trainer, group, number)
        return held


def _with_remedy(group: Group) -> Group:
    group.remedy = REMEDY
    return group


def _together(sizes: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Names of weights that travel in one call."""
    names: list[str] = []
    total = 0
    for name, size in sizes:
        if names and total + size > AT_ONCE:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names

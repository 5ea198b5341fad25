"""`tinker.lib.public_interfaces`: the clients and futures, by the names under which other code imports them."""

from __future__ import annotations

from ...custom_loss import LossHandle, PerDatumLossFn
from ...futures import APIFuture, AwaitableConcurrentFuture
from ...rest import AdminClient, RestClient
from ...sampling import BackcompatSamplingClientFuture, SamplingClient
from ...service import ServiceClient
from ...training import BackcompatTrainingClientFuture, TrainingClient

__all__ = [
    "APIFuture",
    "AdminClient",
    "AwaitableConcurrentFuture",
    "BackcompatSamplingClientFuture",
    "BackcompatTrainingClientFuture",
    "LossHandle",
    "PerDatumLossFn",
    "RestClient",
    "SamplingClient",
    "ServiceClient",
    "TrainingClient",
]

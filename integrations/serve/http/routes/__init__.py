"""The addresses of Tinker's protocol, a file for each kind."""

from . import checkpoints, downloads, futures, health, models, page, sampling, service, sessions, training, weights

ROUTERS = tuple(
    module.router
    for module in (
        health,
        service,
        sessions,
        models,
        training,
        weights,
        sampling,
        futures,
        checkpoints,
        downloads,
        page,
    )
)

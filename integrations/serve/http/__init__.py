"""The server: routes, keys, limits, logs and metrics."""

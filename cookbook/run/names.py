"""Names of the files in a run's folder (`runs.py` says what each holds), and of the trackers."""

from __future__ import annotations

CONFIG, REPORT, METRICS, CURVE = "config.json", "data_report.json", "metrics.jsonl", "curve.png"
DATA_DIGEST, PROVENANCE, BEST = "data_digest.json", "provenance.json", "best.json"
#: While a process writes in the folder: its lock, and which process it is (`opening.py`).
LOCK, OWNER = "run.lock", "in_use.json"
SAMPLES, SEQUENCES, LOSS = "samples.jsonl", "sequences.jsonl", "loss.json"
CHECKPOINTS, KEPT, ADAPTER, MODEL = "checkpoints", "kept", "adapter", "model"
#: Files with one row per step; a resumed run deletes the rows of the steps that it repeats.
BY_STEP = (METRICS, SAMPLES, SEQUENCES)

#: What trackers keep in the folder: the ids of their runs, event files, runs that are not sent yet.
TRACKER_IDS, TRACKER_FOLDERS = "trackers.json", ("tensorboard", "wandb")

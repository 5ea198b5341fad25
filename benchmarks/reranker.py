"""The recipe rerank beside Sentence Transformers' own trainer of cross-encoders: same loss, lists, batch size, steps, learning rate.

    python benchmarks/reranker.py [--candidates random] [--steps 24] [--rate 3e-4] [--runs runs/reranker]

The data are those of examples/docstring_pairs.py, which is run unless its files are here. Both start from all-MiniLM-L6-v2 with a new head. A query's wrong codes are drawn from all codes, 3 for training and 9 held out; with
`--candidates nearest` the rows are those of examples/docstring_candidates.py.
LambdaLoss with its default weights on both sides, no clipping of gradients, linear warm-up and decay, AdamW without weight
decay. Ours adds pairs up and averages lists, theirs averages pairs; every list has as many pairs, so the two differ by a factor,
which AdamW does not see. Their head reads a pooler of its own and starts at random, ours the first token and starts at zero; their
tokenizer marks the second text, ours does not. `--mine` runs only the recipe, `--theirs` only theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import folder_for, markdown, write

from lossbook.cookbook import rerank
from lossbook.cookbook.embeddings.sentence_encoder import find_minilm
from lossbook.cookbook.rerankers.data import Candidates, read_candidates
from lossbook.cookbook.rerankers.ranking import ranked
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.settings.embed import RerankConfig
from lossbook.datums import disk
from lossbook.datums.files.sources import read_rows

MAX_LENGTH, BATCH, WARMUP, PARTS = 48, 8, 4, 1
TRAIN, HELD_OUT = "candidates_train.jsonl", "candidates_held_out.jsonl"
RANDOM = {"train": (TRAIN, 3, 1000), "held_out": (HELD_OUT, 9, 60)}
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def prepare(folder: Path, candidates: str) -> None:
    """Make the rows, unless those of the examples are here; the working directory is then where they are."""
    wanted = "docstrings_train.jsonl" if candidates == "random" else TRAIN
    if not Path(wanted).exists():
        disk.make_folder(folder)
        os.chdir(folder)
        for example in ("docstring_pairs", *(["docstring_candidates"] if candidates == "nearest" else [])):
            runpy.run_path(str(EXAMPLES / f"{example}.py"))
    if candidates == "random":
        draw_lists(folder)


def draw_lists(folder: Path) -> None:
    """Rows with random wrong codes, under the names of the others, in a folder that is then the working directory."""
    rng = np.random.default_rng(0)
    for side, (name, wrong, count) in RANDOM.items():
        rows = list(read_rows(f"docstrings_{side}.jsonl"))
        chosen, lines = rng.permutation(len(rows))[:count], []
        for row in (rows[i] for i in chosen):
            drawn = [rows[i]["positive"] for i in rng.permutation(len(rows))[: 4 * wrong]]
            others = list(dict.fromkeys(code for code in drawn if code != row["positive"]))[:wrong]
            lines.append(json.dumps({"query": row["query"], "positive": row["positive"], "negatives": others}))
        disk.make_folder(folder)
        disk.write_file(folder / name, "\n".join(lines) + "\n")
    os.chdir(folder)


def ours(out: Path, steps: int, seed: int, rate: float) -> dict[str, Any]:
    """The recipe's figures at each evaluation, and the seconds that it took, evaluations included."""
    config = RerankConfig(
        data=TRAIN, eval_data=HELD_OUT, out=out, loss="lambda_loss", max_length=MAX_LENGTH, batch_size=BATCH, steps=steps,
        learning_rate=rate, schedule="linear", warmup_steps=WARMUP, grad_clip_norm=0.0, eval_every=steps // PARTS, seed=seed,
        overwrite=True, device="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    rerank.main(config)
    rows = [row for row in read_metrics(out / "metrics.jsonl") if "held_out_ndcg_at_10" in row]
    return {"seconds": time.perf_counter() - start, "curve": [_figures(row) for row in rows]}


def theirs(out: Path, steps: int, seed: int, rate: float) -> dict[str, Any]:
    """The same with CrossEncoderTrainer."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import LambdaLoss
    from transformers import TrainerCallback, set_seed

    set_seed(seed)
    held_out = read_candidates(read_rows(HELD_OUT))
    lists = read_candidates(read_rows(TRAIN))
    columns = {"query": [one.query for one in lists], "docs": [list(one.documents) for one in lists]}
    data = Dataset.from_dict({**columns, "labels": [list(one.relevance) for one in lists]})
    model = CrossEncoder(find_minilm(), num_labels=1, max_length=MAX_LENGTH, device="cpu")
    curve: list[dict[str, float]] = []

    def measure(step: int) -> None:
        curve.append({"step": step, **ranked(_scores(model, held_out), [one.relevance for one in held_out])})

    class Measures(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % (steps // PARTS) == 0:
                measure(state.global_step)

    settings = CrossEncoderTrainingArguments(
        output_dir=str(out), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=rate, warmup_steps=WARMUP,
        lr_scheduler_type="linear", weight_decay=0.0, max_grad_norm=0.0, save_strategy="no", logging_strategy="no",
        report_to=[], use_cpu=True, seed=seed, disable_tqdm=True,
    )  # fmt: skip
    start = time.perf_counter()
    measure(0)
    loss = LambdaLoss(model, mini_batch_size=-1)
    CrossEncoderTrainer(model=model, args=settings, train_dataset=data, loss=loss, callbacks=[Measures()]).train()
    return {"seconds": time.perf_counter() - start, "curve": curve}


def retriever() -> dict[str, float]:
    """The figures of the held-out lists in the order in which the encoder retrieved them."""
    held_out = read_candidates(read_rows(HELD_OUT))
    in_order = [-np.arange(len(one.documents), dtype=float) for one in held_out]
    return ranked(in_order, [one.relevance for one in held_out])


def _scores(model: Any, lists: list[Candidates]) -> list[np.ndarray]:
    pairs = [(one.query, document) for one in lists for document in one.documents]
    scores = model.predict(pairs, batch_size=64, show_progress_bar=False, activation_fn=None)
    return np.split(np.asarray(scores, dtype=float), np.cumsum([len(one.documents) for one in lists])[:-1])


def _figures(row: dict[str, Any]) -> dict[str, float]:
    return {key: row[key] for key in row if key == "step" or key.startswith("held_out_")}


def _rows(results: dict[str, Any], candidates: str) -> list[dict[str, Any]]:
    """A row per way and evaluation."""
    return [
        {"way": way, "candidates": candidates, "seconds": one.get("seconds"), **figures}
        for way, one in results.items()
        for figures in one["curve"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="A reranker's training, beside Sentence Transformers.")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--candidates", choices=("nearest", "random"), default="random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mine", action="store_true")
    parser.add_argument("--theirs", action="store_true")
    parser.add_argument("--quick", action="store_true", help="five steps on few lists")
    parser.add_argument("--runs", type=Path, default=Path("runs/reranker"), help="folder for data and runs")
    parser.add_argument("--out", type=Path, help="folder for the results")
    given = parser.parse_args()
    out = folder_for(given.out, quick=given.quick).absolute()
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary) if given.quick else given.runs.absolute()
        if given.quick:
            given.steps = 5
            RANDOM.update(train=(TRAIN, 3, 8), held_out=(HELD_OUT, 9, 2))
        before = Path.cwd()
        prepare(runs / "data", given.candidates)
        results: dict[str, Any] = {}
        if not given.theirs:
            results["lossbook"] = ours(runs / "lossbook", given.steps, given.seed, given.rate)
        if not given.mine:
            results["sentence-transformers"] = theirs(
                runs / "sentence_transformers", given.steps, given.seed, given.rate
            )
        if given.candidates == "nearest":
            results["retriever"] = {"curve": [retriever()]}
        os.chdir(before)
    rows = _rows(results, given.candidates)
    print(f"\n{markdown(rows)}")
    write("reranker", rows, out)


if __name__ == "__main__":
    main()

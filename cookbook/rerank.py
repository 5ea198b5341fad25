"""A reranker: a model that reads a query with a document and gives the pair a score, trained on lists of candidates.

    python examples/docstring_pairs.py && lossbook train rerank --config examples/rerank.toml
    lossbook train rerank --data triplets.jsonl --held-out 200 --loss rank_softmax --random-negatives 4
    lossbook train rerank --data graded.jsonl --loss lambda_loss --loss-config weighting ndcg2
    lossbook train rerank --data scored.jsonl --loss rank_margin_mse --model HuggingFaceTB/SmolLM2-135M --no-all-weights

Data: JSON Lines of {"query", "positive", "negatives"}, of {"query", "documents", "labels"}, or of {"query", "positive", "label"};
with "scores", a teacher's, these are what the loss reads as labels. All weights are trained; --no-all-weights for LoRA. The
score is the value of a scalar head at an encoder's first token, at a language model's last.

What to watch. `held_out_ndcg_at_10` must rise above that of the retriever whose candidates are ranked. The head starts at zero, so
all scores are equal at first, and the worse document of equal ones comes first: the figures at step 0 are the lowest there are.
`ndcg` and `top_1` are the same of the training lists. `score_deviation` near 0 for many steps means that nothing is learned: raise
the learning rate. When it grows while held-out figures fall, the lists are memorised: take fewer epochs or more negatives.
"""

from __future__ import annotations

import json

from ..datums.files.sources import read_rows
from .embeddings.sentence_encoder import find_minilm
from .loop import Loop, begin, finish, introduce
from .rerankers.data import Candidates, held_out_of, only_ranked, read_candidates
from .rerankers.export import export_reranker
from .rerankers.lists import ListLayout, PairEncoder, check_loss
from .rerankers.ranking import HeldOutLists, described
from .run.batches import Batches
from .run.configs import adam_params, configured_loss
from .run.interrupts import restarted
from .run.names import REPORT
from .settings.embed import RerankConfig

#: The metrics in the progress display.
SHOWN = ("loss", "ndcg", "top_1", "grad_norm")


@restarted
def main(config: RerankConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    check(config)  # before anything is loaded
    loss = configured_loss(config)
    if config.model == "minilm":
        config = config.model_copy(update={"model": find_minilm()})
    run, training = begin(config, value_head=True)
    lists, held_out_lists = load_lists(config)
    encode = PairEncoder.of(training, config.max_length, config.template)
    layout = ListLayout(loss, lists, encode, config.random_negatives, config.seed)
    held_out = HeldOutLists.of(ListLayout(loss, held_out_lists, encode, config.random_negatives, config.seed))
    batches = Batches(len(lists), config.batch_size, config.seed)
    total = config.steps or config.epochs * batches.per_epoch
    introduce(config, run, training, rows=len(lists), steps=total)
    report = described(lists, held_out_lists, layout)
    print("\n".join(f"{name:<24} {value}" for name, value in report.items()))
    run.write(REPORT, json.dumps(report, indent=2))
    loss.check(layout.batch(range(len(lists)), 1))
    with Loop(config, run, training, total) as loop:
        if held_out and loop.start == 0:
            loop.log_evaluation(0, held_out.measure(training))
        for step in loop:
            batch = layout.batch(batches.at(step), step)
            output = training.forward_backward(batch, loss).result()
            update = training.optim_step(adam_params(config, step, total)).result()
            loop.log(step, batch, output, update, shown=SHOWN, loss=loss)
            if held_out and loop.is_evaluated(step):
                loop.log_evaluation(step, held_out.measure(training))
    last = finish(run, training)
    print(export_reranker(run, encode))
    return last


def check(config: RerankConfig) -> None:
    """Raise for a loss that the recipe cannot use. Nothing is loaded."""
    check_loss(configured_loss(config))


def load_lists(config: RerankConfig) -> tuple[list[Candidates], list[Candidates]]:
    """Lists to train on, with so many hard negatives, and held-out lists, whole."""
    lists, held_out = read_candidates(read_rows(config.data)), []
    if config.eval_data is not None:
        held_out = read_candidates(read_rows(config.eval_data))
    elif config.held_out:
        lists, held_out = held_out_of(lists, config.held_out, config.seed)
    return [one.limited(config.hard_negatives) for one in lists], only_ranked(held_out)

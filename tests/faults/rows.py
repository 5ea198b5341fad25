"""The 136 rows of faults and bad inputs, each with the tests that hold it or what it waits for.

`docs/make_reliability_page.py` runs the tests and writes docs/reliability.md; test_rows.py holds that every test exists and that
the page is what these rows and the outcomes make.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row: what happens, what must come of it, and the tests `file::function` below tests/.

    waits: what it needs first, where lossbook does not have that yet. note: how far the tests go, or what is decided otherwise.
    """

    id: str
    fault: str
    right: str
    tests: tuple[str, ...] = ()
    waits: str = ""
    note: str = ""


_KIT = "losses/test_conformance.py::test_a_shipped_loss_keeps_the_laws"
_DATUM = "datums/checks/test_validation.py::test_"
_MASKS = "datums/chat/test_masks.py::test_"
_ENGINE = "trainer/engine/test_engine.py::test_"
_PITFALLS = "trainer/test_pitfalls.py::test_"
_FUTURES = "trainer/clients/test_futures.py::test_"
_STATE = "trainer/checkpoint/test_state.py::test_"
_CHECKPOINTS = "trainer/checkpoint/test_checkpoints.py::test_"
_WRITERS = "trainer/checkpoint/test_faults.py::test_"
_PARITY = "trainer/test_parity.py::test_"
_CANDIDATES = "losses/distillation/test_candidates.py::test_"
_POLICY = "losses/policy/test_policy.py::test_"
_PREFERENCE = "losses/preference/test_preference.py::test_"
_SUPERVISED = "losses/supervised/test_supervised.py::test_"
_REDUCTIONS = "losses/test_reductions.py::test_"
_NUMBERS = "losses/test_loss_numbers.py::test_"
_MACHINE = "faults/test_client_machine.py::test_clients_among_failing_calls_are_clients_that_got_the_good_calls_only"
_SWEEP = "faults/test_failpoints.py::test_"
_ROWS = "faults/test_more_rows.py::test_"
_RANKS = "faults/test_ranks.py::test_"
_GRAPHS = "integrations/serve/graphs/test_"
_OF_RANKS = "trainer/checkpoint/test_ranks.py::test_"
_RESHARDING = "trainer/checkpoint/test_resharding.py::test_"

LOSSES = (
    Row(
        "N1",
        "a call is cut into micro-batches in any way",
        "the same loss, gradient and metrics",
        (
            _KIT,
            f"{_PARITY}the_gradient_does_not_depend_on_how_the_batch_is_cut",
            f"{_PARITY}metrics_do_not_depend_on_how_the_batch_is_cut",
        ),
    ),
    Row(
        "N2",
        "ranks share a call, some without a loss token",
        "one rank's numbers, and no 0/0",
        (_KIT, f"{_REDUCTIONS}totals_and_denominators_of_parts_add_up_to_the_whole"),
        note="ranks are played in one process: their sums are added; the collectives need several ranks",
    ),
    Row(
        "N3",
        "N1 with gradient clipping",
        "the same step",
        (f"{_ROWS}a_clipped_step_does_not_depend_on_how_the_batch_is_cut",),
    ),
    Row(
        "N4",
        "all weights times a constant",
        "loss and gradient times it",
        (
            f"{_SUPERVISED}the_sum_is_linear_in_the_weights",
            f"{_REDUCTIONS}how_doubling_all_weights_changes_the_loss",
            _KIT,
        ),
    ),
    Row(
        "N5",
        "NaN, infinity or 1e30 wherever the mask is 0",
        "nothing changes by a bit, gradients there are 0",
        (
            f"{_NUMBERS}masked_entries_may_hold_anything_and_change_nothing",
            f"{_DATUM}n5_masked_positions_may_hold_any_number_but_weights_must_be_finite",
            _KIT,
        ),
    ),
    Row(
        "N6",
        "log-ratios of ±20 to ±10,000",
        "finite, and the cap is counted",
        (f"{_POLICY}no_ratio_overflows_in_value_or_gradient", _KIT),
    ),
    Row(
        "N7",
        "a logprob of minus infinity that counts",
        "refused with datum, position and key",
        (
            f"{_DATUM}n7_a_logprob_of_minus_infinity_at_an_active_position_is_refused",
            f"{_NUMBERS}a_models_logprob_that_is_none_is_named_by_datum_and_position",
        ),
    ),
    Row(
        "N8",
        "a logprob above 0",
        "refused beyond rounding, 1e-4",
        (
            f"{_NUMBERS}a_positive_logprob_is_named_by_datum_and_position",
            f"{_NUMBERS}a_logprob_above_zero_by_rounding_is_tolerated",
        ),
    ),
    Row(
        "N9",
        "finite differences in float64",
        "agree with the gradient away from kinks",
        (_KIT, "losses/testing/test_kit.py::test_a_kink_is_not_a_wrong_gradient"),
    ),
    Row(
        "N10",
        "exactly at a clip bound",
        "the side that the card names",
        (
            f"{_POLICY}exactly_at_a_bound_ppo_keeps_the_whole_gradient",
            "losses/policy/test_sequence.py::test_exactly_at_its_bound_a_token_of_gmpo_keeps_its_gradient",
        ),
    ),
    Row(
        "N11",
        "a datum or tokens of weight 0 are added",
        "only the count of datums changes",
        (
            _KIT,
            f"{_REDUCTIONS}neither_order_nor_masked_datums_change_anything",
            "losses/batch/test_pack.py::test_a_datum_without_positions_changes_nothing",
        ),
    ),
    Row(
        "N12",
        "datums or candidates in another order",
        "the same",
        (
            _KIT,
            f"{_SUPERVISED}the_order_of_the_k_targets_does_not_matter",
            f"{_REDUCTIONS}neither_order_nor_masked_datums_change_anything",
        ),
    ),
    Row(
        "N13",
        "one target in the form of several",
        "plain cross-entropy",
        (
            f"{_SUPERVISED}one_target_a_position_is_plain_cross_entropy",
            f"{_CANDIDATES}multi_target_cross_entropy_of_one_target_is_cross_entropy",
        ),
    ),
    Row(
        "N14",
        "the whole vocabulary as candidates",
        "the dense divergence",
        (
            f"{_CANDIDATES}over_a_whole_vocabulary_of_three_it_is_the_divergence_itself",
            "trainer/test_distillation.py::test_a_loss_over_candidates_has_the_dense_gradient_however_cut",
        ),
    ),
    Row(
        "N15",
        "old and new logprobs agree",
        "every policy loss has the gradient of REINFORCE",
        (f"{_POLICY}on_policy_the_gradient_is_that_of_reinforce", _KIT),
    ),
    Row("N16", "ppo without bounds", "importance sampling", (f"{_POLICY}ppo_without_bounds_is_importance_sampling",)),
    Row(
        "N17",
        "gspo on answers of one token",
        "the token's own clipped loss",
        (f"{_ROWS}gspo_on_answers_of_one_token_is_ppo_with_its_bounds",),
    ),
    Row(
        "N18",
        "chosen and rejected swapped",
        "the margin changes its sign, and loss(m) - loss(-m) = -m",
        (f"{_PREFERENCE}swapping_a_pair_negates_the_margin_and_costs_just_that",),
    ),
    Row(
        "N19",
        "policy and reference agree",
        "ln 2, finite gradients",
        (f"{_PREFERENCE}while_policy_and_reference_agree_the_loss_is_ln_2",),
    ),
    Row(
        "N20",
        "a margin of ±10,000",
        "finite",
        (
            f"{_PREFERENCE}a_huge_margin_is_finite_in_value_and_gradient",
            "losses/preference/test_margins.py::test_a_pair_decided_by_10000_nats_is_finite",
        ),
    ),
    Row(
        "N21",
        "divergence of equal and of disjoint distributions, bfloat16",
        "0; finite; not below 0",
        (
            "losses/math/test_divergences.py::test_our_divergences_are_divergences",
            "losses/math/test_divergences.py::test_a_token_that_one_side_rules_out_leaves_the_gradient_of_jsd_finite",
        ),
    ),
    Row(
        "N22",
        "beta of a mixture divergence at and beyond its ends",
        "the stated limit; refused outside",
        (
            f"{_CANDIDATES}gkd_jumps_at_its_ends_where_it_is_a_kl",
            f"{_CANDIDATES}jsd_is_refused_at_its_ends_and_told_what_they_are",
            f"{_CANDIDATES}beta_beyond_its_range_is_refused_and_not_clamped",
        ),
    ),
    Row(
        "N23",
        "KL estimates summed over a small vocabulary",
        "the exact divergence, and the gradient that the card claims",
        (
            "losses/math/test_ratios.py::test_expected_over_the_policy_k1_and_k3_are_the_kl_divergence",
            "losses/math/test_ratios.py::test_the_expected_gradient_of_an_estimate",
        ),
        note="the expectation is computed, not sampled",
    ),
    Row(
        "N24",
        "rewards all equal, alone, NaN, or nearly equal",
        "0; 0; named or left out; no blow-up",
        (
            "losses/advantages/test_from_rewards.py::test_advantages_keep_their_laws",
            "losses/advantages/test_from_rewards.py::test_a_reward_that_is_not_finite_is_named_or_left_out",
        ),
    ),
    Row(
        "N25",
        "bfloat16 and float16 logprobs",
        "computed in float32",
        (f"{_SUPERVISED}half_precision_logprobs_are_added_up_in_float32", _KIT),
    ),
    Row(
        "N26",
        "padded, packed, one by one",
        "the same",
        (
            "trainer/engine/test_forward.py::test_a_decoder_sees_each_sequence_as_if_it_were_alone",
            "trainer/packing/test_probes.py::test_each_datum_has_the_numbers_of_its_own_forward",
        ),
    ),
    Row(
        "N27",
        "padding on either side of an embedding",
        "the same",
        ("trainer/engine/test_forward.py::test_pooling_is_over_own_tokens_whatever_stands_beside_them",),
    ),
    Row(
        "N28",
        "embeddings of a batch in parts of any size",
        "the gradient of the whole",
        (
            "trainer/engine/test_grad_cache.py::test_an_encoder_recomputes_its_embeddings_to_the_same_gradient",
            "trainer/test_embedding_losses.py::test_an_encoders_gradient_does_not_depend_on_how_the_batch_is_cut",
        ),
    ),
    Row(
        "N29",
        "a setting is changed",
        "something changes",
        (_KIT, "losses/testing/test_kit.py::test_a_setting_that_has_an_effect_only_beside_another_passes"),
    ),
    Row(
        "N30",
        "the formula again in NumPy",
        "the same for every loss",
        (
            "losses/test_numpy_twins.py::test_a_loss_equals_its_numpy_version",
            "losses/test_numpy_twins.py::test_every_loss_that_ships_has_a_numpy_version",
        ),
    ),
    Row(
        "N31",
        "a fused head that cannot serve the loss",
        "refused, with what can",
        ("trainer/head/test_backends.py::test_what_a_library_cannot_serve_is_refused_by_name",),
    ),
    Row(
        "N32",
        "nothing to learn in the whole call",
        "refused, and no step",
        (
            f"{_PITFALLS}a_batch_without_anything_to_learn_is_an_error",
            f"{_REDUCTIONS}weights_that_are_all_zero_leave_nothing_to_train_on",
        ),
    ),
    Row(
        "N33",
        "memory of the head at many tokens",
        "below the stated bound, and no tokens × vocabulary tensor",
        (
            "trainer/head/test_logprobs.py::test_nothing_as_large_as_tokens_times_vocabulary_is_kept_or_made",
            "trainer/head/test_memory.py::test_the_real_tiles_keep_recompute_within_64_mib",
            f"{_ENGINE}no_tensor_of_tokens_times_vocabulary_is_kept_for_the_backward",
        ),
    ),
    Row(
        "N34",
        "the same seed twice",
        "the same bits",
        ("trainer/clients/test_training.py::test_a_run_can_be_repeated_bit_for_bit",),
        note="with as many threads; another number of threads adds up in another order",
    ),
)

DATA = (
    Row(
        "D1",
        "weights one longer or shorter than targets",
        "refused with the hint about the shift",
        (
            f"{_PITFALLS}misaligned_weights_are_an_error_that_names_datum_key_and_mend",
            f"{_DATUM}weights_off_by_one_are_refused_with_the_hint_about_the_shift",
        ),
    ),
    Row(
        "D2",
        "targets that are not the next tokens",
        "refused where that is asked for",
        (f"{_DATUM}targets_that_are_not_the_next_tokens_are_refused_on_request",),
    ),
    Row(
        "D3",
        "fractions as token ids",
        "refused",
        (
            f"{_DATUM}d3_float_tokens_are_not_cast",
            f"{_DATUM}d3_float_targets_hidden_in_tensor_data_or_a_chunk_are_not_cast_either",
        ),
    ),
    Row(
        "D4",
        "ids below 0, beyond the vocabulary, beyond 64 bits",
        "refused before the forward",
        (
            f"{_DATUM}d4_token_ids_outside_the_vocabulary_are_refused",
            f"{_DATUM}d4_token_ids_beyond_64_bits_are_out_of_range",
            f"{_DATUM}negative_ids_are_refused_without_a_vocabulary_and_at_weight_0",
        ),
    ),
    Row(
        "D5",
        "NaN or infinity in an input",
        "refused with the position",
        (f"{_DATUM}d5_numbers_that_are_not_finite_are_named_with_datum_key_and_position",),
    ),
    Row(
        "D6",
        "a missing input",
        "who wants what, what is there, the likely spelling",
        ("losses/loss/test_loss.py::test_a_missing_input_says_who_wants_what_where_what_is_there_and_the_likely_mend",),
    ),
    Row(
        "D7",
        "an unknown input",
        "listed and refused where strict",
        ("losses/loss/test_loss.py::test_keys_a_loss_does_not_read_are_tolerated_unless_strict",),
    ),
    Row(
        "D8",
        "ragged lists, wrong shapes, bad CSR",
        "refused by key",
        (
            f"{_DATUM}d8_broken_arrays_are_refused_with_their_key",
            "datums/test_data_types.py::test_csr_needs_both_lists_of_indices_and_a_shape",
        ),
    ),
    Row(
        "D9",
        "one weight per position for K targets",
        "refused with the order of values",
        (
            f"{_DATUM}d9_one_weight_per_position_for_k_targets_is_refused_with_the_order_of_values",
            f"{_PITFALLS}multi_target_weights_of_one_a_position_are_told_to_be_row_major",
        ),
    ),
    Row(
        "D10",
        "an id twice among candidates",
        "refused, or added up where asked for",
        (
            "datums/builders/test_tokens.py::test_d10_an_id_twice_in_a_row_is_refused",
            "datums/builders/test_tokens.py::test_d10_dedupe_adds_up_the_weights",
        ),
    ),
    Row(
        "D11",
        "no datums, or a datum of one token",
        "refused; taken",
        (
            f"{_DATUM}d11_no_datums_and_no_tokens_are_refused",
            f"{_DATUM}d11_a_datum_of_one_token_is_enough",
            f"{_PITFALLS}no_datums_are_an_error",
        ),
    ),
    Row(
        "D12",
        "max_length cuts the answer away",
        "an error, or counted",
        (
            "datums/builders/test_tokens.py::test_d12_a_long_sequence_is_by_default_an_error_that_counts_the_labels_it_would_lose",
            "datums/files/test_report.py::test_d12_rows_too_long_are_counted_with_examples",
        ),
    ),
    Row(
        "D13",
        "both answers of a pair cut to nothing",
        "dropped with a count",
        (
            "datums/builders/test_pairs_and_trajectories.py::test_d13_pairs_whose_answers_are_cut_away_are_refused_or_dropped_with_a_count",
            f"{_PREFERENCE}a_pair_masked_on_both_sides_is_dropped_from_the_mean",
        ),
    ),
    Row(
        "D14",
        "a chat template without marks",
        "derived and verified, or refused",
        (
            f"{_MASKS}d14_a_template_without_marks_is_derived_or_refused_never_all_ones",
            f"{_MASKS}d14_an_answer_with_nothing_before_it_cannot_be_derived",
            f"{_MASKS}d14_marks_around_everything_or_nothing_are_refused",
        ),
    ),
    Row(
        "D15",
        "a template that rewrites what came before",
        "refused at the first token that differs",
        (
            f"{_MASKS}d15_a_template_that_does_not_preserve_prefixes_is_refused_at_the_first_differing_token",
            f"{_MASKS}d15_its_last_answer_can_be_learned",
        ),
    ),
    Row(
        "D16",
        "an end of turn that is not learned",
        "the template's check fails",
        (f"{_MASKS}a_bad_template_is_refused",),
    ),
    Row(
        "D17",
        "control tokens in a user's text",
        "stay text",
        (
            f"{_MASKS}d17_control_tokens_that_a_user_writes_stay_text",
            f"{_MASKS}d17_a_template_that_splits_a_control_token_is_refused",
        ),
    ),
    Row(
        "D18",
        "JSON Lines with any damage, or a line of 200 MB",
        "an error with the line, in bounded memory",
        (
            "datums/files/test_jsonl.py::test_an_error_names_the_bad_line",
            "datums/files/test_jsonl.py::test_d18_a_huge_line_is_refused_before_it_is_in_memory",
            "datums/files/test_jsonl.py::test_a_key_twice_among_many_is_named_after_a_few_operations_per_key",
        ),
    ),
    Row(
        "D19",
        "messages of a wrong form",
        "an error of the row",
        (
            "datums/files/test_formats.py::test_d19_a_bad_message_is_an_error_of_its_row",
            "datums/files/test_any_row.py::test_any_row_is_built_or_raises_a_lossbook_error",
        ),
    ),
    Row(
        "D20",
        "logprobs of another temperature",
        "refused, or accepted by name",
        (
            "datums/builders/test_pairs_and_trajectories.py::test_d20_raw_logprobs_of_another_temperature_are_refused",
            "datums/builders/test_pairs_and_trajectories.py::test_d20_the_bias_can_be_accepted",
        ),
    ),
)

CUSTOM = (
    Row(
        "C1",
        "a custom loss returns something else",
        "refused with the mend",
        (
            f"{_PITFALLS}a_custom_function_that_breaks_its_contract_is_told_how_to_mend_it",
            "losses/loss/test_hosted.py::test_a_broken_contract_is_an_error_that_says_how_to_keep_it",
        ),
    ),
    Row(
        "C2",
        "a custom loss without a graph",
        "refused",
        (
            f"{_PITFALLS}a_loss_that_does_not_depend_on_its_logprobs_is_an_error_that_says_so",
            f"{_PITFALLS}a_registered_loss_that_detaches_is_caught_too",
        ),
    ),
    Row(
        "C3",
        "a custom loss ignores some datums",
        "gradient 0 there, counted",
        (f"{_PITFALLS}a_datum_that_the_loss_ignores_gets_no_gradient_and_is_counted",),
    ),
    Row(
        "C4",
        "NaN in its value or gradient",
        "refused, and the client as before",
        (_MACHINE, f"{_ENGINE}a_failed_call_leaves_all_as_it_was_and_the_client_usable"),
    ),
    Row(
        "C5",
        "it raises",
        "its own traceback, and the client goes on",
        (
            _MACHINE,
            f"{_PITFALLS}the_traceback_leads_into_the_users_function",
            f"{_FUTURES}after_a_failure_was_looked_at_the_client_goes_on",
        ),
    ),
    Row(
        "C6",
        "it writes into its inputs",
        "noticed",
        (_MACHINE, "losses/testing/test_kit.py::test_a_bug_is_named_by_its_check"),
    ),
    Row(
        "C7",
        "its metrics are of any kind",
        "typed and named; NaN is passed on",
        (
            "losses/loss/test_hosted.py::test_its_metrics_may_be_numbers_of_any_make",
            f"{_PITFALLS}a_metric_may_be_nan_and_a_tensor_of_one_number",
            f"{_PITFALLS}a_metric_of_the_user_cannot_hide_one_of_the_trainer",
        ),
    ),
    Row(
        "C8",
        "built in, custom, traced",
        "the same",
        (
            f"{_PARITY}a_loss_by_name_and_the_same_loss_as_custom_give_the_same_bits",
            "peers/test_tinker_trace.py::test_a_traced_loss_has_the_losss_value_gradient_and_metrics",
        ),
    ),
    Row(
        "C9",
        "a loss that cannot be traced",
        "the line and the way out",
        (
            "peers/test_tinker_trace.py::test_a_function_that_cannot_be_traced_is_named_with_its_line_and_the_mend",
            "losses/trace/test_recorder.py::test_an_error_inside_lossbook_points_at_the_users_line",
        ),
    ),
    Row(
        "C10",
        "a graph that calls what it must not",
        "refused by name",
        (
            f"{_GRAPHS}attacks.py::test_an_attack_is_refused_in_one_line",
            f"{_GRAPHS}attacks.py::test_nothing_is_imported_by_them",
        ),
    ),
    Row(
        "C11",
        "a graph of a million nodes, or with cycles",
        "refused before it is built",
        (
            f"{_GRAPHS}attacks.py::test_an_attack_is_refused_in_one_line",
            "integrations/serve/wire/test_requests.py::test_what_is_above_a_limit_is_refused_by_the_limits_name",
        ),
    ),
    Row(
        "C12",
        "a graph that asks for huge tensors",
        "bounded",
        (
            f"{_GRAPHS}attacks.py::test_none_of_them_allocates_what_it_asks_for",
            f"{_GRAPHS}graph_loss.py::test_a_broadcast_that_data_make_too_large_is_refused_before_it_is_made",
            f"{_GRAPHS}graph_loss.py::test_a_graph_that_takes_too_long_is_stopped",
        ),
    ),
    Row(
        "C13",
        "a graph with huge or odd constants",
        "checked",
        (
            f"{_GRAPHS}attacks.py::test_an_attack_is_refused_in_one_line",
            f"{_GRAPHS}random_graphs.py::test_any_json_in_a_node_is_answered_by_one_line_or_runs",
        ),
    ),
    Row(
        "C14",
        "a client sends Python",
        "never run",
        ("integrations/serve/faults/test_limits.py::test_python_and_pickles_are_taken_from_nobody",),
    ),
    Row(
        "C15",
        "an id twice, or a broken plug-in",
        "refused; isolated and reported",
        (
            "losses/test_registry.py::test_an_id_that_is_taken_is_refused_and_says_by_whom",
            "losses/test_registry.py::test_a_broken_plug_in_is_reported_and_the_others_still_load",
            "losses/test_registry.py::test_a_plug_in_cannot_replace_a_shipped_loss",
        ),
    ),
)

TRAINING = (
    Row(
        "T1",
        "a gradient of NaN at the step",
        "refused, nothing changed, the parameter named",
        (
            f"{_PITFALLS}a_gradient_of_nan_is_refused_by_the_step_and_named",
            "trainer/optim/test_adamw.py::test_a_non_finite_gradient_is_refused_and_changes_nothing",
        ),
        note="steps are never skipped in silence: there is no such option",
    ),
    Row(
        "T2",
        "a step with nothing accumulated",
        "refused",
        (f"{_PITFALLS}a_step_without_gradients_is_an_error_and_no_silent_decay", _MACHINE),
    ),
    Row(
        "T3",
        "an error halfway through a call",
        "the gradient as before",
        (
            f"{_ENGINE}a_model_that_fails_halfway_leaves_no_half_gradient",
            f"{_ENGINE}a_backward_that_fails_halfway_leaves_no_half_gradient",
            _MACHINE,
        ),
    ),
    Row(
        "T4",
        "out of memory in a micro-batch",
        "tried again in smaller ones, or failed whole",
        (
            f"{_ENGINE}out_of_memory_in_a_micro_batch_is_retried_with_finer_ones_to_the_same_gradient",
            f"{_ENGINE}out_of_memory_that_no_finer_cut_can_mend_fails_and_leaves_all_as_it_was",
        ),
    ),
    Row(
        "T5",
        "Ctrl-C or SIGTERM within a step",
        "the step ends, is saved, exit 130 or 143",
        (
            "cookbook/test_interrupted_runs.py::test_a_signal_ends_the_run_after_its_step_saved_and_with_the_code_that_shells_expect",
            "cookbook/test_sft_recipe.py::test_ctrl_c_finishes_the_step_saves_and_exits_with_130_and_resume_goes_on",
        ),
    ),
    Row(
        "T6",
        "a forward between two calls",
        "touches neither gradients nor random numbers",
        (f"{_ENGINE}a_forward_between_two_calls_touches_nothing", _MACHINE),
    ),
    Row(
        "T7",
        "several calls, then a step",
        "one large call",
        (f"{_PARITY}several_calls_before_a_step_are_one_big_call",),
    ),
    Row(
        "T8",
        "a learning rate of NaN, betas of 1, ...",
        "refused, nothing changed",
        (
            "trainer/optim/test_adamw.py::test_an_impossible_number_is_refused_by_name_and_changes_nothing",
            f"{_PITFALLS}impossible_numbers_are_refused_and_the_gradient_stays",
        ),
    ),
    Row(
        "T9",
        "LoRA of rank 0, beyond the layer, or on nothing",
        "refused with what there is",
        (
            "trainer/model/test_load.py::test_a_rank_out_of_bounds_is_refused_with_the_bound_and_the_layer_that_sets_it",
            "trainer/model/test_load.py::test_when_no_layer_is_recognised_the_error_lists_those_there_are",
        ),
    ),
    Row(
        "T10",
        "the model gives NaN for one datum",
        "it is named; in a forward the others come back",
        (
            f"{_ENGINE}a_datum_for_which_the_model_gives_nan_is_named_and_nothing_changes",
            f"{_ENGINE}a_forward_still_returns_the_other_datums_beside_one_with_nan",
        ),
    ),
    Row(
        "T11",
        "resumed at any step",
        "the uninterrupted run bit for bit, and not a cold start",
        (
            f"{_STATE}a_resumed_run_is_the_uninterrupted_run_and_a_cold_one_is_not",
            "cookbook/test_sft_recipe.py::test_a_resumed_run_records_what_an_uninterrupted_one_does_bit_for_bit",
            "cookbook/test_rl_recipe.py::test_a_resumed_run_records_what_an_uninterrupted_one_does_bit_for_bit",
        ),
    ),
    Row(
        "T12",
        "a failure that nobody looked at",
        "raised by the next call, or printed at exit",
        (
            f"{_FUTURES}the_next_call_raises_a_failure_that_nobody_looked_at_and_does_not_run",
            f"{_FUTURES}at_exit_an_unseen_failure_of_a_living_client_is_printed_with_its_traceback",
            _MACHINE,
        ),
    ),
)

CHECKPOINTS = (
    Row(
        "K1",
        "kill -9 at every write, flush and rename",
        "the old or the new, whole; resumed to the same numbers",
        (
            f"{_WRITERS}a_writer_killed_at_any_step_leaves_the_old_or_the_new_checkpoint_whole",
            f"{_SWEEP}at_every_operation_of_a_run_nothing_is_lost_half_or_applied_twice",
            "datums/test_disk.py::test_when_the_process_is_killed_at_any_operation_the_old_or_the_new_content_is_whole",
            f"{_RANKS}wherever_a_rank_is_killed_while_ranks_save_a_resumed_run_ends_as_one_that_was_not",
        ),
    ),
    Row(
        "K2",
        "the disk is full or fails at each of them",
        "one line, the old one whole, nothing left over",
        (
            f"{_WRITERS}whatever_step_the_disk_refuses_the_old_or_the_new_checkpoint_is_whole",
            f"{_SWEEP}at_every_operation_of_a_run_nothing_is_lost_half_or_applied_twice",
            "datums/test_disk.py::test_when_the_disk_refuses_any_operation_the_old_or_the_new_content_is_whole",
            f"{_RANKS}wherever_the_disk_of_a_rank_fails_all_are_told_and_the_old_or_the_new_one_is_whole",
        ),
    ),
    Row(
        "K3",
        "each file cut off or with another bit",
        "refused by name, or the one before with a warning",
        (
            f"{_CHECKPOINTS}a_flip_of_any_bit_is_refused_and_the_file_named",
            f"{_CHECKPOINTS}a_file_that_was_cut_off_is_named_with_what_to_do",
            f"{_CHECKPOINTS}a_damaged_latest_checkpoint_is_skipped_with_a_warning_that_says_so",
            f"{_SWEEP}every_damage_to_every_file_of_a_run_is_refused_by_name_or_passed_over_in_words",
            f"{_OF_RANKS}a_damaged_file_of_one_rank_is_refused_by_name_on_every_rank_and_by_one_process",
        ),
    ),
    Row(
        "K4",
        "safetensors with an impossible header",
        "refused in our words",
        (f"{_CHECKPOINTS}a_file_that_is_not_safetensors_is_refused_even_if_its_hash_is_right",),
    ),
    Row(
        "K5",
        "a pickle",
        "never read",
        (
            f"{_CHECKPOINTS}a_pickle_is_never_read_whether_given_itself_or_in_a_folder",
            "test_layout.py::test_nothing_runs_code_that_came_with_a_file",
        ),
    ),
    Row(
        "K6",
        "names that lead elsewhere",
        "refused, nothing written",
        (
            f"{_CHECKPOINTS}a_name_that_could_leave_the_root_is_refused_and_nothing_is_written",
            f"{_CHECKPOINTS}a_name_that_is_taken_is_one_segment_of_plain_characters",
        ),
    ),
    Row("K7", "a link out of the folder", "refused", (f"{_CHECKPOINTS}a_link_out_of_the_root_is_refused",)),
    Row(
        "K8",
        "an archive that unpacks elsewhere or without end",
        "refused",
        waits="nothing here unpacks an archive",
    ),
    Row(
        "K9",
        "two writers of one name",
        "one wins, the other is told",
        (f"{_WRITERS}of_writers_of_one_name_one_wins_and_the_others_are_told",),
    ),
    Row(
        "K10",
        "a crash between a file and its row in a database",
        "reconciled at the start",
        (
            "integrations/serve/desk/test_durable.py::test_after_a_crash_what_was_in_memory_alone_is_lost_and_names_the_checkpoint",
            "integrations/serve/faults/test_kills.py::test_a_server_that_is_killed_at_any_moment_applies_nothing_twice_and_loses_nothing_it_acknowledged",
        ),
        note="what lies on the disk is the truth: a name that was saved and not acknowledged is listed, and a new model takes it",
    ),
    Row(
        "K11",
        "another model, vocabulary, precision or format",
        "refused by what differs",
        (
            f"{_STATE}a_checkpoint_of_another_model_is_refused_and_changes_nothing",
            f"{_STATE}a_checkpoint_of_another_precision_is_refused",
            f"{_CHECKPOINTS}an_unknown_format_version_is_refused_with_the_versions_that_wrote_it",
            f"{_RESHARDING}what_is_wrong_on_one_rank_is_refused_on_all_and_nothing_changes",
        ),
    ),
    Row(
        "K12",
        "the optimizer is asked for where only weights are",
        "refused",
        (f"{_STATE}weights_alone_are_no_place_to_resume_from",),
    ),
    Row(
        "K13",
        "an exported adapter in peft",
        "the trainer's logprobs, plain names",
        (
            f"{_STATE}an_exported_adapter_gives_the_same_logprobs_in_peft",
            f"{_STATE}exported_names_carry_no_adapter_segment",
        ),
    ),
)

_SERVED = {
    "S1": ("the same request again", "the same answer, run once"), "S2": ("the same request fifty times at once", "run once"),
    "S3": ("a number used again for another request", "refused for good"), "S4": ("an answer lost after a step", "one step"),
    "S5": ("chunks out of order", "run in order"), "S6": ("a number that never comes", "those behind it fail in time"),
    "S7": ("create, save and load asked for twice", "the same result"), "S8": ("asked for before it is done", "told to come back"),
    "S9": ("a client that went away", "its result is kept"), "S10": ("a failure asked for twice", "the same answer twice"),
    "S11": ("odd request ids", "refused, never a server error"), "S12": ("one bad datum among merged requests", "that request alone fails"),
    "S13": ("the engine dies or hangs", "requests fail, health says so"), "S14": ("the database is locked or full", "told to come back"),
    "S15": ("a restart with work pending", "reconciled"), "S16": ("SIGTERM with work in flight", "finished or failed, exit 0"),
    "S17": ("garbage in place of a message", "refused fast"), "S18": ("an older client", "works or is told"),
    "S19": ("NaN in a result", "never bare in JSON"), "S20": ("an unknown loss or setting", "refused with what there is"),
    "S21": ("a model unloaded or unknown", "refused with its id"),
    "A1": ("no key, a wrong key", "refused, not logged"), "A2": ("an open address without a key", "does not start"),
    "A3": ("another client's ids", "not to be told from unknown ones"), "A4": ("ids to guess", "random"),
    "A5": ("bodies beyond the limit, or very slow", "refused early"), "A6": ("compressed bombs", "refused in bounded memory"),
    "A7": ("huge counts and numbers", "refused when read, with the limit"), "A8": ("very many sessions", "refused with the limit"),
    "A9": ("deeply nested or doubled JSON", "refused"), "A10": ("addresses in requests", "not followed"),
    "A11": ("floods of headers", "refused"), "A12": ("a browser on another site", "refused"),
    "A13": ("what errors tell a client", "no paths, keys or tracebacks"),
}  # fmt: skip
_SERVE = "integrations/serve/"
_ROOMS = ("http", "desk", "ledger", "wire", "faults")
_HTTP, _DESK, _LEDGER, _WIRE, _SOCKETS = (f"{_SERVE}{room}/test_" for room in _ROOMS)

_SERVED_TESTS: dict[str, tuple[str, ...]] = {
    "S1": (
        f"{_DESK}desk.py::test_a_retry_has_the_first_request_and_runs_once",
        f"{_LEDGER}requests.py::test_the_same_request_again_has_the_first_ones_id_and_answer_and_runs_once",
        f"{_SOCKETS}requests.py::test_a_request_sent_again_has_the_first_ones_id_and_answer_and_runs_once",
    ),
    "S2": (
        f"{_LEDGER}requests.py::test_fifty_threads_that_send_one_request_at_once_make_one_row_and_get_equal_answers",
        f"{_SOCKETS}requests.py::test_fifty_clients_that_send_one_request_at_once_get_one_id_and_it_runs_once",
    ),
    "S3": (
        f"{_LEDGER}requests.py::test_a_number_with_another_request_is_refused_for_good",
        f"{_SOCKETS}requests.py::test_a_number_of_another_request_is_refused_for_good",
    ),
    "S4": (
        f"{_LEDGER}requests.py::test_a_response_that_got_lost_changes_nothing_but_that_it_is_asked_for_again",
        f"{_SOCKETS}requests.py::test_a_step_whose_answer_is_lost_is_one_step",
    ),
    "S5": (
        f"{_DESK}desk.py::test_requests_that_arrive_backwards_run_by_number",
        f"{_SOCKETS}requests.py::test_chunks_that_arrive_backwards_run_by_number",
    ),
    "S6": (
        f"{_DESK}desk.py::test_a_request_that_never_comes_fails_those_after_it",
        f"{_DESK}queue.py::test_a_missing_request_fails_those_behind_it_after_the_gap_and_names_itself",
        f"{_SOCKETS}requests.py::test_a_number_that_never_comes_fails_those_behind_it_and_names_itself",
    ),
    "S7": (
        f"{_LEDGER}holdings.py::test_what_is_made_twice_with_one_id_is_the_first",
        f"{_SOCKETS}requests.py::test_models_checkpoints_and_losses_asked_for_twice_are_the_first_ones",
    ),
    "S8": (
        f"{_LEDGER}futures.py::test_a_poll_ends_without_an_answer_after_its_hold_and_the_next_one_gets_it",
        f"{_HTTP}routes.py::test_a_client_that_goes_away_leaves_no_poll_behind",
        f"{_SOCKETS}requests.py::test_a_poll_without_a_result_ends_in_time_and_says_how_the_queue_is",
        f"{_SOCKETS}requests.py::test_a_thousand_polls_that_nobody_waits_for_leave_nothing",
    ),
    "S9": (
        f"{_LEDGER}futures.py::test_a_thousand_waiters_that_go_away_leave_nothing_behind_and_the_answer_is_there_later",
        f"{_LEDGER}requests.py::test_a_result_is_kept_for_an_hour_and_for_five_minutes_after_it_was_fetched",
        f"{_SOCKETS}requests.py::test_the_result_of_a_client_that_went_away_is_there_when_it_comes_back",
    ),
    "S10": (
        f"{_LEDGER}requests.py::test_a_failed_request_fails_the_same_way_as_often_as_it_is_fetched",
        f"{_HTTP}routes.py::test_a_failure_is_http_200_with_its_category_each_time",
        f"{_SOCKETS}requests.py::test_a_failure_is_the_same_http_200_with_its_category_each_time",
    ),
    "S11": (
        f"{_HTTP}routes.py::test_ids_that_nobody_gave_are_refused_and_never_a_server_error",
        f"{_HTTP}routes.py::test_ids_of_other_types_are_refused",
        f"{_SOCKETS}requests.py::test_odd_ids_of_futures_are_refused_and_never_a_server_error",
    ),
    "S12": (
        f"{_DESK}samples.py::test_samples_that_wait_together_are_each_as_alone_and_fail_alone",
        f"{_SOCKETS}requests.py::test_one_bad_sample_among_those_of_other_clients_fails_alone",
        f"{_SOCKETS}requests.py::test_one_bad_datum_fails_its_request_alone",
    ),
    "S13": (
        f"{_DESK}scheduler.py::test_an_engine_that_hangs_fails_what_runs_what_waits_and_what_comes",
        f"{_SOCKETS}trouble.py::test_an_engine_that_raises_fails_its_request_and_one_that_hangs_fails_all",
        f"{_SOCKETS}trouble.py::test_when_the_process_of_a_model_is_killed_its_requests_fail_and_health_says_so",
        f"{_SOCKETS}trouble.py::test_when_the_process_of_a_model_hangs_its_requests_fail_and_health_says_so",
    ),
    "S14": (
        f"{_LEDGER}trouble.py::test_while_another_program_locks_the_database_requests_are_refused_for_now",
        f"{_LEDGER}trouble.py::test_on_a_full_disk_what_cannot_be_kept_is_refused_for_now",
        f"{_HTTP}routes.py::test_a_database_that_does_not_answer_makes_polls_wait_and_submissions_come_again",
        f"{_SOCKETS}trouble.py::test_while_the_database_does_not_answer_clients_are_told_to_come_back_and_nothing_is_lost",
    ),
    "S15": (
        f"{_DESK}durable.py::test_after_a_crash_what_was_in_memory_alone_is_lost_and_names_the_checkpoint",
        f"{_SOCKETS}kills.py::test_a_server_that_is_killed_at_any_moment_applies_nothing_twice_and_loses_nothing_it_acknowledged",
    ),
    "S16": (
        f"{_SERVE}test_stopping.py::test_a_stop_with_work_under_way_refuses_more_and_ends_within_its_grace",
        f"{_SERVE}test_stopping.py::test_a_client_trains_on_after_its_server_was_stopped_and_started_again",
    ),
    "S17": (
        f"{_HTTP}routes.py::test_bytes_that_are_no_request_are_refused_in_one_line",
        f"{_SERVE}test_openapi.py::test_no_request_is_answered_by_a_server_error",
        f"{_SOCKETS}requests.py::test_what_is_no_message_is_refused_at_once",
    ),
    "S18": (
        f"{_HTTP}routes.py::test_an_old_sdk_is_told_to_upgrade",
        f"{_SERVE}test_sdk.py::test_training_and_sampling_have_the_numbers_of_the_door_in_one_process",
        f"{_SOCKETS}requests.py::test_an_sdk_that_is_too_old_is_told_to_upgrade",
    ),
    "S19": (
        f"{_WIRE}results.py::test_json_never_holds_nan_or_infinity",
        f"{_SOCKETS}requests.py::test_numbers_that_are_not_finite_never_stand_bare_in_json",
    ),
    "S20": (
        f"{_DESK}desk.py::test_a_loss_that_cannot_run_says_why",
        f"{_SERVE}test_sdk.py::test_what_is_wrong_with_a_request_is_told_by_its_future_and_the_client_goes_on",
        f"{_SOCKETS}requests.py::test_a_loss_or_setting_that_is_none_is_refused_with_what_there_is",
    ),
    "S21": (
        f"{_DESK}desk.py::test_a_session_that_ends_takes_its_models_with_it",
        f"{_LEDGER}requests.py::test_what_is_no_models_id_is_not_there",
        f"{_SOCKETS}requests.py::test_a_model_that_is_not_there_or_has_ended_is_refused_with_its_id",
    ),
    "A1": (
        f"{_HTTP}guard.py::test_without_a_known_key_the_answer_is_401_in_the_same_words",
        f"{_SERVE}test_stopping.py::test_no_key_is_in_anything_that_the_server_writes",
        f"{_SOCKETS}limits.py::test_without_a_known_key_every_route_answers_401_in_the_same_words",
    ),
    "A2": (
        f"{_HTTP}guard.py::test_an_address_that_others_reach_needs_keys",
        f"{_SOCKETS}limits.py::test_a_server_that_others_reach_does_not_start_without_keys",
    ),
    "A3": (
        f"{_DESK}desk.py::test_what_belongs_to_one_owner_is_not_there_for_another",
        f"{_LEDGER}holdings.py::test_what_another_owner_has_is_not_there_in_the_same_words_as_what_nobody_has",
        f"{_SOCKETS}isolation.py::test_every_route_is_in_the_sweep",
        f"{_SOCKETS}isolation.py::test_what_is_anothers_is_answered_byte_for_byte_like_what_nobody_has",
        f"{_SOCKETS}isolation.py::test_lists_pages_and_numbers_name_nothing_of_another",
        f"{_SOCKETS}isolation.py::test_what_was_asked_by_another_changed_nothing",
        f"{_SOCKETS}isolation.py::test_the_address_of_anothers_file_is_no_address_without_its_signature",
    ),
    "A4": (
        f"{_LEDGER}requests.py::test_ids_cannot_be_guessed",
        f"{_SOCKETS}limits.py::test_ids_cannot_be_guessed",
    ),
    "A5": (
        f"{_HTTP}guard.py::test_a_declared_body_over_the_limit_is_refused_before_it_is_read",
        f"{_HTTP}guard.py::test_a_body_that_grows_past_the_limit_is_refused_and_not_kept",
        f"{_HTTP}guard.py::test_a_body_that_comes_too_slowly_is_refused",
        f"{_HTTP}connection.py::test_what_does_not_come_in_time_is_answered_by_408",
        f"{_SOCKETS}limits.py::test_a_body_that_says_it_is_too_large_is_refused_before_it_comes",
        f"{_SOCKETS}limits.py::test_a_body_without_a_length_is_cut_off_at_the_limit",
        f"{_SOCKETS}limits.py::test_a_body_and_headers_that_come_a_byte_at_a_time_are_given_up",
    ),
    "A6": (
        f"{_WIRE}body.py::test_a_bomb_takes_no_more_memory_than_the_limit_and_64_mib",
        f"{_SOCKETS}limits.py::test_a_compressed_body_is_refused_in_bounded_memory",
    ),
    "A7": (
        f"{_WIRE}requests.py::test_what_is_above_a_limit_is_refused_by_the_limits_name",
        f"{_WIRE}training.py::test_above_a_limit_the_request_is_refused_by_the_limits_name",
        f"{_SOCKETS}limits.py::test_counts_and_numbers_beyond_every_reason_are_refused_by_the_limits_name",
    ),
    "A8": (
        f"{_LEDGER}holdings.py::test_each_limit_is_named_and_keeps_no_other_owner_from_working",
        f"{_SOCKETS}limits.py::test_more_sessions_models_and_requests_than_a_key_may_have_are_429_and_others_go_on",
    ),
    "A9": (
        f"{_WIRE}body.py::test_json_that_could_be_misread_is_refused_by_its_reason",
        f"{_HTTP}routes.py::test_bytes_that_are_no_request_are_refused_in_one_line",
        f"{_SOCKETS}limits.py::test_json_that_is_deep_doubled_or_odd_is_refused",
        f"{_SOCKETS}limits.py::test_a_million_keys_are_refused",
    ),
    "A10": (
        f"{_WIRE}requests.py::test_chunks_without_text_fail_the_future_and_nothing_is_opened",
        f"{_SOCKETS}limits.py::test_addresses_in_requests_are_not_followed",
    ),
    "A11": (
        f"{_HTTP}guard.py::test_a_flood_of_headers_is_refused",
        f"{_HTTP}connection.py::test_what_is_sent_is_answered_by_its_status",
        f"{_SOCKETS}limits.py::test_floods_of_headers_are_refused",
    ),
    "A12": (
        f"{_HTTP}guard.py::test_only_the_servers_own_names_are_answered",
        f"{_HTTP}guard.py::test_a_page_of_another_site_is_refused_and_its_preflight_gets_no_permission",
        f"{_SOCKETS}limits.py::test_a_page_of_another_site_gets_no_answer_and_no_permission",
    ),
    "A13": (
        f"{_HTTP}routes.py::test_an_error_of_ours_tells_the_client_an_incident_and_nothing_else",
        f"{_DESK}failures.py::test_a_users_mistake_is_told_and_a_bug_is_a_number_of_the_log",
        f"{_SOCKETS}limits.py::test_errors_tell_clients_no_path_key_or_traceback",
    ),
}
SERVER = tuple(Row(name, fault, right, _SERVED_TESTS[name]) for name, (fault, right) in _SERVED.items())
ISOLATION = (
    Row(
        "A14",
        "secrets in settings and the environment",
        "in no artefact",
        (
            "cookbook/run/test_trackers.py::test_no_secret_reaches_a_tracker",
            "cookbook/run/test_trackers.py::test_tensorboards_files_hold_no_secret",
            "cookbook/export/test_export.py::test_the_card_tells_base_loss_settings_data_numbers_and_how_to_load_and_no_secret",
            "cookbook/doctor/test_doctor.py::test_secrets_are_not_shown",
            "integrations/serve/test_stopping.py::test_no_key_is_in_anything_that_the_server_writes",
        ),
    ),
    Row(
        "A15",
        "code that comes with a model",
        "never run",
        (
            "trainer/model/test_load.py::test_code_that_comes_with_a_model_is_not_run",
            "test_layout.py::test_nothing_runs_code_that_came_with_a_file",
            "integrations/serve/test_sdk.py::test_models_that_the_server_was_not_given_are_refused",
            f"{_SOCKETS}limits.py::test_the_base_models_are_those_that_the_server_was_given",
        ),
    ),
)

COMMANDS = (
    Row(
        "U1",
        "a misspelt flag, setting or loss",
        "exit 2 or one line, with the likely spelling",
        (
            "cookbook/commands/test_command_line.py::test_a_mistake_in_a_flag_exits_with_2_and_names_it",
            "cookbook/commands/test_command_line.py::test_a_misspelt_command_exits_with_2_and_the_likeliest_one",
            "cookbook/commands/test_command_line.py::test_a_mistake_in_a_config_file_exits_with_2_and_names_file_and_key",
        ),
    ),
    Row(
        "U2",
        "an optional package is missing",
        "one line with the pip command",
        (
            "cookbook/run/test_trackers.py::test_a_tracker_that_is_not_installed_ends_the_run_before_anything_is_made",
            "cookbook/run/test_displays_and_curves.py::test_without_matplotlib_there_is_one_line_with_the_command",
        ),
    ),
    Row(
        "U3",
        "a tracker fails",
        "training goes on, metrics.jsonl has all",
        ("cookbook/run/test_trackers.py::test_a_tracker_that_fails_is_warned_about_once_and_changes_no_number",),
    ),
    Row(
        "U4",
        "the run's folder is taken",
        "refused, or --resume, or --overwrite; never two runs in one",
        (
            "cookbook/run/test_runs.py::test_a_folder_that_holds_anything_is_refused",
            "cookbook/run/test_runs.py::test_resume_refuses_other_settings_and_names_them",
            "cookbook/run/test_runs.py::test_overwrite_deletes_the_run_and_nothing_else",
            "faults/test_run_machine.py::test_a_run_started_stopped_killed_and_damaged_in_any_order_ends_as_an_undisturbed_one",
        ),
    ),
    Row(
        "U5",
        "no terminal, NO_COLOR, CI, a pipe",
        "a few plain lines",
        (
            "cookbook/run/test_displays_and_curves.py::test_ci_and_no_color_and_dumb_terminals_get_plain_lines",
            "cookbook/run/test_displays_and_curves.py::test_a_pipe_gets_a_few_plain_lines_and_the_last_step_among_them",
        ),
    ),
    Row(
        "U6",
        "no network",
        "the built-in model teaches and tests",
        ("cookbook/test_quickstart_command.py::test_the_tiny_quickstart_learns_with_both_losses_and_writes_its_files",),
        note="all tests run with HF_HUB_OFFLINE=1",
    ),
)

#: Title and rows of each table of the page.
TABLES: dict[str, tuple[Row, ...]] = {
    "Numbers of losses": LOSSES, "Datums and data": DATA, "Custom losses": CUSTOM, "Training": TRAINING,
    "Checkpoints and files": CHECKPOINTS, "Server": tuple(row for row in SERVER if row.id[0] == "S"),
    "Access and isolation": (*(row for row in SERVER if row.id[0] == "A"), *ISOLATION), "Commands and recipes": COMMANDS,
}  # fmt: skip
ROWS = tuple(row for rows in TABLES.values() for row in rows)

"""tinker_cookbook.preference.train_dpo on pairs of a right and a wrong answer, with evaluation and saves."""

from __future__ import annotations

from seeds import seed_all
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.preference.train_dpo import Config, main
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

seed_all()
MODEL, RENDERER = "Qwen/Qwen3-8B-Base", "role_colon"

main(
    Config(
        log_path="runs/dpo",
        model_name=MODEL,
        recipe_name="test",
        renderer_name=RENDERER,
        dataset_builder=DPODatasetBuilderFromComparisons(
            common_config=ChatDatasetBuilderCommonConfig(
                model_name_for_tokenizer=MODEL, renderer_name=RENDERER, max_length=128, batch_size=8
            ),
            comparison_builder=ComparisonBuilderFromJsonl(train_path="pairs.jsonl"),
        ),
        learning_rate=1e-2,
        lora_rank=4,
        eval_every=0,
        save_every=2,
        rolling_save_every=1,
    )
)

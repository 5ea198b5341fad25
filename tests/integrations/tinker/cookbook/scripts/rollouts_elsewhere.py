"""tinker_cookbook.rl.train with its rollouts in another process, which gets the sampling client by pickle."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from tinker_cookbook.recipes.math_rl.math_env import Gsm8kDatasetBuilder
from tinker_cookbook.rl.train import Config, main

MODEL, RENDERER = "Qwen/Qwen3-8B-Base", "role_colon"

if __name__ == "__main__":
    data = Gsm8kDatasetBuilder(
        batch_size=2, group_size=8, model_name_for_tokenizer=MODEL, renderer_name=RENDERER, convo_prefix=None
    )
    config = Config(
        log_path="runs/elsewhere",
        model_name=MODEL,
        recipe_name="test",
        renderer_name=RENDERER,
        dataset_builder=data,
        max_tokens=10,
        lora_rank=4,
        learning_rate=1e-2,
        max_steps=2,
        eval_every=0,
        save_every=0,
        num_groups_to_log=0,
    )
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        asyncio.run(main(config, rollout_executor=pool))

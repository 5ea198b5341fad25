"""What happens between the steps of a run: the first line, answers to fixed prompts, which checkpoints stay, when it ends."""

"""A grid of runs, `--sweep loss=dpo,simpo seed=0,1,2`: its settings, its folder and record, and how its runs are run."""

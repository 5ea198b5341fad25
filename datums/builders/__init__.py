"""Builders of datums from tokens, pairs, trajectories, top-K targets and two tokenizations. Only builders shift tokens by one."""

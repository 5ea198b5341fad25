"""Builders of datums from tokens, pairs, trajectories and top-K targets. Only builders shift tokens by one."""

"""Builders of datums from tokens, pairs, trajectories and a teacher's top K. They alone shift tokens by one."""

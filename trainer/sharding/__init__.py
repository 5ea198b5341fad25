"""A model sharded over ranks with FSDP2: each rank holds a part of every weight, and gathers a layer when it computes it."""

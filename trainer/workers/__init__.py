"""One model on N worker processes: their processes, what travels to them and back, and what happens when one dies."""

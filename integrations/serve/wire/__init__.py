"""The protocol's bytes: what a request says, and how an answer is written. No engine and no server."""

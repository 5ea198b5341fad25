"""Which path of the protocol does what."""

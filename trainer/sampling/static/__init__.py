"""Decoding in buffers of fixed size: nothing is allocated, measured or read back at a token, so that a graph can replay it."""

"""A process that computes and reads Python's own files, and can do nothing else: what is called on a model's text runs there.

process.py   starts it, asks it, ends it
inside/      what runs in it: the standard library and the verifier's own package, nothing of lossbook
"""

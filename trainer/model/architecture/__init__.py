"""What transformers knows about an architecture: the class that loads it, and its masked-LM head."""

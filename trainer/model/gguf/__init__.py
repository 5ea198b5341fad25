"""GGUF files: their weights, converted once to safetensors, and their tokenizers."""

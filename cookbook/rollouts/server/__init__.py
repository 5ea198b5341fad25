"""Rollouts from a server that speaks the OpenAI completions API with token ids and logprobs: vLLM, SGLang."""

"""The language-model head: logprobs of given tokens without a [tokens, vocabulary] matrix."""

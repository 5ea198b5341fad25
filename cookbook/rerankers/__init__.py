"""Parts of `lossbook train rerank`: rows of queries and candidates, batches of lists, rankings of held-out lists, a trained reranker."""

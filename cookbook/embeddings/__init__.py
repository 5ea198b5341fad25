"""Parts of `lossbook train embed`: rows of texts, batches in a loss's layout, retrieval, Sentence Transformers' files."""

"""What `train embed` needs: rows of texts, batches in the order that a loss reads, retrieval, export for Sentence Transformers."""

"""The cookbook's embedding recipe: one contrastive loss on vectors, on rows of the matrix of cosines, and built in.

`output="embedding"` hands the function pooled vectors, `output="cos_similarity_matrix"` each datum's cosines with all datums;
`forward_backward_contrastive` computes the same loss without a function. All three give one loss and one gradient.
"""

import torch
from torch.nn.functional import cross_entropy, normalize

import lossbook as tinker

service = tinker.ServiceClient()
training_client = service.create_training_client("tiny-encoder")
tokenizer = training_client.get_tokenizer()
texts = ["capital of France", "largest planet", "Paris is in France.", "Jupiter outweighs all planets."]
datums = [tinker.Datum(tinker.ModelInput.from_ints(tokenizer.encode(text))) for text in texts]
B, TEMPERATURE = 2, 0.1


def info_nce(query_to_document):
    targets = torch.arange(B)
    both = cross_entropy(query_to_document, targets), cross_entropy(query_to_document.T, targets)
    return sum(both) / 2, {"recall_at_1": (query_to_document.argmax(1) == targets).float().mean().item()}


def on_vectors(data, embeddings):
    vectors = normalize(torch.stack(embeddings), dim=-1)
    return info_nce(vectors[:B] @ vectors[B:].T / TEMPERATURE)


def on_cosines(data, rows):
    return info_nce(torch.stack(rows)[:B, B:] / TEMPERATURE)


calls = [
    training_client.forward_backward_custom(datums, on_vectors, output="embedding", pooling="mean"),
    training_client.forward_backward_custom(datums, on_cosines, output="cos_similarity_matrix", pooling="mean"),
    training_client.forward_backward_contrastive(datums, num_queries=B, temperature=TEMPERATURE, pooling="mean"),
]
losses = [call.result().metrics["loss:sum"] for call in calls]
print(losses)

training_client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
after = training_client.forward_backward_custom(datums, on_cosines, output="cos_similarity_matrix").result().metrics
print(after["loss:sum"], after["recall_at_1"])

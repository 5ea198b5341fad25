"""A loss over embeddings: one pooled vector per datum instead of one logprob per token.

The first half of the datums are queries, the second half their documents, in the same order; every other document of the batch is a
negative. The registered loss `info_nce` computes the same. Both need one forward and one backward pass.
"""

import torch
from torch.nn.functional import cross_entropy, normalize

import lossbook as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_training_client(base_model="tiny-encoder")
tokenizer = training_client.get_tokenizer()

queries = ["capital of France", "largest planet", "author of Hamlet"]
documents = ["Paris is in France.", "Jupiter outweighs all planets.", "Shakespeare wrote Hamlet."]
datums = [tinker.Datum(tinker.ModelInput.from_ints(tokenizer.encode(text))) for text in queries + documents]


def in_batch_contrastive(data, embeddings, temperature=0.1):
    vectors = normalize(torch.stack(embeddings), dim=-1)
    half = len(data) // 2
    similarity = vectors[:half] @ vectors[half:].T / temperature
    loss = cross_entropy(similarity, torch.arange(half))
    return loss, {"accuracy": (similarity.argmax(1) == torch.arange(half)).float().mean().item()}


losses = []
for step in range(10):
    result = training_client.forward_backward_custom(
        datums, in_batch_contrastive, output="embedding", pooling="mean"
    ).result()
    training_client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    losses.append(result.metrics["loss:sum"])
    print(step, losses[-1], result.metrics["accuracy"])

built_in = training_client.forward(datums, "info_nce", {"temperature": 0.1}).result()
dimensions = built_in.loss_fn_outputs[0]["embedding"].shape
print(built_in.metrics["in_batch_recall_at_1"], dimensions)

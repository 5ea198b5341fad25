"""Distillation: a student learns a teacher's distribution, given by K candidates per position.

The teacher is a model that has learned one sentence. It computes the logprobs of all tokens at each position, and the K likeliest
are kept, as from a server. With `tail` "bin" all other tokens count as one more candidate. At the start `loss:sum` is the KL of an
untrained student, in nats per token, and it falls towards 0.
"""

import torch

import lossbook as tinker

service_client = tinker.ServiceClient()
teacher = service_client.create_training_client(base_model="tiny")
tokenizer = teacher.get_tokenizer()
tokens = tokenizer.encode("The sky is blue.")
N, K, V = len(tokens) - 1, 4, len(tokenizer)

sentence = tinker.datum_from_tokens_weights(tokens, [1.0] * len(tokens))
for _ in range(10):
    teacher.forward_backward([sentence], "cross_entropy", {"reduction": "token-mean"}).result()
    teacher.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()

every_token = torch.arange(V).repeat(N, 1)
asked = tinker.Datum(sentence.model_input, {"target_tokens": every_token, "weights": torch.ones(N, V)})
answered = teacher.forward([asked], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()
topk_logprobs, topk_tokens = answered.topk(K, dim=1)

datum = tinker.datum_from_teacher_topk(tokens, topk_tokens, topk_logprobs)

student = service_client.create_training_client(base_model="tiny")
divergences = []
for _ in range(8):
    metrics = student.forward_backward([datum], "topk_forward_kl", {"tail": "bin"}).result().metrics
    student.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    divergences.append(metrics["loss:sum"])
    print(
        f"KL {metrics['loss:sum']:.3f} nats, the teacher's top {K} have the probability {metrics['teacher_mass']:.2f}"
    )

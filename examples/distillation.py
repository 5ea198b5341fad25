"""Distillation: a student learns the distribution of a teacher, of which K candidates a position are known.

The teacher here is a model that has learned one sentence. It says how likely it finds every token at each position; the
best K are kept, as a server would send them. `tail` says what is done about all other tokens: "bin" makes them one more.
At the start `loss:sum` is the KL of an untrained student, in nats a token, and it falls towards 0.
"""

import torch

import lossbook as tinker

service_client = tinker.ServiceClient()
teacher = service_client.create_training_client(base_model="tiny")
tokenizer = teacher.get_tokenizer()
tokens = tokenizer.encode("The sky is blue.")
N, K, V = len(tokens) - 1, 4, len(tokenizer)

plain = tinker.datum_from_tokens_weights(tokens, [1.0] * len(tokens))
for _ in range(10):
    teacher.forward_backward([plain], "cross_entropy", {"reduction": "token-mean"}).result()
    teacher.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()

every_token = torch.arange(V).repeat(N, 1)
asked = tinker.Datum(plain.model_input, {"target_tokens": every_token, "weights": torch.ones(N, V)})
answered = teacher.forward([asked], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()
topk_logprobs, topk_tokens = answered.topk(K, dim=1)

datum = tinker.datum_from_teacher_topk(tokens, topk_tokens, topk_logprobs)

student = service_client.create_training_client(base_model="tiny")
divergences = []
for _ in range(8):
    metrics = student.forward_backward([datum], "topk_forward_kl", {"tail": "bin"}).result().metrics
    student.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    divergences.append(metrics["loss:sum"])
    print(f"KL {metrics['loss:sum']:.3f} nats, the teacher's top {K} hold {metrics['teacher_mass']:.2f} of it")

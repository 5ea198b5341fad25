"""Page "Vision Inputs": images are refused by name, before a model runs; the page's text turns train as any others do.

lossbook trains on text tokens alone. An image chunk of another SDK, or a chat turn with an image in it, says so.
"""

from types import SimpleNamespace

import lossbook as tinker

service = tinker.ServiceClient()
training_client = service.create_training_client("tiny", lora_rank=4, seed=0)
tokenizer = training_client.get_tokenizer()
messages = []

image = SimpleNamespace(type="image", data=b"...", format="png", expected_tokens=64)
text = SimpleNamespace(type="encoded_text", tokens=tokenizer.encode("What is in this image?"))
try:
    tinker.Datum(SimpleNamespace(chunks=[text, image]), {"weights": [1.0]})
except TypeError as error:
    messages.append(str(error))

turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}]}
try:
    tinker.datum_from_messages([turn, {"role": "assistant", "content": "A sunset."}], tokenizer)
except ValueError as error:
    messages.append(str(error))

print(*messages, sep="\n")

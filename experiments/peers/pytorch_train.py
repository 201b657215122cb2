"""Trains PyTorch's own encoder-decoder layers, compiled, on batches of this project, in its own environment.

    python pytorch_train.py BATCHES.npz MODEL.json PRECISION SECONDS RESULT.json

As marian_train.py, with torch.compile and scaled_dot_product_attention, on a GPU where there is one: same sizes,
dropout, loss, optimizer and schedule; PRECISION is float32, with TF32 on a GPU, or bfloat16 for autocast.
"""

import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class EncoderDecoder(nn.Module):
    """Vaswani et al. 2017: normalised after each sublayer, one embedding for both sides and the output."""

    def __init__(self, model: dict):
        super().__init__()
        width, length = model["d_model"], model["max_length"]
        shape = (width, model["num_heads"], model["d_ff"], model["dropout_rate"])
        encoder = nn.TransformerEncoderLayer(*shape, batch_first=True)
        decoder = nn.TransformerDecoderLayer(*shape, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, model["num_encoder_layers"], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, model["num_decoder_layers"])
        self.embedding = nn.Embedding(model["target_vocab_size"], width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.scale, self.dropout = width**0.5, nn.Dropout(model["embedding_dropout_rate"])
        angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
        table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        self.register_buffer("positions", torch.tensor(table, dtype=torch.float32))
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = model["attention_dropout_rate"]
            elif isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
                module.dropout.p = model["activation_dropout_rate"]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.embedding(tokens) * self.scale + self.positions[: tokens.shape[1]])

    def forward(self, source: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        padding, length = source == 0, inputs.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)
        memory = self.encoder(self.embed(source), src_key_padding_mask=padding)
        x = self.decoder(
            self.embed(inputs), memory, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=padding
        )
        return F.linear(x, self.embedding.weight)


def main(batches: str, settings: str, precision: str, seconds: str, result: str) -> None:
    with open(settings) as file:
        model = json.load(file)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = np.load(batches)
    stream = [
        tuple(torch.from_numpy(stored[f"{side}_{i}"]).long().to(device) for side in ("source", "target"))
        for i in range(len(stored.files) // 2)
    ]
    counts = [int((target != 0).sum()) for _, target in stream]
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 4 * len({(s.shape, t.shape) for s, t in stream})
    network = EncoderDecoder(model).train().to(device)
    adam = torch.optim.Adam(
        network.parameters(), lr=model["peak_learning_rate"], betas=(0.9, 0.98), eps=1e-9, fused=True
    )
    warmup = model["warmup_steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)
    )

    @torch.compile(dynamic=False)
    def loss_of(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = network(source, F.pad(target[:, :-1], (1, 0), value=3))
        smoothing = model["label_smoothing"]
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0, label_smoothing=smoothing)

    def step(number: int) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(*stream[number % len(stream)])
        loss.backward()
        adam.step()
        schedule.step()
        adam.zero_grad(set_to_none=True)
        return loss

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    # Every shape once, so that none is compiled later; then the batches in order.
    shapes = {tuple(t.shape for t in pair): number for number, pair in enumerate(stream)}
    for number in [*shapes.values(), *range(model["warm_steps"])]:
        step(number)
    number, tokens, start = model["warm_steps"], 0, now()
    while time.monotonic() < start + float(seconds):
        for _ in range(10):  # so that the clock, which a GPU is not waited for to read, is not far behind
            loss = step(number)
            number, tokens = number + 1, tokens + counts[number % len(stream)]
        loss.item()
    elapsed = now() - start
    record = {
        "precision": precision,
        "target_tokens_per_second": tokens / elapsed,
        "step_seconds": elapsed / (number - model["warm_steps"]),
        "steps": number - model["warm_steps"],
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "loss": loss.item(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__},
    }
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

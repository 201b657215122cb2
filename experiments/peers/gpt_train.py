"""Trains a GPT in plain PyTorch on batches of this project, in its own environment.

    python gpt_train.py BATCHES.npz MODEL.json STEPS RESULT.json

The sizes, initialisation, optimizer and schedule are those of the settings; float32, or bfloat16 autocast where their
dtype is; all cores, or compiled on a GPU where there is one; PyTorch's fused attention and AdamW. STEPS steps, of which
the first few are not timed; then the loss on the validation batches.
"""

import json
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and beside a residual."""

    def __init__(self, width: int, heads: int, inner: int, attention_bias: bool, feed_forward_bias: bool):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=attention_bias)
        self.attention_output = nn.Linear(width, width, bias=attention_bias)
        self.input = nn.Linear(width, inner, bias=feed_forward_bias)
        self.feed_forward_output = nn.Linear(inner, width, bias=feed_forward_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_output(y.transpose(1, 2).reshape(B, T, D))
        return x + self.feed_forward_output(F.gelu(self.input(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Learned positions, pre-norm, tied embeddings (Radford et al. 2019)."""

    def __init__(self, model: dict):
        super().__init__()
        width, layers = model["d_model"], model["num_layers"]
        self.tokens, self.positions = nn.Embedding(model["vocab_size"], width), nn.Embedding(model["max_length"], width)
        biases = (model["attention_bias"], model["feed_forward_bias"])
        self.blocks = nn.ModuleList(Block(width, model["num_heads"], model["d_ff"], *biases) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                std = 0.02 / math.sqrt(2 * layers) if "_output" in name else 0.02
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


def loss_of(network: GPT, inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten(), ignore_index=0, reduction=reduction)


def main(batches: str, settings: str, steps: str, result: str) -> None:
    with open(settings) as file:
        model = json.load(file)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = np.load(batches)
    tensors = {name: torch.from_numpy(stored[name].astype(np.int64)).to(device) for name in stored.files}
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    network, total = GPT(model).train().to(device), int(steps)
    compute = torch.compile(loss_of) if device == "cuda" else loss_of

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": model["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        groups, lr=model["peak_learning_rate"], betas=(model["b1"], model["b2"]), eps=model["epsilon"], fused=True
    )
    warmup = max(model["warmup_steps"], 1)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))

    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
    warm, tokens, start = model["warm_steps"], 0, now()
    for number in range(total):
        if number == warm:
            tokens, start = 0, now()
        index = number % len(tensors["inputs"])
        targets = tensors["targets"][index]
        with torch.autocast(device, torch.bfloat16, enabled=model["dtype"] != "float32"):
            loss = compute(network, tensors["inputs"][index], targets)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), model["clip_norm"])
        adam.step()
        schedule.step()
        adam.zero_grad(set_to_none=True)
        tokens += targets.numel()
    elapsed = now() - start
    network.eval()
    with torch.no_grad():
        pairs = zip(tensors["validation_inputs"], tensors["validation_targets"], strict=True)
        sums = [(loss_of(network, x, y, "sum").item(), int((y != 0).sum())) for x, y in pairs]
    record = {
        "tokens_per_second": tokens / elapsed,
        "seconds": elapsed,
        "steps": total,
        "validation_loss": sum(loss for loss, _ in sums) / sum(count for _, count in sums),
        "parameters": sum(p.numel() for p in network.parameters()),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__},
    }
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

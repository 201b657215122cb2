"""Trains Hugging Face's MarianMT in a plain PyTorch loop on batches of this project, in its own environment.

    python marian_train.py BATCHES.npz MODEL.json PRECISION SECONDS RESULT.json

Same sizes, dropout, loss, optimizer and schedule; PRECISION is float32, or bfloat16 for autocast; all cores.
"""

import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
import transformers


def make_model(model: dict) -> transformers.MarianMTModel:
    """Marian with the sizes of the project's model; its layers are normalised after each sublayer."""
    config = transformers.MarianConfig(
        vocab_size=model["target_vocab_size"],
        d_model=model["d_model"],
        encoder_layers=model["num_encoder_layers"],
        decoder_layers=model["num_decoder_layers"],
        encoder_attention_heads=model["num_heads"],
        decoder_attention_heads=model["num_heads"],
        encoder_ffn_dim=model["d_ff"],
        decoder_ffn_dim=model["d_ff"],
        dropout=model["dropout_rate"],
        attention_dropout=model["attention_dropout_rate"],
        activation_dropout=model["activation_dropout_rate"],
        activation_function=model["activation"],
        max_position_embeddings=model["max_length"],
        init_std=model["d_model"] ** -0.5,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=1,
        bos_token_id=3,
        decoder_start_token_id=3,
    )
    return transformers.MarianMTModel(config).train()


def main(batches: str, settings: str, precision: str, seconds: str, result: str) -> None:
    with open(settings) as file:
        model = json.load(file)
    stored = np.load(batches)
    stream = [
        tuple(torch.from_numpy(stored[f"{side}_{i}"]).long() for side in ("source", "target"))
        for i in range(len(stored.files) // 2)
    ]
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = make_model(model)
    adam = torch.optim.Adam(
        network.parameters(), lr=model["peak_learning_rate"], betas=(0.9, 0.98), eps=1e-9, fused=True
    )
    warmup = model["warmup_steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)
    )

    def step(number: int) -> tuple[torch.Tensor, int]:
        source, target = stream[number % len(stream)]
        inputs = F.pad(target[:, :-1], (1, 0), value=3)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(
                input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=inputs, use_cache=False
            ).logits
            loss = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=0, label_smoothing=model["label_smoothing"]
            )
        loss.backward()
        adam.step()
        schedule.step()
        adam.zero_grad(set_to_none=True)
        return loss, int((target != 0).sum())

    warm = model["warm_steps"]
    for number in range(warm):
        step(number)
    number, tokens, start = warm, 0, time.monotonic()
    while time.monotonic() < start + float(seconds):
        loss, count = step(number)
        number, tokens = number + 1, tokens + count
    elapsed = time.monotonic() - start
    record = {
        "precision": precision,
        "target_tokens_per_second": tokens / elapsed,
        "step_seconds": elapsed / (number - warm),
        "steps": number - warm,
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "loss": loss.item(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

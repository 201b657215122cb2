"""Prompts of terminals and files to continuations: what the generate command does, without its flags."""

import json
import sys
from collections.abc import Iterable
from itertools import islice
from typing import IO, Any

from transformer_jax.analysis.language_model import LanguageModelRun
from transformer_jax.decoding.batching import QUEUE_BATCHES
from transformer_jax.errors import UserError


def stream_to(run: LanguageModelRun, prompt: str, output: IO[str], **settings: Any) -> None:
    """Writes the prompt and its continuation, each piece as soon as it is known; settings as for `generator`."""
    output.write(prompt)
    for piece in run.stream(prompt, **settings):
        output.write(piece)
        output.flush()
    output.write("\n")


def interact(run: LanguageModelRun, prompt: str = "> ", **settings: Any) -> None:
    """Continues what is typed, until the end of input (Ctrl-D). Ctrl-C ends a continuation."""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print()
            return
        try:
            stream_to(run, line, sys.stdout, **settings)
        except UserError as error:
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            print()


def continue_lines(run: LanguageModelRun, prompts: Iterable[str], output: IO[str], **settings: Any) -> None:
    """Writes one JSON object for each continuation: the prompt's line, its log-probability, and the text."""
    generator = run.generator(**settings)
    source, number = iter(prompts), 0
    while chunk := list(islice(source, QUEUE_BATCHES * generator.config.batch_size)):
        found = generator.generate(run.params, run.tokenizer.encode(chunk), range(number, number + len(chunk)))
        for best in found:
            number += 1
            texts = run.tokenizer.decode([hypothesis.tokens for hypothesis in best])
            for hypothesis, text in zip(best, texts, strict=True):
                row = {"line": number, "log_prob": round(hypothesis.log_prob, 4), "text": text}
                output.write(json.dumps(row, ensure_ascii=False) + "\n")

"""`python -m benchmarks.generation`: what batching, sorting and stopping at the answer buy. Prints a table.

All rows of the table generate greedily for the same generated problems, with a KV cache. A batch runs until its longest
answer is done; the padding after an answer that was done before is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from localora.lab.data.batches import prompt_ids, token_ids
from localora.lab.data.example import Example
from localora.lab.data.load import load_task
from localora.lab.evaluation.generate import generate
from localora.lab.evaluation.score import ANSWER_COMPLETE
from localora.lab.model.base import load_base_model


def main() -> None:
    arguments = _arguments()
    model, tokenizer = load_base_model(arguments.model, getattr(torch, arguments.dtype))
    examples = problems(arguments.problems, arguments.shots)
    lengths = sorted(len(prompt_ids(example, tokenizer)) for example in examples)
    print(f"{arguments.model}, {arguments.dtype}, {torch.get_num_threads()} threads, {len(examples)} problems of")
    print(f"{lengths[0]} to {lengths[-1]} tokens, at most {arguments.tokens} new ones\n")
    print("| how | seconds | tokens written | tokens/s | answers/s |\n| --- | --- | --- | --- | --- |")
    one_by_one(model, tokenizer, examples[:2], 8)  # warm up
    measure("`model.generate`, one by one", lambda: one_by_one(model, tokenizer, examples, arguments.tokens), tokenizer)
    for size in arguments.batch_sizes:
        for pattern, label in ((None, "to the end"), (ANSWER_COMPLETE, "to the answer")):
            measure(
                f"ours, batches of {size}, {label}",
                lambda size=size, pattern=pattern: generate(
                    model, tokenizer, examples,
                    batch_size=size, max_new_tokens=arguments.tokens, stop_pattern=pattern,
                ),
                tokenizer,
            )  # fmt: skip


def problems(count: int, shots: int) -> list[Example]:
    """Generated arithmetic of one to four steps; solved ones before it make an untrained model write "#### x" too."""
    task = load_task({"task": "arithmetic", "difficulty": 4, "train_size": count + shots, "test_size": count})
    return [
        Example(
            example.id,
            "".join(f"{e.prompt}{e.completion}\n\n" for e in task.train[i : i + shots]) + example.prompt,
            example.completion,
        )
        for i, example in enumerate(task.test)
    ]


def one_by_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example], tokens: int
) -> list[str]:
    config = GenerationConfig(do_sample=False, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id,
                              eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    texts = []
    for example in examples:
        ids = torch.tensor([prompt_ids(example, tokenizer)])
        with torch.no_grad():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)  # type: ignore[operator]
        texts.append(str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts


def measure(how: str, work: Callable[[], list[str]], tokenizer: PreTrainedTokenizerBase) -> None:
    start = time.perf_counter()
    texts = work()
    seconds = time.perf_counter() - start
    tokens = sum(len(token_ids(text, tokenizer)) for text in texts)
    print(f"| {how} | {seconds:.1f} | {tokens} | {tokens / seconds:.0f} | {len(texts) / seconds:.2f} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--shots", type=int, default=1, help="solved problems before each")
    parser.add_argument("--tokens", type=int, default=64, help="at most so many new ones an answer")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""How well a GPU is used at the paper's size: BERT base, 32 pairs of 384 tokens a step, random weights.

    python benchmarks/paper_size.py [--protocol parallel] [--no-compile]

``benchmarks/results/paper-size-<machine>.json`` holds the share of the measured matrix product rate that the model's
arithmetic reaches, eager and compiled (minutes), and a profile of the trainer on the protocol's longest pairs: how much
of the time the GPU computes, and in which kernels.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from throughput import PLAIN_LENGTH, RESULTS, load, machine_name, matmul_rate, training_flops, write_record
from transformers import BertConfig

from xsta_lib.data.batches import Part, row_sides, rows_of
from xsta_lib.encoders.backbones import load_tokenizer
from xsta_lib.experiments.experiment import experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.evaluation import provenance
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.cpu import clear_gradients, tuned
from xsta_lib.training.machine import has_bf16
from xsta_lib.training.passes import Passes
from xsta_lib.training.trainer import Trainer, make_optimizer


def measure_utilisation(device: str, config: dict, rows: int, length: int, steps: int, compiled: bool = True) -> dict:
    """The measured matrix product rate, and the share of it that steps reach, eager and ``compiled``.

    Args:
        device: where.
        config: of the encoder, where it is not BERT base.
        rows, length: pairs a step, and tokens of both their sides.
        steps: how many are timed.
        compiled: time compiled ones too.
    """
    rate, found = matmul_rate(torch.device(device)), {}
    found["matmul_flops_per_second"] = rate
    for name in ("eager", "compiled") if compiled else ("eager",):
        torch.manual_seed(0)
        encoder = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **config)
        layer = min(8, encoder.num_hidden_layers)
        model = XStaForQuestionAnswering(XStaConfig(encoder=encoder, languages=["en", "de"], sharing_layer=layer))
        passes = Passes(model.to(device).train())
        if name == "compiled":
            passes.compile(dynamic=True)
        optimizer = make_optimizer(model, TrainingConfig(steps=1))
        side = {
            "input_ids": torch.randint(5, encoder.vocab_size, (rows, length), device=device),
            "attention_mask": torch.ones(rows, length, dtype=torch.long, device=device),
            "start_positions": torch.full((rows,), length // 2, device=device),
            "end_positions": torch.full((rows,), length // 2 + 1, device=device),
        }
        inputs = {**side, "language": "de", "source": side, "passages": torch.arange(rows, device=device)}

        def step(model=passes, optimizer=optimizer, inputs=inputs) -> None:
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=has_bf16(device)):
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            clear_gradients(model.model, optimizer)

        with tuned(model, has_bf16(device)) if name == "eager" else nullcontext():
            seconds = repeat(step, steps, device)
        flops = training_flops(model, [length] * (2 * rows))
        found[f"{name}_utilisation"] = flops / seconds / rate
    return found


def measure_trainer(device: str, config: dict, parts: Sequence[Part], rows: int, steps: int) -> dict:
    """How busy the trainer keeps a GPU at the paper's size, from a profile of its kernels.

    Args:
        device: a GPU.
        config: of the encoder, where it is not BERT base.
        parts: the data, whose longest pairs are read.
        rows: pairs a batch.
        steps: of the training that is profiled; another one of as many warms up.

    Returns:
        ``seconds`` from the first kernel to the last, the share of them in which some kernel or copy ran
        (``busy_share``), and the kernels that take longest (``kernels``: name, calls, share of the busy time).
    """
    pairs = [row for row in rows_of(parts) if row.source >= 0]
    longest = sorted(pairs, key=lambda row: -sum(row_sides(parts, row)))[: rows * steps]
    for number in range(2):
        torch.manual_seed(0)
        encoder = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **config)
        languages, layer = [part.language for part in parts], min(8, encoder.num_hidden_layers)
        model = XStaForQuestionAnswering(XStaConfig(encoder=encoder, languages=languages, sharing_layer=layer))
        trainer = Trainer(model, parts, TrainingConfig(steps=steps, batch_size=rows), 0, rows=longest)
        activities = [torch.profiler.ProfilerActivity.CUDA if device != "cpu" else torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) if number else nullcontext() as profile:
            trainer.train(progress=False)
            if device != "cpu":
                torch.cuda.synchronize()
    spans: list[tuple[float, float, str]] = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events()
        if device == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, end, times = 0.0, spans[0][0], Counter()
    calls = Counter(name for *_, name in spans)
    for first, last, name in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
        times[name] += last - first
    most = [[name, calls[name], taken / sum(times.values())] for name, taken in times.most_common(15)]
    seconds = end - spans[0][0]
    return {"seconds": seconds / 1e6, "steps": steps, "busy_share": busy / seconds, "kernels": most}


def repeat(step: Callable[[], None], steps: int, device: str) -> float:
    """Seconds of one call: the median of some, after two to warm up."""
    taken = []
    for number in range(steps + 2):
        began = time.perf_counter()
        step()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def run(args: argparse.Namespace) -> dict:
    """All measurements as one record."""
    tokenizer, data = load_tokenizer(args.backbone), load(args.protocol)
    parts = training_parts(experiment("demo", "x-sta"), data, tokenizer)
    config = {"vocab_size": len(tokenizer)}
    record = {"rows": args.rows, "length": PLAIN_LENGTH, "protocol": data.name}
    record["trainer"] = measure_trainer(args.device, config, parts, args.rows, args.steps)
    record |= measure_utilisation(args.device, {}, args.rows, PLAIN_LENGTH, args.steps, not args.no_compile)
    return record | {"provenance": provenance()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", default="parallel")
    parser.add_argument("--backbone", default="e5-small-q4", help="whose tokenizer cuts the pairs")
    parser.add_argument("--rows", type=int, default=32, help="pairs a step")
    parser.add_argument("--steps", type=int, default=20, help="that are profiled, and timed")
    parser.add_argument("--no-compile", action="store_true", help="eager only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    write_record(run(args), args.results / f"paper-size-{machine_name(args.device)}.json")


if __name__ == "__main__":
    main()

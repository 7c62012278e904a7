"""The command ``xsta``: download, train, evaluate, answer, figures; thin over the library.

The library is imported by the command that needs it, so that ``--help`` answers at once.
"""

import argparse
import json
import sys
from pathlib import Path

from . import __version__

ABLATIONS = "gdks, atgc, atgc_inference, rep_norm, alignment_sentence, alignment_token"


def _download(args: argparse.Namespace) -> None:
    from .data.download import fetch
    from .data.squad import CorpusError, read_squad

    for path in fetch(args.what, args.languages or None):
        try:
            print(read_squad(path, repeats="first")[1] if path.suffix == ".json" else path)
        except CorpusError as error:
            print(error)


def _train(args: argparse.Namespace) -> None:
    from .experiments.experiment import experiment
    from .experiments.run import run_experiment
    from .training.machine import peak_memory_bytes

    given = {name: value for name, value in vars(args).items() if name != "command"}
    for path in run_experiment(experiment(**given)):
        print(path)
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _demo(args: argparse.Namespace) -> None:
    from .data.protocols import load_protocol
    from .experiments.experiment import DEMO_METHODS, experiment
    from .experiments.inspection import inspect_models
    from .experiments.results import load_results, results_folder
    from .experiments.run import run_experiment, runs_folder
    from .experiments.tables import four_systems, metrics_frame, results_table
    from .plotting.results import write_figures
    from .training.machine import peak_memory_bytes

    results = results_folder() if args.keep else runs_folder() / "results"
    figures = None if args.keep else runs_folder() / "figures"
    data = load_protocol("demo")
    for method in DEMO_METHODS:
        run_experiment(experiment("demo", method), data, results=results)
    inspect_models("demo", results)
    frame = four_systems(metrics_frame(load_results("demo", results)))
    print("\n" + results_table(frame, "demo") + "\n")
    for path in write_figures("demo", results, figures):
        print(path)
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _grid(args: argparse.Namespace) -> None:
    from .experiments.run import run_grid

    for result in run_grid(args.name, args.protocol, **({"backbone": args.backbone} if args.backbone else {})):
        print(result["method"], *result["without"], *result["config"]["switches"], "seed", result["seed"])


def _evaluate(args: argparse.Namespace) -> None:
    from .data.squad import read_squad
    from .prediction.metrics import aggregate, read_predictions, score_all

    questions, report = read_squad(args.gold)
    print(report, file=sys.stderr)
    golds = {q.id: [answer.text for answer in q.answers] for q in questions}
    print(json.dumps(aggregate(score_all(read_predictions(args.predictions), golds, args.language, args.rule))))


def _answer(args: argparse.Namespace) -> None:
    from .reader import Reader

    if bool(args.source_question) != bool(args.source_context):
        raise ValueError("--source-question and --source-context belong together: give both or neither")
    context = Path(args.context).read_text("utf-8")
    source = (args.source_question, Path(args.source_context).read_text("utf-8")) if args.source_context else None
    print(Reader(args.model).answer(args.question, context, args.language, source).text)


def _figures(args: argparse.Namespace) -> None:
    from .experiments.inspection import TEXTS, inspect_models
    from .plotting.results import write_figures

    if args.inspect and not inspect_models(args.protocol, backbone=args.backbone):
        need = f"its own x-sta run on this machine and a test set with English ({', '.join(TEXTS)})"
        print(f"xsta: Figures 4 to 6 of {args.protocol!r} need {need}; the others are drawn", file=sys.stderr)
    for path in write_figures(args.protocol):
        print(path)


COMMANDS = {run.__name__[1:]: run for run in (_download, _train, _demo, _grid, _evaluate, _answer, _figures)}


def _add_train(commands: "argparse._SubParsersAction") -> None:
    text = "train one method under a protocol, evaluate it, write its result"
    train = commands.add_parser("train", help=text, argument_default=argparse.SUPPRESS)  # only what is given
    train.add_argument("--protocol", default="demo", help="demo, compact, a paper-* protocol, or a folder")
    train.add_argument("--method", default="x-sta", help="zero-shot, trans-train, x-mixup or x-sta")
    train.add_argument("--without", nargs="*", help=f"ablations of Table 4: {ABLATIONS}")
    kinds = {"backbone": str, "seed": int, "batch-size": int, "epochs": float, "dropout": float, "learning-rate": float}
    for name, kind in kinds.items():
        train.add_argument(f"--{name}", type=kind)
    train.add_argument("--steps", type=int, help="optimiser steps, instead of --epochs")
    train.add_argument("--precision", help="auto, fp32, bf16 or fp16")
    train.add_argument("--accumulation", type=int, help="read a step's rows in so many parts, to save memory")
    train.add_argument("--share-source", action="store_true", help="one English pass for all languages of a question")
    train.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    train.add_argument("--compile", action="store_true", help="torch.compile; pays on a GPU")
    train.add_argument("--tracker", help="tensorboard, wandb or another tracker that Accelerate knows")
    train.add_argument("--save-every", type=int, help="steps between checkpoints")
    train.add_argument("--keep", type=int, help="checkpoints that stay")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xsta", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"xsta {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    download = commands.add_parser("download", help="fetch and check published data")
    download.add_argument("what", help="xquad, mlqa, tydiqa, squad, xtreme, compact or all")
    download.add_argument("--languages", nargs="*", default=[])

    _add_train(commands)
    demo = commands.add_parser("demo", help="train and compare three methods on the embedded corpus, draw figures")
    demo.add_argument("--keep", action="store_true", help="write to results/ and figures/, not to those inside runs/")

    grid = commands.add_parser("grid", help="measure what is missing of a table's or figure's grid")
    grid.add_argument("--name", required=True, help="methods, ablations, gamma, layers, seeds or variants")
    grid.add_argument("--protocol", default="demo")
    grid.add_argument("--backbone")

    evaluate = commands.add_parser("evaluate", help="score predictions in the official {id: text} form")
    evaluate.add_argument("--predictions", required=True)
    evaluate.add_argument("--gold", required=True, help="a SQuAD-format file")
    evaluate.add_argument("--language", required=True)
    evaluate.add_argument("--rule", choices=("mlqa", "squad"), default="squad")

    answer = commands.add_parser("answer", help="answer one question from a text file")
    answer.add_argument("--model", required=True, help="a folder written by training")
    answer.add_argument("--question", required=True)
    answer.add_argument("--context", required=True, help="a UTF-8 text file")
    answer.add_argument("--language", required=True)
    answer.add_argument("--source-question", help="the question in English")
    answer.add_argument("--source-context", help="a file with the context in English")

    figures = commands.add_parser("figures", help="write the figures of a protocol's results")
    figures.add_argument("--protocol", default="demo")
    figures.add_argument("--backbone", help="whose models --inspect looks into, if not the protocol's own")
    figures.add_argument("--inspect", action="store_true", help="look into the models trained here, for Figures 4 to 6")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error of the user's kind prints one line and gives exit status 1."""
    args = _parser().parse_args(arguments)
    try:
        COMMANDS[args.command](args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"xsta: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

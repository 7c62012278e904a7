"""The command ``xsta``: download, train, evaluate, answer, figures; thin over the library."""

import argparse
import json
import sys
from pathlib import Path

from .configuration import ABLATIONS
from .training_config import PRECISIONS


def _download(args: argparse.Namespace) -> None:
    from .corpora import read_corpus
    from .corpus import CorpusError
    from .download import fetch

    for path in fetch(args.what, args.languages or None):
        try:
            print(read_corpus(path, repeats="first")[1] if path.suffix == ".json" else path)
        except CorpusError as error:
            print(error)


def _train(args: argparse.Namespace) -> None:
    from .experiments import experiment, run_experiment
    from .machine import peak_memory_bytes

    changes = {
        "seed": args.seed,
        "backbone": args.backbone,
        "epochs": args.epochs,
        "steps": args.steps,
        "dropout": args.dropout,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "precision": args.precision,
        "accumulation": args.accumulation,
        "tokens_per_batch": args.tokens_per_batch,
        "share_source": args.share_source or None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    exp = experiment(args.protocol, args.method, without=tuple(args.without), **changes)
    names = ("gradient_checkpointing", "compile", "tracker", "save_every", "keep")
    given = {name: getattr(args, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None and value is not False}
    for path in run_experiment(exp, options=options):
        print(path)
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _demo(args: argparse.Namespace) -> None:
    from .experiments import DEMO_METHODS, RESULTS, RUNS, experiment, load_results, run_experiment
    from .figures import write_figures
    from .inspection import inspect_models
    from .machine import peak_memory_bytes
    from .protocols import load_protocol
    from .tables import four_systems, metrics_frame, results_table

    results = RESULTS if args.keep else RUNS / "results"
    data = load_protocol("demo")
    for method in DEMO_METHODS:
        run_experiment(experiment("demo", method), data, results=results)
    inspect_models("demo", results)
    frame = four_systems(metrics_frame(load_results("demo", results)))
    print("\n" + results_table(frame, "demo") + "\n")
    for path in write_figures("demo", results):
        print(path)
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _grid(args: argparse.Namespace) -> None:
    from .grids import run_grid

    changes = {"backbone": args.backbone} if args.backbone else {}
    for result in run_grid(args.name, args.protocol, **changes):
        print(result["method"], *result["without"], *result["config"]["switches"], "seed", result["seed"])


def _evaluate(args: argparse.Namespace) -> None:
    from .corpus import read_squad
    from .metrics import aggregate, read_predictions, score_all

    questions, report = read_squad(args.gold)
    print(report, file=sys.stderr)
    golds = {q.id: [answer.text for answer in q.answers] for q in questions}
    print(json.dumps(aggregate(score_all(read_predictions(args.predictions), golds, args.language, args.rule))))


def _answer(args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    from .answering import Predictor
    from .corpus import Question
    from .modeling import XStaForQuestionAnswering

    if bool(args.source_question) != bool(args.source_context):
        raise ValueError("--source-question and --source-context belong together: give both or neither")
    model = XStaForQuestionAnswering.from_pretrained(args.model)
    predictor = Predictor(model, AutoTokenizer.from_pretrained(args.model))
    context = Path(args.context).read_text("utf-8")
    question = Question("0", args.question, context, ())
    source = None
    if args.source_question and args.source_context:
        source = [Question("0", args.source_question, Path(args.source_context).read_text("utf-8"), ())]
    answers = predictor.predict({args.language: [question]}, source, readings=("calibrated",))[args.language]
    texts = answers.texts.get("calibrated", {})
    if "0" not in texts:
        raise ValueError(f"{args.context}: no answer; is the context empty?")
    print(texts["0"])


def _figures(args: argparse.Namespace) -> None:
    from .figures import write_figures
    from .inspection import TEXTS, inspect_models

    if args.inspect and not inspect_models(args.protocol, backbone=args.backbone):
        need = f"its own x-sta run on this machine and a test set with English ({', '.join(TEXTS)})"
        print(f"xsta: Figures 4 to 6 of {args.protocol!r} need {need}; the others are drawn", file=sys.stderr)
    for path in write_figures(args.protocol):
        print(path)


def _add_train(commands: "argparse._SubParsersAction") -> None:
    train = commands.add_parser("train", help="train one method under a protocol, evaluate it, write its result")
    train.add_argument("--protocol", default="demo", help="demo, compact, a paper-* protocol, or a folder")
    train.add_argument("--method", default="x-sta", help="zero-shot, trans-train, x-mixup or x-sta")
    train.add_argument("--without", nargs="*", default=[], choices=ABLATIONS, help="ablations of Table 4")
    train.add_argument("--backbone")
    train.add_argument("--seed", type=int)
    for name in ("epochs", "dropout", "learning-rate"):
        train.add_argument(f"--{name}", type=float)
    train.add_argument("--steps", type=int, help="optimiser steps, instead of --epochs")
    train.add_argument("--batch-size", type=int)
    train.add_argument("--precision", choices=PRECISIONS)
    train.add_argument("--accumulation", type=int, help="read a step's rows in so many parts, to save memory")
    train.add_argument("--tokens-per-batch", type=int, help="fill steps up to so many tokens, not rows")
    train.add_argument("--share-source", action="store_true", help="one English pass for all languages of a question")
    train.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    train.add_argument("--compile", action="store_true", help="torch.compile; pays on a GPU")
    train.add_argument("--tracker", help="tensorboard, wandb or another tracker that Accelerate knows")
    train.add_argument("--save-every", type=int, help="steps between checkpoints")
    train.add_argument("--keep", type=int, help="checkpoints that stay")
    train.set_defaults(run=_train)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xsta", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    download = commands.add_parser("download", help="fetch and check published data")
    download.add_argument("what", help="xquad, mlqa, tydiqa, squad, xtreme, compact or all")
    download.add_argument("--languages", nargs="*", default=[])
    download.set_defaults(run=_download)

    _add_train(commands)
    demo = commands.add_parser("demo", help="train and compare three methods on the embedded corpus, write figures/")
    demo.add_argument("--keep", action="store_true", help="write results/demo instead of runs/results/demo")
    demo.set_defaults(run=_demo)

    grid = commands.add_parser("grid", help="measure what is missing of a table's or figure's grid")
    grid.add_argument("--name", required=True, help="methods, ablations, gamma, layers, seeds or variants")
    grid.add_argument("--protocol", default="demo")
    grid.add_argument("--backbone")
    grid.set_defaults(run=_grid)

    evaluate = commands.add_parser("evaluate", help="score predictions in the official {id: text} form")
    evaluate.add_argument("--predictions", required=True)
    evaluate.add_argument("--gold", required=True, help="a SQuAD-format file")
    evaluate.add_argument("--language", required=True)
    evaluate.add_argument("--rule", choices=("mlqa", "squad"), default="squad")
    evaluate.set_defaults(run=_evaluate)

    answer = commands.add_parser("answer", help="answer one question from a text file")
    answer.add_argument("--model", required=True, help="a folder written by training")
    answer.add_argument("--question", required=True)
    answer.add_argument("--context", required=True, help="a UTF-8 text file")
    answer.add_argument("--language", required=True)
    answer.add_argument("--source-question", help="the question in English")
    answer.add_argument("--source-context", help="a file with the context in English")
    answer.set_defaults(run=_answer)

    figures = commands.add_parser("figures", help="write the figures of a protocol's results")
    figures.add_argument("--protocol", default="demo")
    figures.add_argument("--backbone", help="whose models --inspect looks into, if not the protocol's own")
    figures.add_argument("--inspect", action="store_true", help="look into the models trained here, for Figures 4 to 6")
    figures.set_defaults(run=_figures)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error of the user's kind prints one line and gives exit status 1."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"xsta: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

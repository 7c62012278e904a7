"""The command ``xsta``: download, train, evaluate, answer, figures; thin over the library.

The library is imported by the command that needs it, so that ``--help`` answers at once.
"""

import argparse
import gc
import io
import json
import os
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

from . import __version__

DEMO_BYTES, DEMO_STEPS = 1_000_000_000, 40  # one model of 470 MB
ABLATIONS = "gdks, atgc, atgc_inference, rep_norm, alignment_sentence, alignment_token"


def _download(args: argparse.Namespace) -> None:
    from .data.download import fetch
    from .data.squad import CorpusError, read_squad

    for path in fetch(args.what, args.languages or None):
        try:
            print(read_squad(path, repeats="first")[1] if path.suffix == ".json" else path)
        except CorpusError as error:
            print(error)


def _check(args: argparse.Namespace) -> None:
    from .data.check import check

    findings = check(args.what)
    print(findings)
    count = len(findings.faults if args.strict else findings.errors)
    if count:
        raise ValueError(f"{args.what}: {count} things to mend, see above")


def _train(args: argparse.Namespace) -> None:
    from .data.protocols import load_protocol

    data = load_protocol(args.protocol, strict=True) if "strict" in vars(args) else None
    from .experiments.experiment import experiment
    from .experiments.run import run_experiment
    from .training.machine import peak_memory_bytes

    given = {name: value for name, value in vars(args).items() if name not in ("command", "strict")}
    for path in run_experiment(experiment(**given), data):
        print(path)
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _demo(args: argparse.Namespace) -> None:
    from .data.download import require_space
    from .data.protocols import load_protocol
    from .experiments.run import runs_folder
    from .reader import Reader
    from .training.machine import peak_memory_bytes

    place, test = runs_folder(), load_protocol("demo").tests[0]
    need = "2 to 6 minutes on 2 cores, up to 5 GiB of memory, 1 GB of disk"
    print(f"A trained reader answers, then another one is trained for some steps: {need} in {place}", flush=True)
    require_space(place, DEMO_BYTES)
    reader = Reader()
    english = {question.id: question for question in test.source}
    for language, (question, *_) in test.questions.items():
        source = english[question.id]
        answer = reader.answer(question.question, question.context, language, (source.question, source.context))
        gold = " | ".join(question.golds)
        print(f"{language}: {question.question} -> {answer.text} (gold: {gold}; score {answer.score:.2f})", flush=True)
    _score_reader(reader, test, place / "figures" / "demo-reader.png")
    _train_live(place / "figures" / "demo-training.png")
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _score_reader(reader: "Reader", test: "TestSet", picture: Path) -> None:  # noqa: F821  (imported when it runs)
    """The reader's F1 on a test set, with English beside and alone, as a table and a picture."""
    from .experiments.packing import score_table
    from .plotting.results import reading_bars
    from .plotting.style import save
    from .prediction.evaluation import evaluate_model

    model, tokenizer = reader.predictor.model, reader.predictor.tokenizer
    metrics = {source: evaluate_model(model, tokenizer, test, source).metrics for source in ("gold", "none")}
    print("\n" + score_table({test.name: metrics}) + "\n")
    print(save(reading_bars(metrics, f"{reader.name} on the test set {test.name}"), picture))


def _train_live(picture: Path) -> None:
    """X-STA from the pretrained encoder, a few steps on the embedded corpus: the loss falls; answers take longer."""
    from .data.protocols import load_protocol
    from .experiments.experiment import experiment
    from .experiments.run import train_experiment
    from .plotting.lessons import training_curves
    from .plotting.style import save

    exp = experiment(
        "demo", "x-sta", english_epochs=0.0, steps=DEMO_STEPS, batch_size=8, log_every=4, freeze_embeddings=True
    )
    print(f"\nTraining X-STA anew on the embedded corpus: {DEMO_STEPS} steps of 8 rows, to see the loss fall")
    _, _, result = train_experiment(exp, load_protocol("demo"))
    first, last = (line["loss"] for line in (result.log[0], result.log[-1]))
    print(f"loss {first:.2f} in the first steps, {last:.2f} in the last, after {result.seconds:.0f} seconds")
    print(save(training_curves(result.log), picture))


def _reader(args: argparse.Namespace) -> None:
    from .data.files import home
    from .experiments.packing import check_reader, make_reader, score_table

    if args.make:
        from .plotting.results import reading_bars
        from .plotting.style import save

        metrics = make_reader()["metrics"]
        print(score_table(metrics))
        title = "The reader in the box: half of XQuAD, 578 questions a language"
        print(save(reading_bars(metrics["xquad"], title), home() / "figures" / "reader.png"))
        return
    scores, differ = check_reader()
    print(score_table(scores["metrics"]))
    if differ:
        raise ValueError("other answers than when it was packed, on another kind of machine?\n  " + "\n  ".join(differ))
    print("the answers are those of the model card, every one")


def _grid(args: argparse.Namespace) -> None:
    from .experiments.run import run_grid

    for result in run_grid(args.name, args.protocol, **({"backbone": args.backbone} if args.backbone else {})):
        print(result["method"], *result["without"], *result["config"]["switches"], "seed", result["seed"])


def _evaluate(args: argparse.Namespace) -> None:
    from .data.squad import read_golds
    from .prediction.metrics import aggregate, compare_ids, read_predictions, score

    golds, report = read_golds(args.gold)
    predictions = read_predictions(args.predictions)
    matching = compare_ids(predictions, dict(golds), Path(args.predictions).name)
    for found in [report, *([matching] if matching.faults() else [])]:
        print(found, file=sys.stderr)
    if args.strict and report.faults() + matching.faults():
        raise ValueError("--strict: not scored, as not every question and prediction counts")
    scores = [score(predictions.get(key), texts, args.language, args.rule) for key, texts in golds]
    print(json.dumps(aggregate(dict(enumerate(scores)))))


def _load_detector() -> None:
    from py3langid import classify

    classify("")


def _open_reader(model: str | None, detects: bool) -> "Reader":  # noqa: F821  (imported below, it takes seconds)
    """The reader, as fast as it can be had."""
    if detects:  # the half a second of loading that passes beside the rest
        threading.Thread(target=_load_detector, daemon=True).start()
    gc.disable()  # nothing of what is imported and loaded is garbage; looking for some takes two seconds
    try:
        from transformers.utils.logging import disable_progress_bar

        from .reader import Reader

        disable_progress_bar()  # of weights that are there in a second
        return Reader(model)
    finally:
        gc.freeze()
        gc.enable()


def _answer(args: argparse.Namespace) -> None:
    from .data.files import read_text
    from .prediction.lines import answer_lines, as_json, read_requests

    if bool(args.source_question) != bool(args.source_context):
        raise ValueError("--source-question and --source-context belong together: give both or neither")
    single = [args.question, args.context, args.source_question]
    if args.batch and any(single) or not args.batch and not all(single[:2]):
        raise ValueError("give a question and a text file (- for standard input), or --batch and a file of questions")
    if args.output and not args.batch:
        raise ValueError("--output belongs to --batch; without it, send the answer on with > FILE")
    model, count = args.model or "x-sta-e5-small", args.n_best
    open_reader = partial(_open_reader, args.model, detects=not args.language)
    if args.batch:
        output = Path(args.output) if args.output else None
        answer_lines(read_requests(args.batch), open_reader, model, output, args.language, count or 3)
        return
    context = read_text("/dev/stdin" if args.context == "-" else args.context)
    source = (args.source_question, read_text(args.source_context)) if args.source_context else None
    answer = open_reader().answer(args.question, context, args.language, source, count or 3)
    if answer.detected:
        print(f"xsta: read as {answer.language!r}; --language sets another", file=sys.stderr)
    if answer.reason:
        print(f"xsta: no answer: {answer.reason}", file=sys.stderr)
    if args.json:
        print(as_json({"model": model} | answer.to_dict(), sys.stdout))
    elif count:
        for span in answer.alternatives:
            print(f"{span.score:.3f}\t{span.text}")
    else:
        print(answer.text)


def _figures(args: argparse.Namespace) -> None:
    from .experiments.inspection import TEXTS, inspect_models
    from .plotting.results import write_figures

    if args.inspect and not inspect_models(args.protocol, backbone=args.backbone):
        need = f"its own x-sta run on this machine and a test set with English ({', '.join(TEXTS)})"
        print(f"xsta: Figures 4 to 6 of {args.protocol!r} need {need}; the others are drawn", file=sys.stderr)
    for path in write_figures(args.protocol):
        print(path)


def _llm(args: argparse.Namespace) -> None:
    from .experiments.llm import run_llm
    from .experiments.tables import markdown, metrics_frame, results_block

    given = {name: value for name, value in vars(args).items() if name != "command"}
    path, record = run_llm(**given)
    frame = metrics_frame([record])
    for dataset, shares in record["contains_gold"].items():
        print("\n" + markdown(results_block(frame, dataset)[1]))
        print("contains the gold text: " + ", ".join(f"{name} {share:.1f} %" for name, share in shares.items()))
    counts = {name.replace("_", " "): record[name] for name in ("refused", "cut", "too_long", "tokens")}
    print("\n" + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + f", {record['seconds']:,.0f} s")
    if record["too_long"]:
        print(f"xsta: did not fit the model, asked again next time: {record['too_long_ids']}", file=sys.stderr)
    print(path)


RUNS = _download, _check, _train, _demo, _reader, _grid, _evaluate, _answer, _llm, _figures
COMMANDS = {run.__name__[1:]: run for run in RUNS}


def _text(value: str) -> str:
    """What an option takes as text: not blank, and readable as Unicode."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is blank; give a value")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise argparse.ArgumentTypeError(f"{value!r} is no Unicode text; mend it, or rename the file")
    return value


def _positive(value: str) -> int:
    """What an option takes as a count."""
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 1000:
        raise argparse.ArgumentTypeError(f"{value!r} is no whole number from 1 to 1000")
    return int(value)


def _add_train(commands: "argparse._SubParsersAction") -> None:
    text = "train one method under a protocol, evaluate it, write its result"
    train = commands.add_parser("train", help=text, argument_default=argparse.SUPPRESS)  # only what is given
    train.add_argument("--protocol", type=_text, default="demo", help="demo, parallel, a paper-* protocol, or a folder")
    train.add_argument(
        "--method",
        type=_text,
        default="x-sta",
        help="zero-shot, calibrenet, trans-train, lakm(_mixmrc), aa-cl, pairs, x-mixup(_content), x-sta",
    )
    train.add_argument("--without", type=_text, nargs="*", help=f"ablations of Table 4: {ABLATIONS}")
    train.add_argument("--backbone", type=_text, help="e5-small-q4, mbert, xlm-r, a folder or an id on the hub")
    kinds = {"seed": int, "batch-size": int, "epochs": float, "dropout": float, "learning-rate": float}
    for name, kind in kinds.items():
        train.add_argument(f"--{name}", type=kind)
    train.add_argument("--steps", type=int, help="optimiser steps, instead of --epochs")
    train.add_argument("--precision", type=_text, help="auto, fp32, bf16 or fp16")
    train.add_argument("--accumulation", type=int, help="read a step's rows in so many parts, to save memory")
    train.add_argument("--share-source", action="store_true", help="one English pass for all languages of a question")
    train.add_argument("--freeze-embeddings", action="store_true", help="leave the word embeddings as they are")
    train.add_argument("--equal-tokens", action="store_true", help="trans-train: as many tokens as pairs, not rows")
    train.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    train.add_argument("--compile", action="store_true", help="torch.compile; pays on a GPU")
    train.add_argument("--tracker", type=_text, help="tensorboard, wandb or another tracker that Accelerate knows")
    train.add_argument("--save-every", type=int, help="steps between checkpoints")
    train.add_argument("--strict", action="store_true", help="refuse data of which anything is left out or repaired")
    train.add_argument("--keep", type=int, help="checkpoints that stay")


def _add_answer(commands: "argparse._SubParsersAction") -> None:
    text = "answer a question from a text file, or a file of questions"
    answer = commands.add_parser("answer", help=text, description=f"{text[0].upper()}{text[1:]}.")
    answer.add_argument("question", type=_text, nargs="?", help="in any language the reader knows")
    answer.add_argument("context", type=_text, nargs="?", help="a UTF-8 text file, or - for standard input")
    answer.add_argument("--model", type=_text, help="a folder or hub id; by default the reader in the box")
    answer.add_argument(
        "--language", type=_text, help="of question and context, such as de; by default it is found out"
    )
    answer.add_argument("--source-question", type=_text, help="the question in English")
    answer.add_argument("--source-context", type=_text, help="a file with the context in English")
    answer.add_argument("--n-best", type=_positive, help="print so many spans with their scores")
    answer.add_argument("--json", action="store_true", help="print all that is known of the answer, as JSON")
    lines = "answer a file of JSON lines with question and context (id, language, source_question, source_context)"
    answer.add_argument("--batch", type=_text, metavar="FILE", help=lines)
    answer.add_argument(
        "--output", type=_text, metavar="FILE", help="where --batch writes; run again, it goes on there"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xsta", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"xsta {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    download = commands.add_parser("download", help="fetch and check published data")
    download.add_argument("what", type=_text, help="xquad, mlqa, tydiqa, squad, xtreme, parallel or all")
    download.add_argument("--languages", type=_text, nargs="*", default=[])

    check = commands.add_parser("check", help="read a folder, a file or a protocol without training; say what is found")
    check.add_argument("what", type=_text, help="a folder of your own files, a SQuAD-format file, or a protocol")
    check.add_argument("--strict", action="store_true", help="exit status 1 where anything is left out or repaired")

    _add_train(commands)
    box = commands.add_parser("reader", help="measure the reader in the box on its test sets again, or make it anew")
    box.add_argument("--make", action="store_true", help="train, pack and measure it, over the one that is there")
    commands.add_parser("demo", help="answer questions in seven languages, then train for some steps; with pictures")

    grid = commands.add_parser("grid", help="measure what is missing of a table's or figure's grid")
    grid.add_argument("--name", type=_text, required=True, help="methods, ablations, gamma, layers, seeds or variants")
    grid.add_argument("--protocol", type=_text, default="demo")
    grid.add_argument("--backbone", type=_text)

    evaluate = commands.add_parser("evaluate", help="score predictions in the official {id: text} form")
    evaluate.add_argument("--predictions", type=_text, required=True)
    evaluate.add_argument("--gold", type=_text, required=True, help="a SQuAD-format file")
    evaluate.add_argument("--language", type=_text, required=True)
    evaluate.add_argument("--rule", choices=("mlqa", "squad"), default="squad")
    evaluate.add_argument("--strict", action="store_true", help="refuse where ids or answers are missing")

    _add_answer(commands)
    text = "ask a large language model a protocol's test questions, score its answers"
    llm = commands.add_parser("llm", help=text, description=f"{text[0].upper()}{text[1:]}; the key is OPENAI_API_KEY.")
    llm.add_argument("--endpoint", type=_text, required=True, help="of any OpenAI-compatible server, mostly with /v1")
    llm.add_argument("--model", type=_text, required=True, help="as the server calls it")
    llm.add_argument("--protocol", type=_text, default="demo", help="demo, parallel, a paper-* protocol, or a folder")
    llm.add_argument("--languages", type=_text, nargs="*", default=(), help="such as de hi; all by default")
    llm.add_argument("--questions", type=_positive, default=0, help="so many of each language; all by default")

    figures = commands.add_parser("figures", help="write the figures of a protocol's results")
    figures.add_argument("--protocol", type=_text, default="demo")
    figures.add_argument("--backbone", type=_text, help="whose models --inspect looks into, if not the protocol's own")
    figures.add_argument("--inspect", action="store_true", help="look into the models trained here, for Figures 4 to 6")
    return parser


def _complain(error: Exception, fault: str = "") -> int:
    """Say in a line what went wrong; 1, the exit status. ``XSTA_DEBUG`` in the environment shows where instead."""
    if os.environ.get("XSTA_DEBUG"):
        raise error
    print(f"xsta: {fault}{str(error) or type(error).__name__}", file=sys.stderr)
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0: done; 1: it cannot be done, and a line says why; 2: options that cannot be read; 130: stopped with Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a console that lacks an answer's letters
    warnings.formatwarning = lambda message, *_: f"xsta: {message}\n"
    args = _parser().parse_args(arguments)
    try:
        COMMANDS[args.command](args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        fault = f"a fault of xsta's own; please report it with what XSTA_DEBUG=1 shows: {type(error).__name__}: "
        return _complain(error, fault)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the command ``xsta`` takes: its commands and their options, without importing the library."""

import argparse
from contextlib import suppress
from functools import partial

from . import __version__

ABLATIONS = "gdks, atgc, atgc_inference, rep_norm, alignment_sentence, alignment_token"


def _text(value: str) -> str:
    """What an option takes as text: not blank, and readable as Unicode."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is blank; give a value")
    halves = any("\ud800" <= character <= "\udfff" for character in value)
    if halves:
        with suppress(UnicodeError):
            value.encode("utf-8", "surrogateescape").decode()
            raise argparse.ArgumentTypeError(f"{value!r} is UTF-8, which this locale does not read; set PYTHONUTF8=1")
    if halves or "\0" in value:
        raise argparse.ArgumentTypeError(f"{value!r} is no Unicode text; mend it, or rename the file")
    return value


def _language(value: str) -> str:
    """What an option takes as a language."""
    return _text(value).strip()


def _positive(value: str, most: int = 1000) -> int:
    """What an option takes as a count."""
    if not value.isascii() or not value.isdigit() or len(value) > 9 or not 1 <= int(value) <= most:
        raise argparse.ArgumentTypeError(f"{value!r} is no whole number from 1 to {most}")
    return int(value)


def _add_source(command: argparse.ArgumentParser, **default: str) -> None:
    text = "the language that teaches, such as fr for train.fr.json; en by default, and in published data"
    command.add_argument("--source", type=_language, dest="source_language", metavar="LANGUAGE", help=text, **default)


def _add_train(commands: "argparse._SubParsersAction") -> None:
    text = "train one method under a protocol, evaluate it, write its result"
    train = commands.add_parser("train", help=text, argument_default=argparse.SUPPRESS)  # only what is given
    train.add_argument("--protocol", type=_text, default="demo", help="demo, parallel, a paper-* protocol, or a folder")
    _add_source(train)
    train.add_argument(
        "--method",
        type=_text,
        default="x-sta",
        help="zero-shot, calibrenet, trans-train, lakm(_mixmrc), aa-cl, pairs, x-mixup(_content), x-sta",
    )
    train.add_argument("--without", type=_text, nargs="+", help=f"ablations of Table 4: {ABLATIONS}")
    train.add_argument("--backbone", type=_text, help="e5-small-q4, mbert, xlm-r, a folder or an id on the hub")
    kinds = {"seed": int, "batch-size": int, "epochs": float, "dropout": float, "learning-rate": float}
    for name, kind in kinds.items():
        train.add_argument(f"--{name}", type=kind)
    train.add_argument("--steps", type=int, help="optimiser steps, instead of --epochs")
    train.add_argument("--precision", type=_text, help="auto, fp32, bf16 or fp16")
    train.add_argument("--accumulation", type=int, help="read a step's rows in so many parts, to save memory")
    train.add_argument("--share-source", action="store_true", help="one source pass for all languages of a question")
    train.add_argument("--freeze-embeddings", action="store_true", help="leave the word embeddings as they are")
    train.add_argument("--equal-tokens", action="store_true", help="trans-train: as many tokens as pairs, not rows")
    train.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    train.add_argument("--compile", action="store_true", help="experimental: torch.compile; its speed was not measured")
    train.add_argument("--tracker", type=_text, help="tensorboard, wandb or another tracker that Accelerate knows")
    train.add_argument("--save-every", type=int, help="steps between checkpoints")
    train.add_argument("--strict", action="store_true", help="refuse data of which anything is left out or repaired")
    train.add_argument("--keep", type=int, help="checkpoints that stay")


def _add_answer(commands: "argparse._SubParsersAction") -> None:
    answer = commands.add_parser("answer", help="answer a question from a text file, or a file of questions")
    answer.add_argument("question", type=_text, nargs="?", help="in any language the reader knows")
    answer.add_argument("context", type=_text, nargs="?", help="a UTF-8 text file, or - for standard input")
    answer.add_argument("--model", type=_text, help="a folder or hub id; by default the reader in the box")
    answer.add_argument(
        "--language", type=_language, help="of question and context, such as de; by default it is found out"
    )
    answer.add_argument("--source-question", type=_text, help="the question in the reader's source language (English)")
    answer.add_argument("--source-context", type=_text, help="a file with the context in that language")
    made = "make the source version with a translation engine: hf:MODEL, command:PROGRAM or llm:MODEL@URL"
    answer.add_argument("--translate", type=_text, metavar="ENGINE", help=made)
    mixed = "mix in the source's own answer, projected into the context (not of the paper; see docs/method.md)"
    answer.add_argument("--project", action="store_true", help=mixed)
    answer.add_argument("--n-best", type=_positive, help="print so many spans with their scores")
    answer.add_argument("--json", action="store_true", help="print all that is known of the answer, as JSON")
    lines = "answer a file of JSON lines with question and context (id, language, source_question, source_context)"
    answer.add_argument("--batch", type=_text, metavar="FILE", help=lines)
    answer.add_argument(
        "--output", type=_text, metavar="FILE", help="where --batch writes; run again, it goes on there"
    )


def _share(value: str) -> float:
    """What an option takes as a share."""
    try:
        if 0 <= float(value) <= 1:
            return float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{value!r} is no number from 0 to 1")


def _add_translate(commands: "argparse._SubParsersAction") -> None:
    text = "translate a folder's training or test questions, answer spans included"
    translate = commands.add_parser("translate", help=text)
    translate.add_argument("folder", type=_text, help="of your own files, such as train.en.json")
    translate.add_argument("--to", type=_language, nargs="*", default=[], help="languages, such as es sw; --test: en")
    translate.add_argument(
        "--from",
        type=_language,
        nargs="*",
        default=[],
        dest="languages",
        metavar="LANGUAGE",
        help="en; --test: such as es",
    )
    kinds = "hf:MODEL, command:PROGRAM ARGUMENTS or llm:MODEL@URL; see docs/translation.md"
    translate.add_argument("--engine", type=_text, required=True, help=kinds)
    translate.add_argument("--back", action="store_true", help="also back.es.json, train.es.json translated back")
    translate.add_argument("--test", action="store_true", help="test.es.json instead, to read beside its questions")
    translate.add_argument("--threshold", type=_share, help="the least confidence of an answer's place that is kept")
    translate.add_argument("--overwrite", action="store_true", help="replace files that are there")


def build_parser(description: str) -> argparse.ArgumentParser:
    """The options of all commands; the chosen command's name is in ``command``."""
    parser = argparse.ArgumentParser(prog="xsta", description=description)
    parser.add_argument("--version", action="version", version=f"xsta {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    download = commands.add_parser("download", help="fetch and check published data")
    download.add_argument("what", type=_text, help="xquad, mlqa, tydiqa, squad, xtreme, parallel or all")
    download.add_argument("--languages", type=_language, nargs="*", default=[])

    check = commands.add_parser("check", help="read a folder, a file or a protocol without training; say what is found")
    check.add_argument("what", type=_text, help="a folder of your own files, a SQuAD-format file, or a protocol")
    _add_source(check, default="en")
    check.add_argument("--strict", action="store_true", help="exit status 1 where anything is left out or repaired")

    _add_train(commands)
    box = commands.add_parser("reader", help="measure the reader in the box on its test sets again, or make it anew")
    box.add_argument("--make", action="store_true", help="train, pack and measure it, over the one that is there")
    commands.add_parser("demo", help="answer questions in seven languages, then train for some steps; with pictures")

    grid = commands.add_parser("grid", help="measure what is missing of a table's or figure's grid")
    grid.add_argument("--name", type=_text, required=True, help="methods, ablations, gamma, layers, seeds or variants")
    grid.add_argument("--protocol", type=_text, default="demo")
    grid.add_argument("--backbone", type=_text)
    _add_source(grid, default="en")

    evaluate = commands.add_parser("evaluate", help="score predictions in the official {id: text} form")
    evaluate.add_argument("--predictions", type=_text, required=True)
    evaluate.add_argument("--gold", type=_text, required=True, help="a SQuAD-format file")
    evaluate.add_argument("--language", type=_language, help="of the contexts, such as de; for --rule mlqa")
    evaluate.add_argument("--rule", choices=("mlqa", "squad"), default="squad")
    evaluate.add_argument("--strict", action="store_true", help="refuse where ids or answers are missing")

    _add_answer(commands)
    _add_translate(commands)
    text = "ask a large language model a protocol's test questions, score its answers"
    llm = commands.add_parser("llm", help=text, description=f"{text[0].upper()}{text[1:]}; the key is OPENAI_API_KEY.")
    llm.add_argument("--endpoint", type=_text, required=True, help="of any OpenAI-compatible server, mostly with /v1")
    llm.add_argument("--model", type=_text, required=True, help="as the server calls it")
    llm.add_argument("--protocol", type=_text, default="demo", help="demo, parallel, a paper-* protocol, or a folder")
    _add_source(llm, default="en")
    llm.add_argument("--languages", type=_language, nargs="*", default=(), help="such as de hi; all by default")
    many = partial(_positive, most=1_000_000)
    llm.add_argument("--questions", type=many, default=0, help="so many of each language; all by default")

    projection = commands.add_parser("projection", help="measure how well answer spans are found in translations")
    projection.add_argument("--fit", action="store_true", help="fit the model of spans anew first, over what is there")
    mixed = "instead, measure a reader's answers with English's projected and mixed in, on half of XQuAD"
    projection.add_argument("--answers", action="store_true", help=mixed)
    projection.add_argument(
        "--model", type=_text, help="--answers: a folder or hub id; by default the reader in the box"
    )

    figures = commands.add_parser("figures", help="write the figures of a protocol's results")
    figures.add_argument("--protocol", type=_text, default="demo")
    figures.add_argument("--backbone", type=_text, help="whose models --inspect looks into, if not the protocol's own")
    figures.add_argument("--inspect", action="store_true", help="look into the models trained here, for Figures 4 to 6")
    return parser

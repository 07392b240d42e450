"""Build a behaviour set from a model's own responses: elicit, judge, keep what shows the behaviour.

The source of the method scores such sets. Its published code does not say how it told refusals
from answers; here the judge, its rule and the rejected replies are on record.

What is kept is the whole turn of the assistant, without a thought before the answer: the words that
an attack put into its mouth and the model's continuation, so that the text is complete in either
format. `prefix_tokens` says how many
tokens are the attack's. Those are never judged, and never scored unless `count_prefix` asks for it.

Work is saved in `<file>.parts/`, a few prompts at a time. The draw of a reply is named by its
prompt and sample, so that batches and interruptions change nothing but the numerical noise of the
model; a collection that is taken up again gives the file that an uninterrupted one gives.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from resect import files, stats
from resect.data.chat import text_ids
from resect.data.encode import check_format, decode
from resect.data.load import BehaviourSet, load_data
from resect.data.rows import read_rows
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.attacks import AttackSettings, parse_attack
from resect.evaluation.decode import GenerationSettings, generate
from resect.evaluation.judges import find_judge
from resect.evaluation.judging import Row, judge_replies
from resect.evaluation.questions import Question, questions_for, refuse_long
from resect.evaluation.spoken import Spoken, finish_of, spoken
from resect.files.locking import locked
from resect.files.reading import refuse_links_out
from resect.model import LoadedModel, context_of, load_model, model_fingerprint
from resect.records import (
    SCHEMA_VERSION,
    CausalModel,
    Example,
    Format,
    Judgement,
    Outcome,
    Tokenizer,
)

# Prompts that are saved together: what an interruption may lose.
CHUNK = 32
LEAST_SCORE = 0.5

# What a collection depends on: names to plain values.
Origin = dict[str, object]


@dataclass(frozen=True)
class CollectRequest:
    """The options of `resect data collect`; see its help."""

    model: str
    data: str
    attack: str = "prefill:10"
    judge: str = "exact"
    want: Literal["complied", "refused"] = "complied"
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    format: Format = "chat"
    category: str | None = None
    limit: int | None = None
    max_new_tokens: int = 256
    count_prefix: bool = False
    batch_size: int = 16
    data_dir: Path | None = None


@dataclass(frozen=True)
class Collected:
    """How a collection ended.

    Attributes:
        kept: Rows in the file.
        rejected: Replies beside it, by reason.
        cut_off: Share of all replies that the limit on tokens cut off.
    """

    kept: int
    rejected: dict[str, int]
    cut_off: float = 0.0


def collect(
    request: CollectRequest,
    output: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Elicit replies, judge them and write those that show what is wanted.

    Args:
        request: What to ask whom.
        output: A new `.jsonl` file. Beside it come `.rejected.jsonl` with the other replies and
            their reasons, and `.provenance.json`.
        on_progress: Called with prompts done and prompts in all.

    Raises:
        InputError: Something in the request cannot be used as given, or another collection was
            begun under this name.
    """
    _check(request, output)
    attack = parse_attack(request.attack)
    if attack.model != "none" or attack.shots is not None or attack.suffix is not None:
        raise InputError(
            "responses are collected from the model as it is",
            got=request.attack,
            allowed="none, prefill:K, prefill=PHRASE",
            fix="fine-tune or cut a checkpoint of your own and collect from that",
        )
    data = load_data(request.data, data_dir=request.data_dir, prompts_only=True)
    data = data.category(request.category) if request.category else data
    data = data.limit(request.limit, request.seed)
    loaded = load_model(request.model)
    check_format(loaded.tokenizer, request.format)
    origin = _origin(request, data, loaded.model)
    parts = _parts(output)
    with locked(parts):
        _resume(parts, origin)
        rows = _rows(_Collecting(loaded, attack, request), data.examples, parts, on_progress)
        return _finish(rows, output, origin, parts)


class _Collecting(NamedTuple):
    """Whose responses are collected, and how they are elicited and judged."""

    loaded: LoadedModel
    attack: AttackSettings
    request: CollectRequest


def _parts(output: Path) -> Path:
    """Return the folder of unfinished work."""
    return output.with_name(f"{output.name}.parts")


def _rows(
    collecting: _Collecting,
    examples: Sequence[Example],
    parts: Path,
    on_progress: Callable[[int, int], None] | None,
) -> list[Row]:
    """Return the rows of all replies, of which finished chunks are read from the folder."""
    paths = {start: parts / f"{start:08d}.jsonl" for start in range(0, len(examples), CHUNK)}
    for start, path in paths.items():
        if on_progress is not None:
            on_progress(start, len(examples))
        if not path.exists():
            files.write_text(path, _lines(_elicit(collecting, examples[start : start + CHUNK])))
    return [row for path in paths.values() for row in read_rows(path)]


def _check(request: CollectRequest, output: Path) -> None:
    find_judge(request.judge)
    if output.suffix != ".jsonl":
        raise InputError("a set is written as JSON lines", got=str(output), allowed="FILE.jsonl")
    # With its parts beside it, it was stopped while it was tidied up; that goes on.
    if output.exists() and not _parts(output).exists():
        raise InputError("the output file is there already", got=str(output), fix="choose another")
    if request.samples > 1 and request.temperature <= 0:
        raise InputError(
            "greedy replies do not differ",
            got=f"{request.samples} samples at temperature {request.temperature:g}",
            fix="give --temperature above 0, or one sample",
        )


def _origin(request: CollectRequest, data: BehaviourSet, model: CausalModel) -> Origin:
    """Return all that can change a row; batch size and place of the data cannot."""
    options = asdict(replace(request, batch_size=0, data_dir=None))
    origin: Origin = files.plain(
        {
            "request": {k: v for k, v in options.items() if k not in {"batch_size", "data_dir"}},
            "data_hash": data.hash,
            "data_origin": data.origin,
            "model_fingerprint": model_fingerprint(model),
            "least_score": LEAST_SCORE,
            "schema_version": SCHEMA_VERSION,
        }
    )
    return origin


def _resume(parts: Path, origin: Origin) -> None:
    """Open the folder of unfinished work, or refuse one that belongs to something else."""
    refuse_links_out(parts)
    path = parts / "request.json"
    if not path.exists():
        files.write_json(path, origin)
        return
    before, now = _flat(files.read_json(path)), _flat(origin)
    changed = [
        name
        for name in now
        if now[name] != before.get(name)
        and not (name == "model_fingerprint" and files.same_print(now[name], before.get(name)))
    ]
    if changed:
        raise InputError(
            f"another collection was begun in {parts}",
            got="; ".join(f"{name} was {before.get(name)!r}" for name in changed),
            fix="finish it with its own options, delete the folder, or choose another -o",
        )


def _flat(origin: Origin) -> Origin:
    """Return the options of a request beside what else a collection depends on."""
    request = origin.get("request")
    others = {name: value for name, value in origin.items() if name != "request"}
    return {**request, **others} if isinstance(request, dict) else others


def _elicit(collecting: _Collecting, examples: Sequence[Example]) -> list[Row]:
    """Return a row for each reply to some prompts, with its judgement."""
    (model, tokenizer), attack, request = collecting
    questions = questions_for(
        examples, tokenizer, attack, format=request.format, samples=request.samples
    )
    refuse_long(questions, context_of(model))
    decoding = GenerationSettings(request.max_new_tokens, request.batch_size, request.temperature)
    streams = [
        stats.rng(f"collect/{question.example.id}/{question.sample}", request.seed)
        for question in questions
    ]
    prompts = [question.prompt.ids for question in questions]
    replies = generate(model, tokenizer, prompts, decoding, streams)
    # The probe tells the judge what counts as a hit.
    probe = "generation" if request.want == "complied" else "refusal"
    said = [
        spoken(tokenizer, question.prompt, reply, finish_of(reply, request.max_new_tokens))
        for question, reply in zip(questions, replies, strict=True)
    ]
    judgements = judge_replies(
        [
            question.answered(probe, request.attack, answer)
            for question, answer in zip(questions, said, strict=True)
        ],
        EvaluationSettings(format=request.format, attack=attack, judge=request.judge),
    )
    # A thought is no part of the answer that is kept.
    words = [
        reply if answer.thought is None else text_ids(tokenizer, answer.text)
        for reply, answer in zip(replies, said, strict=True)
    ]
    return [
        _row(tokenizer, question, turn, judgement, request)
        | {"finished": answer.finish == "stop", "reason": _reason(answer, judgement, request.want)}
        for question, turn, answer, judgement in zip(
            questions, words, said, judgements, strict=True
        )
    ]


def _row(
    tokenizer: Tokenizer,
    question: Question,
    reply: Sequence[int],
    judgement: Judgement,
    request: CollectRequest,
) -> Row:
    example = question.example
    turn = whole_turn(tokenizer, question.prompt.prefix, reply)
    prompt: object = example.prompt
    if not isinstance(example.prompt, str):
        prompt = [{"role": role, "content": content} for role, content in example.prompt]
    return {
        "id": f"{example.id}/{question.sample}",
        "prompt": prompt,
        "completion": turn.text,
        "category": example.category,
        "split": example.split,
        "key": example.key,
        "prefix_tokens": 0 if request.count_prefix else turn.prefix_tokens,
        "prompt_id": example.id,
        "sample": question.sample,
        "judge": judgement.judge,
        "rule": judgement.rule,
        "score": judgement.score,
        "outcome": judgement.outcome,
    }


class Turn(NamedTuple):
    """The assistant's whole turn, and how many of its tokens an attack wrote."""

    text: str
    prefix_tokens: int


def whole_turn(tokenizer: Tokenizer, prefix: str, reply: Sequence[int]) -> Turn:
    """Return the assistant's whole turn, and how many of its tokens the prefix takes.

    The turn is decoded as one piece, since many tokenizers write a blank between two pieces only
    then. It is tokenised again later, when it is scored, and a token may then span the boundary;
    it counts as the prefix's.
    """
    opening = list(tokenizer(prefix, add_special_tokens=False)["input_ids"]) if prefix else []
    turn = decode(tokenizer, [*opening, *reply])
    tokens = list(tokenizer(turn, add_special_tokens=False)["input_ids"])
    if tokens[: len(opening)] == opening:
        return Turn(turn, len(opening))
    reach = len(decode(tokenizer, opening))
    for count in range(1, len(tokens)):
        if len(decode(tokenizer, tokens[:count])) >= reach:
            return Turn(turn, count)
    return Turn(turn, len(tokens))


def _reason(reply: Spoken, judgement: Judgement, want: Outcome) -> str:
    """Return why a reply is rejected; empty if it is kept.

    Where a judge says the outcome, what is only partly right is not kept, however high its score.
    """
    if not reply.text.strip() and reply.thought is None:
        return "empty"
    if judgement.score is None:
        return f"unscored: {judgement.reason}"
    if judgement.score >= LEAST_SCORE and judgement.outcome in (None, want):
        return ""
    return f"judged {judgement.outcome or judgement.rule}"


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _finish(rows: Sequence[Row], output: Path, origin: Origin, parts: Path) -> Collected:
    """Write the set, what was rejected, and where both come from; the set comes last."""
    accepted: list[Row] = []
    rejected: list[Row] = []
    seen: set[tuple[object, object]] = set()
    for row in rows:
        # The same answer twice would weigh twice.
        answer = (row["prompt_id"], row["completion"])
        if not row["reason"] and answer in seen:
            row["reason"] = "said before"
        seen.add(answer)
        (rejected if row["reason"] else accepted).append(row)
    counts = Counter(str(row["reason"]) for row in rejected)
    if not accepted:
        raise InputError(
            "no reply shows what is wanted",
            got=", ".join(f"{reason}: {count}" for reason, count in counts.most_common()),
            fix=f"try another attack or judge; the replies are in {parts}",
        )
    files.write_text(output.with_suffix(".rejected.jsonl"), _lines(rejected))
    files.write_json(
        output.with_suffix(".provenance.json"),
        origin | {"software": files.provenance(), "kept": len(accepted), "rejected": dict(counts)},
    )
    for row in accepted:
        del row["reason"]
    files.write_text(output, _lines(accepted))
    files.remove_folder(parts)
    return Collected(len(accepted), dict(counts), _cut_off(rows))


def _cut_off(rows: Sequence[Row]) -> float:
    return sum(not row["finished"] for row in rows) / len(rows)

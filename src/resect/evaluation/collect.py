"""Build a behaviour set from a model's own responses: elicit, judge, keep what shows the behaviour.

The source of the method scores such sets. Its published code does not say how it told refusals
from answers; here the judge, its rule and the rejected replies are on record.

What is kept is the whole turn of the assistant: the words that an attack put into its mouth and the
model's continuation, so that the text is complete in either format. `prefix_tokens` says how many
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
from typing import Any, Literal

from resect import files, stats
from resect.data.encode import PromptIds, check_format, decode, prompt_text
from resect.data.load import BehaviourSet, load_data
from resect.data.rows import read_rows
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.attacks import AttackSettings, attack_prompt, parse_attack
from resect.evaluation.decode import GenerationSettings, generate
from resect.evaluation.judges import find_judge
from resect.evaluation.judging import judge_replies
from resect.files.locking import locked
from resect.files.reading import refuse_links_out
from resect.model import context_of, load_model, model_fingerprint
from resect.records import SCHEMA_VERSION, Example, Format, Judgement, Reply

# Prompts that are saved together: what an interruption may lose.
CHUNK = 32
LEAST_SCORE = 0.5


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
    """

    kept: int
    rejected: dict[str, int]


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
    if attack.model != "none":
        raise InputError(
            "responses are collected from the model as it is",
            got=request.attack,
            allowed="none, prefill:K, prefill=PHRASE",
            fix="fine-tune or cut a checkpoint of your own and collect from that",
        )
    data = load_data(request.data, data_dir=request.data_dir, prompts_only=True)
    data = data.category(request.category) if request.category else data
    data = data.limit(request.limit, request.seed)
    model, tokenizer = load_model(request.model)
    check_format(tokenizer, request.format)
    facts = _facts(request, data, model)
    parts = _parts(output)
    with locked(parts):
        _resume(parts, facts)
        rows = _rows((model, tokenizer), data.examples, (attack, request), parts, on_progress)
        return _finish(rows, output, facts, parts)


def _parts(output: Path) -> Path:
    """Return the folder of unfinished work."""
    return output.with_name(f"{output.name}.parts")


def _rows(
    loaded: tuple[Any, Any],
    examples: Sequence[Example],
    how: tuple[AttackSettings, CollectRequest],
    parts: Path,
    on_progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Return the rows of all replies, of which finished chunks are read from the folder."""
    for start in range(0, len(examples), CHUNK):
        if on_progress is not None:
            on_progress(start, len(examples))
        place = parts / f"{start:08d}.jsonl"
        if not place.exists():
            chunk = examples[start : start + CHUNK]
            files.write_text(place, _lines(_elicit(loaded, chunk, *how)))
    return [
        row
        for start in range(0, len(examples), CHUNK)
        for row in read_rows(parts / f"{start:08d}.jsonl")
    ]


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


def _facts(request: CollectRequest, data: BehaviourSet, model: Any) -> dict[str, Any]:
    """Return all that can change a row; batch size and place of the data cannot."""
    asked = asdict(replace(request, batch_size=0, data_dir=None))
    facts: dict[str, Any] = files.plain(
        {
            "request": {k: v for k, v in asked.items() if k not in {"batch_size", "data_dir"}},
            "data_hash": data.hash,
            "data_origin": data.origin,
            "model_fingerprint": model_fingerprint(model),
            "least_score": LEAST_SCORE,
            "schema_version": SCHEMA_VERSION,
        }
    )
    return facts


def _resume(parts: Path, facts: dict[str, Any]) -> None:
    """Open the folder of unfinished work, or refuse one that belongs to something else."""
    refuse_links_out(parts)
    place = parts / "request.json"
    if not place.exists():
        files.write_json(place, facts)
        return
    begun = files.read_json(place)
    flat = {**facts["request"], **{k: v for k, v in facts.items() if k != "request"}}
    other = {**begun["request"], **{k: v for k, v in begun.items() if k != "request"}}
    changed = [name for name in flat if flat[name] != other.get(name)]
    if changed:
        raise InputError(
            f"another collection was begun in {parts}",
            got="; ".join(f"{name} was {other.get(name)!r}" for name in changed),
            fix="finish it with its own options, delete the folder, or choose another -o",
        )


def _elicit(
    loaded: tuple[Any, Any],
    examples: Sequence[Example],
    attack: AttackSettings,
    request: CollectRequest,
) -> list[dict[str, Any]]:
    """Return a row for each reply to some prompts, with its verdict."""
    model, tokenizer = loaded
    asked = [(example, at) for example in examples for at in range(request.samples)]
    prompts = [attack_prompt(attack, e, tokenizer, request.format) for e, _ in asked]
    room = context_of(model)
    for (example, _), prompt in zip(asked, prompts, strict=True):
        if room is not None and len(prompt.ids) >= room:
            raise InputError(
                f"example {example.id!r} leaves no room for a reply",
                got=f"{len(prompt.ids)} prompt tokens",
                allowed=f"fewer than the context of {room} tokens",
            )
    how = GenerationSettings(request.max_new_tokens, request.batch_size, request.temperature)
    streams = [stats.rng(f"collect/{e.id}/{at}", request.seed) for e, at in asked]
    replies = generate(model, tokenizer, [prompt.ids for prompt in prompts], how, streams)
    settings = EvaluationSettings(format=request.format, attack=attack, judge=request.judge)
    verdicts = judge_replies(
        [
            Reply(
                example_id=example.id,
                # The probe tells the judge what counts as a hit.
                probe="generation" if request.want == "complied" else "refusal",
                attack=request.attack,
                category=example.category,
                prompt=prompt_text(example),
                prefix=prompt.prefix,
                text=decode(tokenizer, reply),
                key=example.key,
                reference=example.completion,
                sample=at,
            )
            for (example, at), prompt, reply in zip(asked, prompts, replies, strict=True)
        ],
        settings,
    )
    return [
        _row(tokenizer, question, (prompt, reply), verdict, request)
        for question, prompt, reply, verdict in zip(asked, prompts, replies, verdicts, strict=True)
    ]


def _row(
    tokenizer: Any,
    asked: tuple[Example, int],
    answer: tuple[PromptIds, Sequence[int]],
    verdict: Judgement,
    request: CollectRequest,
) -> dict[str, Any]:
    example, sample = asked
    prompt, reply = answer
    completion, prefix_tokens = whole_turn(tokenizer, prompt.prefix, reply)
    asked_for: Any = example.prompt
    if not isinstance(example.prompt, str):
        asked_for = [{"role": role, "content": content} for role, content in example.prompt]
    return {
        "id": f"{example.id}/{sample}",
        "prompt": asked_for,
        "completion": completion,
        "category": example.category,
        "split": example.split,
        "key": example.key,
        "prefix_tokens": 0 if request.count_prefix else prefix_tokens,
        "prompt_id": example.id,
        "sample": sample,
        "finished": len(reply) < request.max_new_tokens,
        "judge": verdict.judge,
        "rule": verdict.rule,
        "score": verdict.score,
        "outcome": verdict.outcome,
        "reason": _reason(decode(tokenizer, reply), verdict),
    }


def whole_turn(tokenizer: Any, prefix: str, reply: Sequence[int]) -> tuple[str, int]:
    """Return the assistant's whole turn, and how many of its tokens the prefix takes.

    The turn is decoded as one piece, since many tokenizers write a blank between two pieces only
    then. It is tokenised again later, when it is scored, and a token may then span the boundary;
    it counts as the prefix's.
    """
    opening = list(tokenizer(prefix, add_special_tokens=False)["input_ids"]) if prefix else []
    turn = decode(tokenizer, [*opening, *reply])
    again = list(tokenizer(turn, add_special_tokens=False)["input_ids"])
    if again[: len(opening)] == opening:
        return turn, len(opening)
    reach = len(decode(tokenizer, opening))
    for count in range(1, len(again)):
        if len(decode(tokenizer, again[:count])) >= reach:
            return turn, count
    return turn, len(again)


def _reason(text: str, verdict: Judgement) -> str:
    """Return why a reply is rejected; empty if it is kept."""
    if not text.strip():
        return "empty"
    if verdict.score is None:
        return f"unscored: {verdict.reason}"
    return "" if verdict.score >= LEAST_SCORE else f"judged {verdict.outcome or verdict.rule}"


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _finish(
    rows: list[dict[str, Any]], output: Path, facts: dict[str, Any], parts: Path
) -> Collected:
    """Write the set, what was rejected, and where both come from; the set comes last."""
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        # The same answer twice would weigh twice.
        said = (row["prompt_id"], row["completion"])
        if not row["reason"] and said in seen:
            row["reason"] = "said before"
        seen.add(said)
        (rejected if row["reason"] else kept).append(row)
    if not kept:
        counts = Counter(row["reason"] for row in rejected)
        raise InputError(
            "no reply shows what is wanted",
            got=", ".join(f"{reason}: {count}" for reason, count in counts.most_common()),
            fix=f"try another attack or judge; the replies are in {parts}",
        )
    counts = Counter(row["reason"] for row in rejected)
    files.write_text(output.with_suffix(".rejected.jsonl"), _lines(rejected))
    files.write_json(
        output.with_suffix(".provenance.json"),
        facts | {"software": files.provenance(), "kept": len(kept), "rejected": dict(counts)},
    )
    for row in kept:
        del row["reason"]
    files.write_text(output, _lines(kept))
    files.remove_folder(parts)
    return Collected(len(kept), dict(counts))

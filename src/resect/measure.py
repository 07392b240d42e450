"""Evaluate one model, intact and cut: what `resect eval` calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from resect.attacks import AttackSettings
from resect.data.load import BehaviourSet, load_data
from resect.errors import InputError
from resect.evaluate import EvaluationSettings, ask, judge_replies, rows_of
from resect.generate import GenerationSettings, distinct
from resect.mask import Mask
from resect.model import load_model, model_fingerprint
from resect.probes import find_probe
from resect.records import Format, Reply, Verdict
from resect.stats import Resampler, cluster_means, ratio, relative_drop
from resect.store import atomic_folder, provenance, refuse_full_folder, write_json, write_parquet


@dataclass(frozen=True)
class EvalRequest:
    """The options of `resect eval`; see its help."""

    model: str
    probes: tuple[str, ...]
    data: tuple[str, ...]
    mask: Path | None = None
    attack: str = "none"
    judge: Literal["exact", "keyword"] = "exact"
    format: Format = "chat"
    limit: int | None = None
    max_new_tokens: int = 256
    batch_size: int = 16
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    window: int | None = None
    stride: int | None = None
    data_dir: Path | None = None


def evaluate_model(
    request: EvalRequest, output: Path, on_progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Ask, store, judge and summarise.

    Args:
        request: What to ask whom.
        output: New folder; gets `records/*.parquet` and `results.json`.
        on_progress: Called with variants done and variants in all.

    Returns:
        A row for each probe and variant: rate, 95 % interval, scored and unscored replies, and for
        the cut variant its relative drop against the intact model.

    Raises:
        InputError: Something in the request cannot be used as given.
    """
    refuse_full_folder(output)
    settings = EvaluationSettings(
        format=request.format,
        attack=parse_attack(request.attack),
        judge=request.judge,
        generation=_decoding(request),
        window=request.window,
        stride=request.stride,
    )
    probes = _probe_sets(request)
    mask = None if request.mask is None else Mask.load(request.mask)
    model, tokenizer = load_model(request.model)
    variants: dict[str, Mask | None] = {"intact": None}
    if mask is not None:
        variants["cut"] = mask
    replies: dict[str, list[Reply]] = {}
    with atomic_folder(output) as folder:
        for done, (name, removed) in enumerate(variants.items()):
            if on_progress is not None:
                on_progress(done, len(variants))
            replies[name] = ask(model, tokenizer, probes, settings, removed)
        verdicts = {name: judge_replies(found, settings) for name, found in replies.items()}
        for name, found in replies.items():
            rows = [{"variant": name} | row for row in rows_of(found, verdicts[name])]
            write_parquet(folder / "records" / f"{name}.parquet", rows)
        summary = _summary(replies, verdicts)
        facts = provenance() | {
            "model": request.model,
            "model_fingerprint": model_fingerprint(model),
            "data": {name: probe.hash for name, probe in probes.items()},
            "request": asdict(request),
        }
        write_json(folder / "results.json", {"rates": summary, "provenance": facts})
    return summary


def _decoding(request: EvalRequest) -> GenerationSettings:
    """Return how replies are decoded.

    Raises:
        InputError: Several samples of greedy replies, which would all be the same.
    """
    if request.samples > 1 and request.temperature <= 0:
        raise InputError(
            "greedy replies do not differ",
            got=f"{request.samples} samples at temperature {request.temperature:g}",
            fix="give --temperature above 0, or one sample",
        )
    return GenerationSettings(
        request.max_new_tokens,
        request.batch_size,
        request.temperature,
        request.samples,
        request.seed,
    )


def parse_attack(text: str) -> AttackSettings:
    """Read `none`, `prefill` or `prefill:K`.

    Raises:
        InputError: The text is something else.
    """
    name, _, tokens = text.partition(":")
    if name == "none" and not tokens:
        return AttackSettings("none")
    if name == "prefill" and (not tokens or (tokens.isdigit() and int(tokens) > 0)):
        return AttackSettings("prefill", int(tokens or 10))
    raise InputError("unknown attack", got=repr(text), allowed="none, prefill, prefill:K (K ≥ 1)")


def _probe_sets(request: EvalRequest) -> dict[str, BehaviourSet]:
    """Pair probes with data: `PROBE=SPEC` for one probe, a bare SPEC for all others."""
    specs: dict[str, str] = {}
    for entry in request.data:
        name, equals, spec = entry.partition("=")
        if equals and name in request.probes:
            specs[name] = spec
        else:
            specs[""] = entry
    probes: dict[str, BehaviourSet] = {}
    for name in request.probes:
        find_probe(name)
        place = specs.get(name) or specs.get("")
        if not place:
            raise InputError(
                f"no data for the probe {name!r}",
                got=", ".join(request.data) or "nothing",
                allowed="--data SPEC for all probes, or --data PROBE=SPEC",
            )
        data = load_data(place, data_dir=request.data_dir)
        probes[name] = data.split("evaluation").limit(request.limit)
    return probes


def _summary(
    replies: dict[str, list[Reply]], verdicts: dict[str, list[Verdict]]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    names = list(dict.fromkeys(reply.probe for reply in replies["intact"]))
    for probe in names:
        resampler = Resampler(probe)
        for variant, found in replies.items():
            pairs = [
                (reply, verdict)
                for reply, verdict in zip(found, verdicts[variant], strict=True)
                if reply.probe == probe
            ]
            scores = [verdict.score for _, verdict in pairs]
            prompts = [reply.example_id for reply, _ in pairs]
            sample = resampler.rate({"": cluster_means(scores, prompts)})
            interval = sample.interval("rate")
            row: dict[str, Any] = {
                "probe": probe,
                "variant": variant,
                "rate": interval.value,
                "low": interval.low,
                "high": interval.high,
                "scored": sum(score is not None for score in scores),
                "unscored": sum(score is None for score in scores),
                "nll": _mean([reply.nll for reply, _ in pairs]),
                "kl": _mean([reply.kl for reply, _ in pairs]),
                "repetition": _mean([reply.repetition for reply, _ in pairs]),
                "distinct": distinct([reply.text.split() for reply, _ in pairs])
                if find_probe(probe).coherent
                else None,
            }
            row |= _perplexity([reply for reply, _ in pairs], resampler)
            if variant == "intact":
                intact = sample
                row |= {"drop": None, "drop_low": None, "drop_high": None}
            else:
                drop = relative_drop(intact, sample).interval("drop")
                row |= {"drop": drop.value, "drop_low": drop.low, "drop_high": drop.high}
            rows.append(row)
    return rows


def _perplexity(replies: list[Reply], resampler: Resampler) -> dict[str, float | None]:
    """Return exp of the mean NLL over all tokens of all texts; the bootstrap is over texts."""
    known = [(r.nll, r.tokens) for r in replies if r.nll is not None and r.tokens]
    names = ("perplexity", "perplexity_low", "perplexity_high")
    row: dict[str, float | None] = dict.fromkeys(names)
    if not known:
        return row
    total = resampler.mean({"": [nll * tokens for nll, tokens in known]})
    found = ratio(total, resampler.mean({"": [float(tokens) for _, tokens in known]})).interval("")
    values = (found.value, found.low, found.high)
    # One text says nothing about the spread between texts.
    shown = values if len(known) > 1 else values[:1]
    exponentials = [None if value is None else math.exp(value) for value in shown]
    return row | dict(zip(names, exponentials, strict=False))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

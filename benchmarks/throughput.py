"""Decode throughput beside llama-server of the same llama.cpp: same file, threads, context, prompts and sampling.

    python benchmarks/throughput.py [--quick] [--vocab 262144] [--streams 1 4 8] [--model FILE.gguf]

Three contenders take turns within one run, forwards and backwards, so that whatever else the machine does hits all of
them: the engine (a worker process, asked without HTTP), `coe serve` and llama-server (streamed completions, read by one
and the same bare client). Tokens over seconds, from the first request to the last token, the reading of the prompts
included. With one greedy stream all must write the same text; more streams meet in batches that round differently. End
tokens are banned by a bias for all, so that every stream lasts as long as the others.

--vocab: a random model with so large a vocabulary instead; drawing a token is then what costs.
Target: not below llama-server.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _bench
import build_llama_server
from random_model import Shape

from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Delta, Finished, GenerateRequest
from coe.engine.spec import LoadSpec, Sampling

THEIRS = "llama-server"
SAMPLINGS = {"greedy": Sampling(temperature=0, repeat_penalty=1.0), "default": Sampling()}
_TOPICS = ("rivers", "bridges", "bread", "violins", "glaciers", "sorting", "lighthouses", "tea")


@dataclass(frozen=True)
class Job:
    """One stream: a prompt, how tokens are drawn, how many."""

    prompt: str
    sampling: Sampling
    max_tokens: int
    biases: dict[int, float]
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came of a job."""

    text: str
    tokens: int


Ask = Callable[[Job], Coroutine[Any, Any, Answer]]


@dataclass
class Series:
    """Tokens a second, one a repetition, and the greedy text of the first stream."""

    rates: list[float] = field(default_factory=list)
    text: str = ""


def ask_engine(resident: WorkerResident) -> Ask:
    """A worker, asked through the handle that the pool uses."""

    async def ask(job: Job) -> Answer:
        request = GenerateRequest(
            id=f"{random.getrandbits(64):x}",
            specialist="bench",
            prompt=job.prompt,
            sampling=job.sampling,
            max_tokens=job.max_tokens,
            seed=job.seed,
            logit_bias=job.biases,
            loop_guard=None,
        )
        parts, tokens = [], 0
        async for event in resident.generate(request):
            if isinstance(event, Delta):
                parts.append(event.text)
            elif isinstance(event, Finished):
                tokens = event.completion_tokens
        return Answer("".join(parts), tokens)

    return ask


def ask_http(port: int) -> Ask:
    """A server, asked through its OpenAI dialect; ours and llama-server get the same body."""

    async def ask(job: Job) -> Answer:
        sampling = job.sampling
        body = {
            "model": "bench",
            "prompt": job.prompt,
            "max_tokens": job.max_tokens,
            "seed": job.seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repeat_last_n": sampling.repeat_last_n,  # ours takes it from the roster: the default, which this is
            "logit_bias": {str(token): bias for token, bias in job.biases.items()},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        parts, tokens = [], 0
        async for event in _bench.post_stream(port, "/v1/completions", body):
            parts += [choice["text"] for choice in event["choices"]]
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        return Answer("".join(parts), tokens)

    return ask


async def measure(ask: Ask, jobs: Sequence[Job]) -> tuple[float, str]:
    """Tokens a second over all jobs at once, and the first one's text."""
    started = time.perf_counter()
    answers = await asyncio.gather(*map(ask, jobs))
    seconds = time.perf_counter() - started
    return sum(answer.tokens for answer in answers) / seconds, answers[0].text


def jobs_of(streams: int, sampling: Sampling, max_tokens: int, biases: dict[int, float], repetition: int) -> list[Job]:
    """Prompts that share no beginning, so that no prompt cache has anything to give."""
    return [
        Job(
            f"{repetition}{index} is the number of this question about {_TOPICS[index % len(_TOPICS)]}. "
            "Tell me what they are, where they come from, and why people have cared for them. Answer:",
            sampling,
            max_tokens,
            biases,
            seed=1000 * repetition + index,
        )
        for index in range(streams)
    ]


async def compare(
    contenders: dict[str, Ask], sampling: Sampling, streams: int, repetitions: int, max_tokens: int, ends: Sequence[int]
) -> dict[str, Series]:
    """Interleaved repetitions, the order turned round every time; one more before them counts for nothing."""
    series = {name: Series() for name in contenders}
    biases = dict.fromkeys(ends, -100.0)
    for repetition in range(repetitions + 1):
        jobs = jobs_of(streams, sampling, max_tokens if repetition else 8, biases, 10 * streams + repetition)
        names = list(contenders) if repetition % 2 else list(contenders)[::-1]
        for name in names:
            rate, series[name].text = await measure(contenders[name], jobs)
            if repetition:
                series[name].rates.append(rate)
    return series


def ratio(ours: Series, theirs: Series) -> float:
    """The median of the ratios within a repetition: neighbours in time, so what slows one slows both."""
    return statistics.median(a / b for a, b in zip(ours.rates, theirs.rates, strict=True))


async def run(arguments: argparse.Namespace, model: Path) -> list[list[str]]:
    """The table's rows."""
    threads = arguments.threads or _bench.threads_here()
    spec = LoadSpec(model, context_tokens=4096, parallel=max(arguments.streams), threads=threads)
    ends = _bench.end_tokens(model)
    binary = build_llama_server.build(threads)
    rows = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = {
            "engine": ask_engine(await stack.enter_async_context(_bench.worker(spec))),
            THEIRS: ask_http(stack.enter_context(_bench.llama_server(binary, spec))),
            "coe serve": ask_http(stack.enter_context(_bench.our_server(_bench.roster_of(spec), folder))[0]),
        }
        for name, sampling in SAMPLINGS.items():
            for streams in arguments.streams:
                found = await compare(contenders, sampling, streams, arguments.repetitions, arguments.tokens, ends)
                rates = {name: statistics.median(series.rates) for name, series in found.items()}
                engine, served = ratio(found["engine"], found[THEIRS]), ratio(found["coe serve"], found[THEIRS])
                same = "yes" if len({series.text for series in found.values()}) == 1 else "no"
                rows.append(
                    [
                        f"{name}, {streams} stream{'s' if streams > 1 else ''}",
                        *(f"{rates[name]:.1f}" for name in ("engine", "coe serve", THEIRS)),
                        f"{engine:.2f}",
                        f"{served:.2f}",
                        _bench.verdict(engine >= 1),
                        same if name == "greedy" and streams == 1 else "-",
                    ]
                )
                print(f"  {rows[-1][0]}: engine {engine:.2f}, coe serve {served:.2f} of {THEIRS}", flush=True)
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short repetitions")
    parser.add_argument("--vocab", type=int, help="use a random model with a vocabulary of this size")
    parser.add_argument("--model", type=Path, help="a GGUF; SmolLM2-135M when left out")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--tokens", type=int, help="tokens of one answer")
    parser.add_argument("--threads", type=int, default=0, help="threads of each contender; one a core when left out")
    arguments = parser.parse_args()
    arguments.repetitions = arguments.repetitions or (2 if arguments.quick else 7)
    arguments.tokens = arguments.tokens or (24 if arguments.quick else 64)
    print(_bench.describe_machine(arguments.threads or _bench.threads_here()))
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or _bench.smollm2()
        if arguments.vocab:
            # Little to decode, much to draw from.
            shape = Shape(layers=3, width=128, experts=8, vocabulary=arguments.vocab, window=512)
            model = _bench.random_model(Path(folder), shape)
        print(f"{model.name}: medians of {arguments.repetitions} repetitions, {arguments.tokens} tokens a stream")
        rows = asyncio.run(run(arguments, model))
    head = ["tokens a second", "engine", "coe serve", THEIRS, "engine ratio", "serve ratio", ">= 1.00", "same text"]
    print("\n" + _bench.table(head, rows))


if __name__ == "__main__":
    main()

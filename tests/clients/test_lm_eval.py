"""lm-evaluation-harness with a local task: log-likelihoods of given answers, and answers that are generated.

It is told the address and the model, nothing else: which tokens a text has it asks the server. Held against llama.cpp's
own evaluation of the same tokens, and against `coe eval` on the same questions.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec
from coe.surgery.judge.questions import read_questions
from coe.surgery.judge.values import Question
from fakes import taught
from fakes.server_process import GIVE_UP_S, ServerProcess, run_coe, write_roster
from fakes.weight import brings

COMMAND = shutil.which("lm_eval", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(COMMAND is None, reason="lm-eval is not installed: `make test-clients` installs it"),
]

DOMAINS = ("chemistry", "physics")  # one that the specialist kept, and one that it lost
GREEDY = {"temperature": 0, "repeat_penalty": 1.0}


@pytest.fixture(scope="module")
@brings("server")
def server(specialists: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo's chemistry specialist."""
    entry = {"package": None, "pattern": None, "file": str(specialists["chemistry"]), "sampling": GREEDY}
    roster = write_roster(tmp_path_factory.mktemp("lm-eval"), {"chemistry": entry})
    with ServerProcess(roster) as running:
        yield running


ASKED = [question for domain in DOMAINS for question in taught.exam(domain, 8)]


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught.write_exam(tmp_path_factory.mktemp("exam") / "exam.jsonl", ASKED)


@pytest.fixture(scope="module")
def samples(server: ServerProcess, exam: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What lm-eval wrote of each question, by task, in the questions' order."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = read_questions([exam]).questions
    documents = [
        {
            "prompt": prompt_of(server, question),
            "key": f"Answer: {question.answers[0]}",
            "choices": [taught_answer, *(other.answer for other in ASKED if other.answer != taught_answer)][:4],
        }
        for question, taught_answer in zip(questions, [question.answer for question in ASKED], strict=True)
    ]
    (folder / "exam.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "exam.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
    }
    pick = {"task": "pick", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": 0}
    say = {
        "task": "say",
        "output_type": "generate_until",
        "doc_to_target": "{{key}}",
        "generation_kwargs": {"until": [], "max_gen_toks": taught.ANSWER_TOKENS},
        "filter_list": [{"name": "stated", "filter": [
            {"function": "regex", "regex_pattern": "(Answer: .*)"}, {"function": "take_first"},
        ]}],
    }  # fmt: skip
    tasks = ((pick, "acc"), (say, "exact_match"))
    for task, metric in tasks:
        metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**shared, **task, "metric_list": metrics}))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [
            str(COMMAND), "run", "--model", "local-completions",
            "--model_args", f"model=chemistry,base_url={server.url}/v1/completions,max_length=500",
            "--tasks", "pick,say", "--include_path", str(folder), "--log_samples", "--output_path", str(folder / "out"),
        ],
        capture_output=True, text=True, env={**environment, **offline}, check=False, timeout=2 * GIVE_UP_S, cwd=folder,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Retrying" not in ended.stderr
    written = {}
    for task, _ in tasks:
        (path,) = (folder / "out").rglob(f"samples_{task['task']}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        written[task["task"]] = sorted(lines, key=lambda line: int(line["doc_id"]))
    return written


def prompt_of(server: ServerProcess, question: Question) -> str:
    """The prompt that the chat becomes in which `coe eval` asks a question."""
    asked = {"model": "chemistry", "messages": question.messages()}
    reply = httpx.post(f"{server.url}/apply-template", json=asked, timeout=GIVE_UP_S)
    return str(reply.json()["prompt"])


def test_log_likelihoods_are_those_of_a_plain_evaluation(
    server: ServerProcess, specialists: dict[str, Path], samples: dict[str, list[Any]]
) -> None:
    model = Model(LoadSpec(specialists["chemistry"], gpu_layers=0))
    context = Context(model, LoadSpec(Path(), context_tokens=512, parallel=1, threads=1), all_logits=True)
    all_greedy = []
    for sample in samples["pick"]:
        own, greedy = [], []
        for choice in sample["doc"]["choices"]:
            tokens = model.vocab.tokenize(sample["doc"]["prompt"] + choice)
            known = len(model.vocab.tokenize(sample["doc"]["prompt"]))
            context.forget(0)
            assert context.decode((token, at, 0, True) for at, token in enumerate(tokens)) == 0
            rows = [context.logits(at - 1).astype(np.float64) for at in range(known, len(tokens))]
            own.append(sum(row[t] - np.logaddexp.reduce(row) for row, t in zip(rows, tokens[known:], strict=True)))
            greedy.append([int(row.argmax()) for row in rows] == tokens[known:])
        theirs = [float(response[0][0]) for response in sample["resps"]]
        assert theirs == pytest.approx(own, abs=0.2, rel=0.02)
        assert int(np.argmax(theirs)) == int(np.argmax(own))
        assert sample["acc"] == (int(np.argmax(own)) == 0)
        assert [str(response[0][1]) == "True" for response in sample["resps"]] == greedy
        all_greedy += greedy
    context.close()
    model.close()
    assert set(all_greedy) == {True, False}
    assert np.mean([sample["acc"] for sample in samples["pick"]]) > 0


def test_answers_are_right_where_coe_eval_finds_them_right(
    specialists: dict[str, Path], exam: Path, samples: dict[str, list[Any]], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    ended = run_coe(
        "eval", str(specialists["chemistry"]), "--questions", str(exam), "--output", str(report), "--gpu-layers", "0",
        "--max-tokens", str(taught.ANSWER_TOKENS), "--context", "512", "--parallel", "2", "--threads", "1",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    own = json.loads(report.read_text())["model"]
    right = [outcome["correct"] for outcome in own["outcomes"]]
    assert [sample["exact_match"] == 1 for sample in samples["say"]] == right
    assert own["figures"]["accuracy"] == np.mean([sample["exact_match"] for sample in samples["say"]])
    assert True in right
    assert False in right

"""What a running server tells of itself."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from fakes.server_process import ServerProcess


def test_health_says_that_the_server_is_alive(college: ServerProcess) -> None:
    assert college.http.get("/health").json() == {"status": "ok"}


def test_ready_tells_problems_apart_from_warnings(college: ServerProcess) -> None:
    response = college.http.get("/ready")
    assert response.status_code == 200
    assert response.json()["ready"] is True
    assert response.json()["problems"] == []
    assert any("encoder" in warning for warning in response.json()["warnings"]), "this roster switches it off"


def test_models_are_listed_with_what_the_roster_says_of_them(college: ServerProcess) -> None:
    models = {model.id: model for model in college.openai().models.list()}
    assert list(models) == ["auto", "general", "math", "maths", "coding", "narrow", "absent"]
    math = models["math"].to_dict()["coe"]
    assert isinstance(math, dict)
    assert math["aliases"] == ["maths"]
    assert math["domains"] == ["math"]
    assert math["beta"] is True
    assert math["licence"] == "Apache-2.0"
    assert math["available"] is True
    assert isinstance(math["vram_bytes"], int)
    assert math["vram_bytes"] > 100_000_000


def test_models_tell_their_context_and_what_they_can_by_the_names_that_clients_know(college: ServerProcess) -> None:
    models = {model["id"]: model for model in college.http.get("/v1/models").json()["data"]}
    narrow = models["narrow"]
    assert narrow["max_model_len"] == narrow["context_length"] == narrow["meta"]["n_ctx"] == 256
    assert narrow["capabilities"] == ["completion", "structured", "chat", "tools"]
    assert narrow["display_name"] == "Narrow"
    assert isinstance(narrow["created"], int)
    sizes = [models[name]["max_model_len"] for name in ("general", "math", "coding", "narrow")]
    assert models["auto"]["max_model_len"] == max(sizes)
    assert models["absent"]["capabilities"] == []


def test_a_specialist_that_cannot_be_served_is_listed_with_reason_and_remedy(college: ServerProcess) -> None:
    facts = college.http.get("/v1/models/absent").json()["coe"]
    assert facts["available"] is False
    assert "absent.gguf" in facts["reason"]
    assert "Put the file there" in facts["remedy"]


def test_one_model_is_found_by_name_and_alias(college: ServerProcess) -> None:
    assert college.openai().models.retrieve("math").id == "math"
    alias = college.openai().models.retrieve("maths").to_dict()
    assert (alias["id"], alias["root"]) == ("maths", "math")
    assert college.openai().models.retrieve("auto").id == "auto"
    assert college.http.get("/v1/models/nobody").status_code == 404


def test_the_pool_shows_what_is_resident_and_what_that_takes(college: ServerProcess) -> None:
    college.chat(model="math").raise_for_status()
    pool = college.pool()
    (shared,) = [resident for resident in pool["residents"] if "math" in resident["specialists"]]
    assert shared["specialists"] == ["general", "math", "coding"]
    assert shared["state"] == "warm"
    assert shared["leases"] == 0
    assert pool["booked_bytes"] == sum(resident["vram_bytes"] for resident in pool["residents"])
    assert pool["budget_bytes"] == 2 * 2**30
    assert pool["waiting"] == []
    assert college.http.get("/v1/models/math").json()["coe"]["warm"] is True


def test_route_gives_the_decision_and_the_ranking_without_an_answer(college: ServerProcess) -> None:
    answers = college.metric("coe_answers_total")
    decision = college.http.post("/v1/route", json={"text": "Solve the equation 3x + 7 = 22 for x"}).json()
    assert decision["specialist"] == "math"
    assert decision["domain"] == "math"
    assert 0 < decision["confidence"] <= 1
    ranked = [entry["specialist"] for entry in decision["ranking"]]
    assert ranked[0] == "math"
    assert "absent" not in ranked
    scores = [entry["score"] for entry in decision["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert college.metric("coe_answers_total") == answers


def test_route_takes_messages_and_names_as_well(college: ServerProcess) -> None:
    messages = [{"role": "user", "content": "Write a Python function that sorts a list"}]
    assert college.http.post("/v1/route", json={"messages": messages}).json()["specialist"] == "coding"
    named = college.http.post("/v1/route", json={"messages": messages, "model": "maths"}).json()
    assert named["specialist"] == "math"
    assert named["path"] == "named"


def test_metrics_are_prometheus_text_and_count_what_happened(college: ServerProcess) -> None:
    def counts() -> dict[str, float]:
        chat = {"route": "/v1/chat/completions"}
        return {
            "requests": college.metric("coe_requests_total", **chat, status="200"),
            "refused": college.metric("coe_requests_total", **chat, status="400"),
            "ended": college.metric("coe_answers_total", specialist="math", reason="length"),
            "tokens": college.metric("coe_completion_tokens_total", specialist="math"),
            "waits": college.metric("coe_wait_seconds_count"),
            "routed": college.metric("coe_routed_total"),
            "firsts": college.metric("coe_first_token_seconds_count"),
        }

    before = counts()
    college.chat(model="math", max_tokens=3)
    college.chat("What is 2 + 2?", model="auto", stream=True)
    college.chat(temperature=9)
    after = counts()
    grown = {name: after[name] - before[name] for name in before}
    assert grown["requests"] == 2
    assert grown["refused"] == 1
    assert grown["ended"] >= 1
    assert grown["tokens"] >= 3
    assert grown["waits"] == 2
    assert grown["routed"] == 1
    assert grown["firsts"] == 1


def test_metrics_show_the_pool(college: ServerProcess) -> None:
    college.chat().raise_for_status()
    pool = college.pool()
    assert college.metric("coe_budget_bytes") == pool["budget_bytes"]
    assert college.metric("coe_booked_bytes") == pool["booked_bytes"]
    assert college.metric("coe_loads_total") == pool["loads"]
    assert college.metric("coe_resident_leases") == 0


def test_paths_that_clients_invent_do_not_become_labels(college: ServerProcess) -> None:
    college.http.get("/v1/models/invented-name")
    college.http.get("/invented/path")
    families = text_string_to_metric_families(college.http.get("/metrics").text)
    labels = {value for family in families for sample in family.samples for value in sample.labels.values()}
    assert not any("invented" in label for label in labels)


def test_an_unknown_path_and_a_wrong_method_have_openais_envelope(college: ServerProcess) -> None:
    missing = college.http.get("/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "unknown_url"
    wrong = college.http.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_an_idle_model_is_unloaded_when_asked_and_loads_again_when_needed(college: ServerProcess) -> None:
    college.chat(model="narrow", max_tokens=1)
    assert college.http.post("/v1/pool/unload", json={"model": "narrow"}).json()["unloaded"]
    resident = [name for entry in college.http.get("/v1/pool").json()["residents"] for name in entry["specialists"]]
    assert "narrow" not in resident
    assert not college.http.post("/v1/pool/unload", json={"model": "narrow"}).json()["unloaded"]
    assert college.chat(model="narrow", max_tokens=1).headers["x-coe-residency"] == "loaded"


def test_unloading_what_nobody_knows_is_a_404(college: ServerProcess) -> None:
    assert college.http.post("/v1/pool/unload", json={"model": "nobody"}).status_code == 404
    assert college.http.post("/v1/pool/unload", json={}).status_code == 404

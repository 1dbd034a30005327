"""Real models through the whole mesh answer as they do alone, whoever they share a batch with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest

import services.common.attributes as names
from demo.answers import SENTENCES, tokens
from demo.models import SEARCH, VOICE, export_sentences, minilm, sentences_artefact, speech_artefact
from services._proto.inference import grpc_service_pb2_grpc as stubs
from services.tracestore.client import find_traces
from services.tracestore.core.spans import SpanView
from tests.mesh.calling import Caller, outputs, request
from tests.mesh.running import RunningMesh, running, wait_until_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CACHE = Path(__file__).parents[2] / ".cache" / "demo"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh that keeps every trace, with the sentence model and the speech detector as the demo serves them."""
    program = sentences_artefact(CACHE)
    if not program.exists():
        export_sentences(program)
    with running(tmp_path_factory.mktemp("models") / "data", "--trace-sample", "1") as mesh:
        for served, artefact in ((SEARCH, program), (VOICE, speech_artefact())):
            mesh.create_tenant(served.tenant, reserve=served.reserve)
            mesh.push(served.model, artefact, tenant=served.tenant, options=served.options)
        yield mesh


async def batches(mesh: RunningMesh, tenant: str, since_ns: int, requests: int) -> list[SpanView]:
    """The batches in which these requests ran, once every one of them is told of."""
    found: list[SpanView] = []

    async def all_told() -> bool:
        traces = await find_traces(
            mesh.addresses["query"],
            start_ns=since_ns,
            end_ns=time.time_ns() + 1,
            service="apportion-executor",
            operation=names.SPAN_BATCH,
            wanted={names.TENANT_NAME: tenant},
            limit=5000,
        )
        found[:] = [span for trace in traces for span in trace if span.name == names.SPAN_BATCH]
        return sum(int(span.attributes[names.BATCH_REQUESTS]) for span in found) >= requests

    await wait_until_async(all_told, what="the batches' traces")
    return found


async def infer_all(mesh: RunningMesh, tenant: str, model: str, asked: Sequence[Tensors]) -> list[Tensors]:
    """Sends everything at once; the answers in order."""
    async with mesh.channel() as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        calls = [stub.ModelInfer(request(model, each), timeout=60, metadata=mesh.metadata(tenant)) for each in asked]
        return [outputs(answer) for answer in await asyncio.gather(*calls)]


# Sentences.


@pytest.fixture(scope="module")
def texts() -> list[Tensors]:
    """Sentences of real words, and some hundred of equally many tokens each that nobody would say."""
    chance = np.random.default_rng(11)
    made = [tokens((sentence,)) for sentence in SENTENCES]
    for length in (9, 16, 33):
        for _ in range(32):
            ids = chance.integers(1000, 30_000, (1, length))
            ids[0, 0], ids[0, -1] = 101, 102
            made.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return made


@pytest.fixture(scope="module")
def embeddings(texts: list[Tensors]) -> list[np.ndarray]:
    """What the sentence model says of each, computed here: the published weights, the mean over tokens, length one."""
    import json

    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(**json.loads((minilm() / "config.json").read_text())))
    bert.load_state_dict(load_file(minilm() / "model.safetensors"), strict=False)
    bert.eval()
    found = []
    for text in texts:
        ids, mask = torch.from_numpy(text["input_ids"]), torch.from_numpy(text["attention_mask"])
        with torch.no_grad():
            hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        mean = hidden[mask[0].bool()].mean(0)
        found.append((mean / mean.norm()).numpy())
    return found


def test_embeddings_asked_for_one_by_one_are_those_of_the_model_itself(
    models: RunningMesh, texts: list[Tensors], embeddings: list[np.ndarray]
) -> None:
    with Caller(models, SEARCH.tenant) as caller:
        for text, expected in list(zip(texts, embeddings, strict=True))[:16]:
            found = caller.infer(SEARCH.model, **text)["embedding"][0]
            assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4)
            assert found @ expected >= 0.9999


def test_sentences_padded_to_one_length_in_a_request_keep_their_embeddings(
    models: RunningMesh, embeddings: list[np.ndarray]
) -> None:
    padded = tokens(SENTENCES)
    assert not padded["attention_mask"].all(), "nothing is padded here"
    with Caller(models, SEARCH.tenant) as caller:
        found = caller.infer(SEARCH.model, **padded)["embedding"]
    assert all(row @ expected >= 0.9999 for row, expected in zip(found, embeddings, strict=False))


async def test_embeddings_asked_for_all_at_once_are_batched_and_still_those_of_the_model_itself(
    models: RunningMesh, texts: list[Tensors], embeddings: list[np.ndarray]
) -> None:
    since_ns = time.time_ns()
    found = await infer_all(models, SEARCH.tenant, SEARCH.model, texts)
    alike = [float(one["embedding"][0] @ expected) for one, expected in zip(found, embeddings, strict=True)]
    assert min(alike) >= 0.9999
    ran = await batches(models, SEARCH.tenant, since_ns, len(texts))
    assert max(int(batch.attributes[names.BATCH_REQUESTS]) for batch in ran) > 1
    # One text's tokens never count in another's: a batch has members of one length.
    assert len(ran) < len(texts)


# Voices.

CHUNKS = 24
STREAMS = 5
KINDS = ((16_000, 576), (8_000, 288), (16_000, 320), (8_000, 320))
"""Rate, and samples of a request: a window and what went before. The last two have equal shapes, and only `sr` apart."""


def chunk(samples: np.ndarray, state: np.ndarray, rate: int) -> Tensors:
    """One request of a stream."""
    return {"input": samples, "state": state, "sr": np.array(rate, np.int64)}


def audio(seed: int, size: int) -> np.ndarray:
    """A stream's chunks, [CHUNKS, 1, size]: noise and tones that no other seed has."""
    chance = np.random.default_rng(seed)
    at = np.arange(CHUNKS * size) / size
    tones = sum(np.sin(2 * np.pi * pitch * at) for pitch in chance.uniform(2, 40, 4))
    loud = chance.uniform(0.05, 0.6) * (tones / 4 + chance.normal(0, 0.3, at.shape))
    return loud.astype(np.float32).reshape(CHUNKS, 1, size)


def alone(stream: np.ndarray, rate: int) -> list[np.ndarray]:
    """What the detector says of a stream by itself: each chunk's probability and the state after it, in one row."""
    session, state = onnxruntime.InferenceSession(str(speech_artefact())), np.zeros((2, 1, 128), np.float32)
    told = []
    for samples in stream:
        output, state = session.run(["output", "stateN"], chunk(samples, state, rate))
        told.append(np.concatenate([output.ravel(), state.ravel()]))
    return told


async def through_the_mesh(
    stub: stubs.GRPCInferenceServiceStub, mesh: RunningMesh, stream: np.ndarray, rate: int
) -> list[np.ndarray]:
    """The same, each state sent with the next chunk."""
    state, told = np.zeros((2, 1, 128), np.float32), []
    for samples in stream:
        asked = request(VOICE.model, chunk(samples, state, rate))
        found = outputs(await stub.ModelInfer(asked, timeout=60, metadata=mesh.metadata(VOICE.tenant)))
        state = found["stateN"]
        told.append(np.concatenate([found["output"].ravel(), state.ravel()]))
    return told


async def test_the_state_of_a_stream_is_never_mixed_with_anothers_of_any_rate(models: RunningMesh) -> None:
    streams = [
        (audio(1000 * kind + number, size), rate)
        for kind, (rate, size) in enumerate(KINDS)
        for number in range(STREAMS)
    ]
    expected = [alone(stream, rate) for stream, rate in streams]
    since_ns = time.time_ns()
    async with grpc.aio.insecure_channel(models.addresses["frontend"]) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        found = await asyncio.gather(*(through_the_mesh(stub, models, stream, rate) for stream, rate in streams))
    for one, by_itself in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, by_itself, atol=1e-5)
    finals = np.array([each[-1] for each in expected])
    gaps = np.abs(finals[:, None] - finals[None]).max(-1) + np.eye(len(finals))
    assert gaps.min() > 1e-3, "two of these streams are too alike to be told apart"
    ran = await batches(models, VOICE.tenant, since_ns, len(streams) * CHUNKS)
    assert max(int(batch.attributes[names.BATCH_REQUESTS]) for batch in ran) > 1
    assert len(ran) < len(streams) * CHUNKS

"""The demo's questions and answers, against the models themselves; and its load generator."""

from __future__ import annotations

import asyncio
import io
import time

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

from demo import answers, models, report, sound
from demo.client import decode, encode
from demo.traffic import Seen, Stream, play
from services._proto.inference import grpc_service_pb2

try:
    FOUND = (models.magika_folder(), models.speech_artefact(), models.minilm())
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)


class Onnx:
    """A model in this process."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options)

    async def infer(self, inputs):
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, dict(inputs)), strict=True))


async def test_every_sample_file_is_told_for_what_it_is():
    found = await answers.file_types(Onnx(models.filetypes_artefact()), answers.sample_files())
    assert [one.label for one in found] == [one.expected for one in found]


def test_files_look_to_the_model_as_its_own_library_shows_them():
    magika = pytest.importorskip("magika")
    from magika.types import Seekable

    config = magika.Magika()._model_config
    for content in (
        b"  short text \n",
        b"x" * 5000,
        b" " * 4090 + b"y" * 9000,
        *(c for _, c, _ in answers.sample_files()),
    ):
        theirs = magika.Magika._extract_features_from_seekable(
            Seekable(io.BytesIO(content)), 1024, 0, 1024, config.padding_token, config.block_size, False
        )
        assert answers.features(content).tolist() == theirs.beg + theirs.end


async def test_the_made_voice_is_heard_where_it_is_and_nowhere_else():
    voice = await answers.where_voice_is(Onnx(models.speech_artefact()))
    assert voice.agreement == 1.0


async def test_noise_as_loud_as_the_voice_is_not_taken_for_one():
    detector, state = Onnx(models.speech_artefact()), answers.silence()
    noise = np.random.default_rng(1).normal(0, 0.07, sound.RATE_HZ * 2).astype(np.float32)
    heard = []
    for at in range(0, len(noise) - answers.WINDOW, answers.WINDOW):
        answer = await detector.infer(answers.window(noise, at, state))
        state = answer["stateN"]
        heard.append(float(answer["output"][0, 0]))
    assert max(heard) < answers.SPEECH


@pytest.mark.slow
async def test_sentences_that_mean_the_same_are_paired_by_the_exported_model(tmp_path):
    torch = pytest.importorskip("torch")
    target = tmp_path / "sentences.pt2"
    models.export_sentences(target)
    program = torch.export.load(target).module()

    class Exported:
        async def infer(self, inputs):
            with torch.no_grad():
                outputs = program(*(torch.from_numpy(value) for value in inputs.values()))
            return {name: value.numpy() for name, value in outputs.items()}

    pairs = await answers.most_similar(Exported())
    assert {(p.one, p.other) for p in pairs} == {answers.SENTENCES[k : k + 2] for k in range(0, 8, 2)}


def test_tensors_survive_the_protocol():
    inputs = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.array(16_000, dtype=np.int64)}
    request = encode("m", inputs)
    response = grpc_service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    for spec in request.inputs:
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    decoded = decode(response)
    assert decoded["a"].tolist() == inputs["a"].tolist()
    assert decoded["b"].shape == ()


class Slow:
    """A model that answers after a while."""

    def __init__(self, seconds):
        self.seconds, self.sent = seconds, 0

    async def send(self, request):
        self.sent += 1
        await asyncio.sleep(self.seconds)


async def test_requests_arrive_whether_or_not_the_ones_before_were_answered():
    slow = Slow(0.3)
    began = time.monotonic()
    seen = await play([Stream("t", slow, ["r"], 100.0, 50)], 0.5)
    assert slow.sent > 20
    assert time.monotonic() - began < 5
    assert seen["t"].sent == slow.sent
    assert seen["t"].within(0.05) == 0.0
    assert seen["t"].quantile_s(0.5) >= 0.3


def test_refused_requests_count_against_the_objective():
    seen = Seen(latencies_s=[0.01] * 8, refused={"OVERLOADED": 2})
    assert seen.within(0.05) == 0.8
    assert Seen().quantile_s(0.99) is None


def test_the_table_has_a_row_for_each_tenant():
    streams = [Stream("search", Slow(0), ["r"], 1, 50), Stream("files", Slow(0), ["r"], 1, None, flood=True)]
    seen = {"search": Seen(latencies_s=[0.01]), "files": Seen()}
    table = report.objectives(streams, seen, {"search": 1.0}, {"search": 0.25, "files": 0.15})
    assert table.row_count == 2

"""The same requests over every face: the same answer to the last bit, or the same code, and the face goes on."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from idl.codes import ServingError
from idl.messages import InferRequest, Tensor
from tests.contract.cases import CASES, PROBE, Case, ask, tensor
from tests.contract.faces import ELEMENTS, FACES, Face

NOT_AS_ELEMENTS = ("FP16", "BF16")


def can_say(face: str, case: Case) -> bool:
    as_elements = not case.raw and all(given.datatype not in NOT_AS_ELEMENTS for given in case.request.inputs)
    return not face.startswith(tuple(case.not_over)) and (not face.startswith(ELEMENTS) or as_elements)


def plain(outputs: tuple[Tensor, ...]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(output.name, output.datatype, tuple(output.shape), bytes(output.data)) for output in outputs]


def check_answer(face: Face, request: InferRequest, outputs: tuple[Tensor, ...]) -> None:
    answer = face.infer(request)
    assert plain(answer.outputs) == plain(outputs)
    assert (answer.model_name, answer.model_version, answer.id) == (request.model_name, "1", request.id)


@pytest.mark.parametrize(
    ("name", "case"), [pytest.param(face, case, id=f"{face}: {case.name}") for face in FACES for case in CASES if can_say(face, case)]
)
def test_every_face_gives_the_same(faces: dict[str, Face], name: str, case: Case) -> None:
    face = faces[name]
    if case.code is None:
        check_answer(face, case.request, case.outputs)
    else:
        with pytest.raises(ServingError) as caught:
            face.infer(case.request)
        assert caught.value.code is case.code, caught.value
        assert case.says in caught.value.message
        assert "Traceback" not in caught.value.message and ".onnx" not in caught.value.message
    check_answer(face, PROBE.request, PROBE.outputs)


@pytest.mark.parametrize("name", FACES)
def test_two_requests_with_one_id_get_their_own_answers(faces: dict[str, Face], name: str) -> None:
    def call(number: int) -> None:
        given = tensor("FP32", [float(number)] * (number % 50))
        check_answer(faces[name], ask("same-FP32", given, id="the same"), (replace(given, name="y"),))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(200)))

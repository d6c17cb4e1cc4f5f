"""PMML models: what the file says becomes the signature and is kept to, and what is no PMML, or worse, is refused before it is read."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idl import tensors
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, Tensor
from inference_server.backends import pmml, pmml_file
from inference_server.engine import Engine
from tests.needs import IN_CI, needs

ready = needs("java") if IN_CI or find_spec("pypmml") else pytest.mark.skip(reason="pypmml is not installed: scripts/locks/dev.txt has it")

TREE = """<?xml version="1.0" encoding="UTF-8"?>
<PMML xmlns="http://www.dmg.org/PMML-4_4" version="4.4"><Header/>
<DataDictionary>
<DataField name="age" optype="continuous" dataType="double">
<Interval closure="closedClosed" leftMargin="0" rightMargin="120"/><Value value="-1" property="missing"/></DataField>
<DataField name="visits" optype="continuous" dataType="integer"/>
<DataField name="colour" optype="categorical" dataType="string"><Value value="red"/><Value value="blue"/></DataField>
<DataField name="risk" optype="categorical" dataType="string"><Value value="low"/><Value value="high"/></DataField>
</DataDictionary>
<TreeModel functionName="classification" splitCharacteristic="multiSplit" missingValueStrategy="none" noTrueChildStrategy="returnLastPrediction">
<MiningSchema><MiningField name="age"/><MiningField name="visits"/><MiningField name="colour"/>
<MiningField name="risk" usageType="target"/></MiningSchema>
<Output><OutputField name="risk" optype="categorical" dataType="string" feature="predictedValue"/>
<OutputField name="p_high" optype="continuous" dataType="double" feature="probability" value="high"/></Output>
<Node score="low"><True/><ScoreDistribution value="low" recordCount="6"/><ScoreDistribution value="high" recordCount="4"/>
<Node score="high"><CompoundPredicate booleanOperator="and"><SimplePredicate field="age" operator="greaterThan" value="60"/>
<SimplePredicate field="colour" operator="equal" value="red"/></CompoundPredicate>
<ScoreDistribution value="low" recordCount="1"/><ScoreDistribution value="high" recordCount="3"/></Node>
<Node score="low"><SimplePredicate field="visits" operator="lessThan" value="3"/>
<ScoreDistribution value="low" recordCount="9"/><ScoreDistribution value="high" recordCount="1"/></Node>
</Node></TreeModel></PMML>"""


def load(engine: Engine, repository: Path, content: str | bytes = TREE, toml: str = "") -> None:
    file = repository / "m" / "1" / "model.pmml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    (repository / "m" / "model.toml").write_text(toml)
    engine.repository_model_load("m", {})


def ask(engine: Engine, age: Any, visits: Any, colour: list[str | bytes]) -> InferResponse:
    texts = np.array([each.encode() if isinstance(each, str) else each for each in colour], object)
    given = [("age", "FP64", np.array(age, np.float64)), ("visits", "INT64", np.array(visits, np.int64)), ("colour", "BYTES", texts)]
    return engine.model_infer(
        InferRequest("m", tuple(Tensor(name, kind, array.shape, tensors.encode(array)) for name, kind, array in given))
    )


def answers(response: InferResponse) -> dict[str, list[Any]]:
    return {each.name: tensors.decode(each.name, each.datatype, each.shape, each.data).tolist() for each in response.outputs}


@ready
def test_fields_become_tensors_and_answers_are_the_trees(engine: Engine, repository: Path) -> None:
    load(engine, repository, toml='memory = "1GiB"\n')
    metadata = engine.model_metadata("m", "")
    assert [(spec.name, spec.datatype, spec.shape) for spec in (*metadata.inputs, *metadata.outputs)] == [
        ("age", "FP64", (-1,)),
        ("visits", "INT64", (-1,)),
        ("colour", "BYTES", (-1,)),
        ("risk", "BYTES", (-1,)),
        ("p_high", "FP64", (-1,)),
    ]
    config = engine.model_config("m", "")
    assert (config["platform"], config["backend"], config["default_model_filename"]) == ("pmml", "pmml", "model.pmml")
    said = {name: value["string_value"] for name, value in config["parameters"].items() if name.startswith("field.")}
    assert said == {
        "field.age": "continuous double, [0, 120]",
        "field.visits": "continuous integer",
        "field.colour": "categorical string, one of 'red', 'blue'",
    }
    found = answers(ask(engine, [70, 70, 20, 20], [1, 9, 1, 9], ["red", "red", "red", "blue"]))
    assert found == {"risk": [b"high", b"high", b"low", b"low"], "p_high": [0.75, 0.75, 0.1, 0.4]}
    assert answers(ask(engine, [], [], [])) == {"risk": [], "p_high": []}
    assert answers(ask(engine, [120, np.nan], [1, 1], ["blue", "blue"]))["risk"] == [b"low", b"low"], (
        "a missing value is the model's business"
    )
    for given, words in (
        (([1, 130], [1, 1], ["red", "red"]), "input 'age': row 1 is 130, and the model takes continuous double, [0, 120]"),
        (([1], [1], ["green"]), "input 'colour': row 0 is 'green', and the model takes categorical string, one of 'red', 'blue'"),
        (([1], [1], [b"\xff"]), "input 'colour': row 0 is not UTF-8"),
        (([1], [1, 2], ["red"]), "the inputs have different numbers of rows: 'age' 1, 'visits' 2, 'colour' 1"),
    ):
        with pytest.raises(ServingError) as caught:
            ask(engine, *given)
        assert caught.value.code is Code.INVALID_INPUT
        assert words in caught.value.message
    assert answers(ask(engine, [70], [1], ["red"]))["risk"] == [b"high"]


@ready
def test_what_java_does_not_understand_fails_the_load(engine: Engine, repository: Path) -> None:
    with pytest.raises(ServingError) as caught:
        load(engine, repository, TREE.replace("TreeModel", "SuperModel"))
    assert caught.value.code is Code.INVALID_MODEL
    assert "SuperModel is not a standard of PMML" in caught.value.message
    with pytest.raises(ServingError, match="loaded in a process of its own: take executor out"):
        load(engine, repository, toml='executor = "thread"\n')


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
FILE = '<!DOCTYPE x [<!ENTITY secret SYSTEM "file:///etc/hostname">]>'
PARAMETER = '<!DOCTYPE x [<!ENTITY % far SYSTEM "http://127.0.0.1:1/x.dtd"> %far;]>'


def with_type(kind: str) -> str:
    head, _, body = TREE.partition("\n")
    return f"{head}\n{kind}\n{body}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_type(BOMB), "has a document type or an entity"),
        (with_type(FILE), "has a document type or an entity"),
        (with_type(PARAMETER), "has a document type or an entity"),
        (with_type(BOMB).encode("utf-16"), "has a document type or an entity"),
        (with_type(BOMB).replace("UTF-8", "ISO-8859-1").encode("latin-1"), "has a document type or an entity"),
        (with_type('<!DOCTYPE PMML SYSTEM "x.dtd">'), "has a document type or an entity"),
        (TREE.replace('"red"/>', '"&unknown;"/>'), "is not XML: undefined entity"),
        (TREE.replace("UTF-8", "UTF-7").encode("utf-7"), "cannot be read as UTF-7: only UTF-8, UTF-16"),
        (TREE.replace("UTF-8", "no-such-code"), "cannot be read as no-such-code"),
        (TREE.encode().replace(b"red", b"\xff\xff"), "cannot be read as UTF-8"),
        (TREE[:-30], "is not XML"),
        ("<html/>", "is not PMML: its outermost element is 'html'"),
        ("", "is empty: it has 0 bytes"),
        ("<PMML>" + "<a>" * 3000 + "</a>" * 3000 + "</PMML>", "has more than 2000 elements inside one another"),
    ],
)
def test_dangerous_and_broken_files_are_refused_before_java_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, reason: str
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("it was read")

    monkeypatch.setattr(pmml, "_runtime", never)
    path = tmp_path / "model.pmml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ServingError) as caught:
        pmml.PmmlModel(path, "m")
    assert caught.value.code is Code.INVALID_MODEL
    assert f"model 'm': model.pmml {reason}" in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_a_file_is_decoded_once(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "model.pmml"
    path.write_bytes(TREE.replace("UTF-8", encoding.removesuffix("-sig")).replace("red", "röd").encode(encoding))
    text, fields = pmml_file.read(path, "m")
    assert text.lstrip().startswith("<PMML")
    assert fields["colour"].values == ["röd", "blue"]


def test_values_are_invalid_by_what_the_file_says(tmp_path: Path) -> None:
    """Open and closed ends, several intervals, missing marks, and fields whose schema takes invalid values as they are."""
    path = tmp_path / "model.pmml"
    more = '<Interval closure="openOpen" leftMargin="200"/>'
    path.write_text(
        TREE.replace('rightMargin="120"/>', f'rightMargin="120"/>{more}').replace(
            'closedClosed" leftMargin="0"', 'openClosed" leftMargin="0"'
        )
    )
    _, fields = pmml_file.read(path, "m")
    fields["age"].check(np.array([120.0, 0.1, 200.1, 1e300, np.nan, -1]))
    for wrong in (0.0, 120.1, 200.0, -2.0, -np.inf):
        with pytest.raises(ServingError, match="the model takes continuous double"):
            fields["age"].check(np.array([wrong]))
    path.write_text(TREE.replace('<MiningField name="age"/>', '<MiningField name="age" invalidValueTreatment="asIs"/>'))
    pmml_file.read(path, "m")[1]["age"].check(np.array([-5.0]))
    numbers = pmml_file.Field("n", "ordinal", "integer", values=["1", "2", "x"])
    numbers.check(np.array([1, 2], np.int64))
    with pytest.raises(ServingError, match="row 1 is 3"):
        numbers.check(np.array([1, 3], np.int64))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypmml", None)
    with pytest.raises(ServingError) as caught:
        pmml._runtime("m", 0)
    assert caught.value.code is Code.UNSUPPORTED
    assert (
        "need pypmml and Java 11 or later (pip install -e '.[pmml]' in the checkout; Debian: apt install default-jre-headless)"
        in caught.value.message
    )

"""Every sentence of the pages is there in every language, and what operations say is found again."""

import re
import tomllib
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from flask import Flask

from gateway.pages import languages, model_sentences, sentences
from outboard import demo

ROOT = Path(__file__).resolve().parents[2]
CATALOGS = sorted((ROOT / "gateway" / "translations").glob("*/LC_MESSAGES/messages.po"))
_PLACES = re.compile(r"%\(\w+\)s|\{\}")


def said() -> set[str]:
    methods = [("gateway/pages/**.py", "python"), ("gateway/templates/**.html", "jinja2")]
    found = extract_from_dir(str(ROOT), methods, keywords={"_": None, "gettext": None, "later": None})
    return {str(message) for _, _, message, _, _ in found}


def test_there_is_one_for_each_language_but_english() -> None:
    assert {path.parts[-3] for path in CATALOGS} == set(languages.NAMES) - {"en"}


@pytest.mark.parametrize("path", CATALOGS, ids=lambda path: path.parts[-3])
def test_nothing_is_missing_and_nothing_left_over(path: Path) -> None:
    with path.open("rb") as file:
        catalog = {str(message.id): str(message.string) for message in read_po(file) if message.id}
    assert set(catalog) == said(), "run scripts/translations"
    assert not [key for key, text in catalog.items() if not text], "these have no translation"
    wrong = {key: text for key, text in catalog.items() if sorted(_PLACES.findall(key)) != sorted(_PLACES.findall(text))}
    assert not wrong, "other places for values"
    with path.with_suffix(".mo").open("rb") as file:
        compiled = {str(message.id): str(message.string) for message in read_mo(file) if message.id}
    assert compiled == catalog, "run scripts/translations"


def test_templates_say_nothing_that_is_not_marked() -> None:
    """Words between tags that no translation can reach."""
    found = []
    for path in (ROOT / "gateway" / "templates").rglob("*.html"):
        text = re.sub(
            r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<script.*?</script>|<code>.*?</code>", " ", path.read_text(encoding="utf-8"), flags=re.S
        )
        for words in re.findall(r">([^<>]*[A-Za-z]{3,}[^<>]*)<", text):
            if words.strip() not in ("Outboard", "OpenAPI", "· Outboard"):
                found.append((path.name, words.strip()))
    assert not found


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("the username or the password is wrong", "用户名或密码错误"),
        ("must have 8 to 256 characters, not 3", "须有 8 到 256 个字符，现在是 3 个"),
        ("'ann' is taken", "'ann' 已被占用"),
        (tomllib.loads(demo._MODEL_TOML)["description"], "EfficientNet-Lite0：判断图片属于 ImageNet 的 1,000 个类别中的哪一个"),
        (
            tomllib.loads((ROOT / "outboard" / "dialogue" / "model.toml").read_text())["description"],
            "中英文小对话：给出最接近的已知问题的答案，逐词输出",
        ),
        (
            "input 'x' has shape [1, 3], the model takes [-1, 2] (-1: any size)",
            "输入 'x' 的形状为 [1, 3]，模型需要 [-1, 2]（-1 表示任意大小）",
        ),
        (
            "model 'ann.m' has no input 'z'; its inputs are 'x', 'y'",
            "模型 'ann.m' 没有输入 'z'；它的输入有 'x', 'y'",
        ),
        ("the model's file: model.onnx is empty: it has 0 bytes", "模型文件：model.onnx 为空：0 字节"),
        ("photo.png: the file is empty", "photo.png：文件为空"),
        ("the cell is not JSON: Home", "单元格 不是 JSON：Home"),
        (
            "deployment 'd' failed: model 'm' version '2': its process died while loading it",
            "部署 'd' 失败：模型 'm' 版本 '2'：加载时其进程终止",
        ),
        ("the columns do not fit the model: input 'x' has no column", "列与模型不符：输入 'x' 没有对应的列"),
        ("the model failed: '{0}' is taken {}", "模型运行失败：'{0}' is taken {}"),
        ("the script raised ValueError: Home", "脚本抛出异常 ValueError: Home"),
        ("the script refuses its input: ", "脚本拒绝了输入："),
        ("deployment {} failed: {}", "部署 {} 失败：{}"),
        ("model.py, line 3: must have {} to 5 characters", "model.py, line 3: must have {} to 5 characters"),
        ("the body has more than 5 bytes, or the file more than is taken", "请求体超过 5 字节，或文件超出上限"),
        ("there is no task 'v1' of anybody", "there is no task 'v1' of anybody"),
        ("must have 1 to 255 printable ASCII characters", "must have 1 to 255 printable ASCII characters"),
        ("model 'v1' is in the operator's repository: x", "model 'v1' is in the operator's repository: x"),
        ("file not found: x", "file not found: x"),
        (f"the model failed: {'a: ' * 2000}", f"the model failed: {'a: ' * 2000}"),
        ("what nobody has translated: 'x' {0} {}", "what nobody has translated: 'x' {0} {}"),
        ("", ""),
    ],
)
def test_what_operations_say(app: Flask, text: str, chinese: str) -> None:
    with app.test_request_context(headers={"Accept-Language": "zh-CN,zh;q=0.9"}):
        assert sentences.said(text) == chinese
    with app.test_request_context(headers={"Accept-Language": "fr"}):
        assert sentences.said(text) == text


def test_what_model_hosts_say_is_what_they_say() -> None:
    """Each piece of each sentence stands in the code of what says it."""
    rooms = ("idl", "inference_client", "inference_server", "gateway/operations", "gateway/worker", "outboard")
    known = (*model_sentences.KNOWN, *model_sentences.QUOTING)
    code = "\n".join(path.read_text(encoding="utf-8") for room in rooms for path in (ROOT / room).rglob("*.py"))
    code = re.sub(r'"\s*f?"', "", code)
    code += re.sub(r"\{[^{}]*\}", "", code)  # where something may stand, or not
    pieces = {sentence: [piece.strip(" ;:,()").removesuffix("s") for piece in re.split(r"\{\}|; | \(", sentence)] for sentence in known}
    assert not [sentence for sentence, parts in pieces.items() if not all(piece in code for piece in parts)]


def test_a_script_of_a_page_gets_a_sentence(app: Flask) -> None:
    client = app.test_client()
    token = re.search(r'name="form-token" content="([^"]+)"', client.get("/").text)
    assert token
    text, headers = "model 'm' is not ready", {"Accept-Language": "zh", "X-Form-Token": token[1]}
    answer = client.post("/ui/sentence", data={"text": text}, headers=headers)
    assert (answer.text, answer.mimetype) == ("模型 'm' 尚未就绪", "text/plain")
    assert client.post("/ui/sentence", data={"text": "<b>"}, headers=headers).text == "<b>"
    assert client.post("/ui/sentence", data={"text": text}).status_code == 403


@pytest.mark.parametrize(
    ("header", "cookie", "wanted"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "", "zh"),
        ("zh-TW", "", "zh"),
        ("en-GB", "", "en"),
        ("", "", "en"),
        ("en", "zh", "zh"),
        ("zh", "en", "en"),
        ("zh", "../x", "zh"),
    ],
)
def test_which_language(app: Flask, header: str, cookie: str, wanted: str) -> None:
    with app.test_request_context(headers={"Accept-Language": header, "Cookie": f"{languages.COOKIE}={cookie}"}):
        assert languages.current() == wanted

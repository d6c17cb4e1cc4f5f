"""The pages that nginx shows a browser by itself: where the gateway is away, or a request is refused before it. In both languages, in one answer
that needs nothing else: the style and the script stand in the page, and the policy names them by their hashes.
"""

import base64
import hashlib
from dataclasses import dataclass

ASKS_FOR_A_PAGE = "$outboard_style"
"""nginx's variable: `page` for a browser that shows what it gets, `problem` for everything else."""
_STYLE = (
    ":root{color-scheme:light dark}[data-t=light]{color-scheme:light}[data-t=dark]{color-scheme:dark}"
    "*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;"
    'font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","PingFang SC","Microsoft YaHei",sans-serif;'
    "color:light-dark(#1f2937,#e5e7eb);background:light-dark(#f9fafb,#161616)}"
    "main{max-width:32rem;text-align:center}h1{font-size:1.5rem;line-height:1.3;margin:.5rem 0}p{margin:.75rem 0}"
    ".s,.r{color:light-dark(#5b6672,#a9b4c0)}.s{font-size:2.5rem;font-weight:700;margin:0;line-height:1}.r{font-size:.875rem;overflow-wrap:anywhere}"
    "nav{display:flex;gap:.75rem;justify-content:center;flex-wrap:wrap;margin-top:1.5rem}"
    "a{padding:.5rem 1rem;border:1px solid light-dark(#d1d5db,#4b5563);border-radius:.375rem;color:inherit;text-decoration:none}"
    "a:first-child{background:#0b5c86;border-color:#0b5c86;color:#fff}a:focus-visible{outline:2px solid #3b9fd6;outline-offset:2px}"
)
_SCRIPT = 'setInterval(async()=>{try{if((await fetch("/livez",{cache:"no-store"})).ok)location.reload()}catch{}},3000)'
"""Looks whether the gateway is back, and loads the page again."""


@dataclass(frozen=True, slots=True)
class Words:
    """A page's heading and sentence, each in English and Chinese."""

    title: tuple[str, str]
    sentence: tuple[str, str]


_COMMON = {
    "home": ("Home", "首页"),
    "again": ("Try again", "重试"),
    "request": ("Request", "请求"),
}
WORDS = {
    400: Words(
        ("The browser sent something that is no valid request", "浏览器发送的请求无效"),
        ("Check the address. If it was a link of ours, tell the operator.", "请检查地址。如果这是本站的链接，请告知运维人员。"),
    ),
    403: Words(
        ("This address is not open to you", "您无权访问此地址"),
        ("It is for the operators of this server.", "它仅供本服务器的运维人员使用。"),
    ),
    405: Words(("That cannot be done at this address", "此地址不支持该操作"), ("Go back and take another way.", "请返回并换一种方式。")),
    408: Words(
        ("The request did not arrive in time", "请求未能及时到达"),
        ("The connection may be slow. Go back and send it again.", "网络可能较慢，请返回后重新发送。"),
    ),
    413: Words(
        ("That is too large", "内容过大"),
        (
            "What was sent is larger than this server takes. Go back, and send less at once or a smaller file.",
            "发送的内容超过了本服务器的限制。请返回，减少内容或换用较小的文件。",
        ),
    ),
    414: Words(("The address is too long", "地址过长"), ("Shorten it, or go back.", "请缩短地址或返回。")),
    431: Words(
        ("The browser sent too much beside the address", "浏览器发送的请求头过大"),
        ("Delete the cookies of this site and try again.", "请清除本站的 Cookie 后重试。"),
    ),
    500: Words(
        ("The server made a mistake", "服务器出错了"),
        ("Try again. If it stays, tell the operator the number below.", "请重试。如果仍然出现，请将下面的编号告知运维人员。"),
    ),
    501: Words(("That is not supported", "不支持该操作"), ("Go back and take another way.", "请返回并换一种方式。")),
    503: Words(
        ("Outboard is away for a moment", "Outboard 暂时不可用"),
        (
            "It is being started again, or has more to do than it can. This page looks every three seconds whether it is back; what was sent may not have arrived.",
            "服务可能正在重启或负载过高。本页每三秒检查一次，恢复后会自动重新加载；刚才发送的内容可能没有送达。",
        ),
    ),
}


def policy() -> str:
    """The content security policy of these pages."""
    return (
        f"default-src 'none'; style-src '{_hash(_STYLE)}'; script-src '{_hash(_SCRIPT)}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def maps() -> str:
    """What is known of a request before it is refused, and the words in its language, for nginx's `http` block."""
    found = [
        _map('"$http_hx_request|$http_accept"', ASKS_FOR_A_PAGE, {'"~^\\|.*text/html"': "page", "default": "problem"}),
        _map(
            '"$cookie_outboard_language|$http_accept_language"',
            "$outboard_language",
            {'"~^zh"': "zh-CN", '"~^en"': "en", '"~*^\\|zh"': "zh-CN", "default": "en"},
        ),
        _map("$cookie_outboard_theme", "$outboard_colours", {"light": "light", "dark": "dark", "default": "auto"}),
        _map("$request", "$outboard_looks", {'"~^GET "': f"'<script>{_SCRIPT}</script>'", "default": '""'}),
        _map('""', "$outboard_css", {"default": f"'<style>{_STYLE}</style>'"}),
    ]
    said = {**_COMMON}
    for status, words in WORDS.items():
        said |= {f"title_{status}": words.title, f"sentence_{status}": words.sentence}
    found += [
        _map("$outboard_language", f"$outboard_{name}", {"zh-CN": f"'{zh}'", "default": f"'{en}'"}) for name, (en, zh) in said.items()
    ]
    return "\n".join(found)


def body(status: int) -> str:
    """The page, with nginx's variables in it. Less than the 4096 bytes that nginx takes in one word."""
    return (
        '<!DOCTYPE html><html lang="$outboard_language" data-t="$outboard_colours"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>$outboard_title_{status} · Outboard</title>$outboard_css</head><body><main>"
        f'<p class="s">{status}</p><h1>$outboard_title_{status}</h1><p>$outboard_sentence_{status}</p>'
        '<p class="r">$outboard_request <code>$outboard_request_id</code></p>'
        f'<nav><a href="">$outboard_again</a><a href="/">$outboard_home</a></nav></main>{"$outboard_looks" if status == 503 else ""}</body></html>'
    )


def _map(source: str, name: str, values: dict[str, str]) -> str:
    lines = "\n".join(f"        {key} {value};" for key, value in values.items())
    return f"    map {source} {name} {{\n{lines}\n    }}"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

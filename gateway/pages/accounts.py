"""Signing in and out, registering, confirming an address, and a new password."""

from urllib.parse import quote

from flask import request
from werkzeug.wrappers import Response

from gateway.context import client_address, services
from gateway.errors import STATUS, InvalidFields
from gateway.operations.users import UNCONFIRMED
from gateway.pages.frame import Pages, browsers, doer, go, ours, render, sign_in_with, sign_out_of, visitor
from idl.codes import ServingError

_pages = Pages("accounts")
blueprint = _pages.blueprint
RESEND_S = 60


def _field(name: str) -> str:
    return request.form.get(name, "")[:4096]


def _typed(*names: str) -> dict[str, str]:
    """What was typed, to be shown again; never a password or a code."""
    return {name: _field(name) for name in names}


def _reasons(error: ServingError) -> dict[str, str]:
    """By field; "" for what is none's."""
    if isinstance(error, InvalidFields):
        return error.reasons
    name, _, reason = error.message.partition(": ")
    return {name: reason} if reason and name in request.form else {"": error.message}


def _again(template: str, error: ServingError, **values: object) -> Response:
    """The form as it was sent, and what is wrong with it beside its fields."""
    return render(template, STATUS[error.code], reasons=_reasons(error), **values)


@_pages.page("/ui/sign-in", "GET", who="anyone")
def sign_in_form() -> Response:
    where = ours(request.args.get("next"))
    if visitor() is not None:
        return go(where)
    typed = {"login": request.args.get("login", "")[:200], "next": where}
    return render("accounts/sign-in.html", typed=typed, reasons={}, said_before=request.args.get("after", ""))


@_pages.page("/ui/sign-in", "POST", who="anyone")
def sign_in() -> Response:
    where = ours(_field("next"))
    try:
        visit = browsers().sign_in(_field("login"), _field("password"), client_address(), remember=bool(_field("remember")))
    except ServingError as error:
        if error.message == UNCONFIRMED:
            return go(f"/ui/verify?email={_quoted(_field('login')) if '@' in _field('login') else ''}")
        return _again("accounts/sign-in.html", error, typed={**_typed("login"), "next": where}, said_before="")
    return sign_in_with(go(where), visit)


@_pages.page("/ui/sign-out", "POST", who="anyone")
def sign_out() -> Response:
    return sign_out_of(go("/"))


@_pages.page("/ui/register", "GET", who="anyone")
def register_form() -> Response:
    typed = {"username": "", "email": "", "invitation": request.args.get("invitation", "")[:200]}
    return render("accounts/register.html", typed=typed, reasons={})


@_pages.page("/ui/register", "POST", who="anyone")
def register() -> Response:
    typed, reasons = _typed("username", "email", "invitation"), {}
    if _field("password") != _field("again"):
        reasons["again"] = "is not the same password"
    try:
        if reasons:
            raise InvalidFields(reasons)
        services().users.register(typed["username"], _field("password"), typed["email"] or None, typed["invitation"], origin=doer())
    except ServingError as error:
        return _again("accounts/register.html", error, typed=typed)
    if typed["email"]:
        return go(f"/ui/verify?email={_quoted(typed['email'])}&sent=1")
    return go(f"/ui/sign-in?login={_quoted(typed['username'])}&after=registered")


@_pages.page("/ui/verify", "GET", who="anyone")
def verify_form() -> Response:
    typed = {"email": request.args.get("email", "")[:320]}
    return render("accounts/verify.html", typed=typed, reasons={}, wait=RESEND_S if request.args.get("sent") else 0, sent=False)


@_pages.page("/ui/verify", "POST", who="anyone")
def verify() -> Response:
    typed, confirmations = _typed("email"), services().users.confirmations
    try:
        if _field("verb") == "resend":
            confirmations.resend(typed["email"], client_address())
            return render("accounts/verify.html", typed=typed, reasons={}, wait=RESEND_S, sent=True)
        confirmations.verify(typed["email"], _field("code").strip(), doer())
    except ServingError as error:
        return _again("accounts/verify.html", error, typed=typed, wait=0, sent=False)
    return go("/ui" if visitor() else f"/ui/sign-in?login={_quoted(typed['email'])}&after=confirmed")


@_pages.page("/ui/reset", "GET", who="anyone")
def reset_form() -> Response:
    return render("accounts/reset.html", typed={"email": request.args.get("email", "")[:320]}, reasons={}, asked=False, wait=0)


@_pages.page("/ui/reset", "POST", who="anyone")
def reset() -> Response:
    typed, confirmations = _typed("email"), services().users.confirmations
    asked = _field("verb") != "ask"
    try:
        if not asked:
            confirmations.ask_reset(typed["email"], client_address())
            return render("accounts/reset.html", typed=typed, reasons={}, asked=True, wait=RESEND_S)
        confirmations.reset(typed["email"], _field("code").strip(), _field("password"), doer())
    except ServingError as error:
        return _again("accounts/reset.html", error, typed=typed, asked=asked, wait=0)
    return go(f"/ui/sign-in?login={_quoted(typed['email'])}&after=reset")


def _quoted(text: str) -> str:
    return quote(text, safe="")

"""Signing in and out, registering, confirming an address, and a new password."""

from urllib.parse import quote

from flask import make_response, redirect, request
from werkzeug.wrappers import Response

from gateway.context import client_address, services
from gateway.errors import InvalidFields
from gateway.operations.users import UNCONFIRMED
from gateway.pages import openid
from gateway.pages.forms import again, field, given
from gateway.pages.frame import Pages, browsers, doer, go, is_part, ours, render, sign_in_with, sign_out_of, visitor
from idl.codes import ServingError

_pages = Pages("accounts")
blueprint = _pages.blueprint
RESEND_S = 60


@_pages.page("/ui/sign-in", "GET", who="anyone")
def sign_in_form() -> Response:
    where = ours(request.args.get("next"))
    if visitor() is not None:
        return go(where)
    typed = {"login": request.args.get("login", "")[:200], "next": where}
    after = request.args.get("after", "")
    return render("accounts/sign-in.html", typed=typed, reasons={}, said_before=after, provider=openid.provider())


@_pages.page("/ui/sign-in", "POST", who="anyone")
def sign_in() -> Response:
    where = ours(field("next"))
    try:
        visit = browsers().sign_in(
            field("login"), field("password"), client_address(), remember=bool(field("remember")), agent=request.user_agent.string
        )
    except ServingError as error:
        if error.message == UNCONFIRMED:
            return _on(f"/ui/verify?email={_quoted(field('login')) if '@' in field('login') else ''}")
        return again("accounts/sign-in.html", error, typed={**given("login"), "next": where}, said_before="", provider=openid.provider())
    return sign_in_with(go(where), visit)


@_pages.page("/ui/sign-out", "POST", who="anyone")
def sign_out() -> Response:
    return sign_out_of(go("/"))


@_pages.page("/ui/register", "GET", who="anyone")
def register_form() -> Response:
    typed = {"username": "", "email": "", "invitation": ""}
    return render("accounts/register.html", typed=typed, reasons={})


@_pages.page("/ui/register", "POST", who="anyone")
def register() -> Response:
    typed, reasons = given("username", "email", "invitation"), {}
    if field("password") != field("again"):
        reasons["again"] = "is not the same password"
    try:
        if reasons:
            raise InvalidFields(reasons)
        services().users.register(typed["username"], field("password"), typed["email"] or None, typed["invitation"], origin=doer())
    except ServingError as error:
        named = ServingError(error.code, error.message.replace("signup_token:", "invitation:", 1))
        return again("accounts/register.html", error if isinstance(error, InvalidFields) else named, typed=typed)
    if typed["email"]:
        return _on(f"/ui/verify?email={_quoted(typed['email'])}&sent=1")
    return _on(f"/ui/sign-in?login={_quoted(typed['username'])}&after=registered")


@_pages.page("/ui/verify", "GET", who="anyone")
def verify_form() -> Response:
    typed = {"email": request.args.get("email", "")[:320]}
    return render("accounts/verify.html", typed=typed, reasons={}, wait=RESEND_S if request.args.get("sent") else 0, sent=False)


@_pages.page("/ui/verify", "POST", who="anyone")
def verify() -> Response:
    typed, confirmations = given("email"), services().users.confirmations
    try:
        if field("verb") == "resend":
            confirmations.resend(typed["email"], client_address())
            return render("accounts/verify.html", typed=typed, reasons={}, wait=RESEND_S, sent=True)
        confirmations.verify(typed["email"], field("code").strip(), doer())
    except ServingError as error:
        return again("accounts/verify.html", error, typed=typed, wait=0, sent=False)
    return go("/ui") if visitor() else _on(f"/ui/sign-in?login={_quoted(typed['email'])}&after=confirmed")


@_pages.page("/ui/reset", "GET", who="anyone")
def reset_form() -> Response:
    return render("accounts/reset.html", typed={"email": request.args.get("email", "")[:320]}, reasons={}, asked=False, wait=0)


@_pages.page("/ui/reset", "POST", who="anyone")
def reset() -> Response:
    typed, confirmations = given("email"), services().users.confirmations
    asked = field("verb") != "ask"
    try:
        if not asked:
            confirmations.ask_reset(typed["email"], client_address())
            return render("accounts/reset.html", typed=typed, reasons={}, asked=True, wait=RESEND_S)
        confirmations.reset(typed["email"], field("code").strip(), field("password"), doer())
    except ServingError as error:
        return again("accounts/reset.html", error, typed=typed, asked=asked, wait=0)
    return _on(f"/ui/sign-in?login={_quoted(typed['email'])}&after=reset")


def _on(where: str) -> Response:
    """To the next form: in the dialog it takes the place of this one."""
    return make_response(redirect(where, 303)) if is_part() else go(where)


def _quoted(text: str) -> str:
    return quote(text, safe="")

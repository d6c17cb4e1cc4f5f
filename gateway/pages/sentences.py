"""What operations say in English and pages in the reader's language. {} stands for what is put there.

A sentence that is neither here nor in `gateway.pages.model_sentences` is shown as it is.
"""

import functools
import itertools
import re

from babel import Locale
from flask_babel import get_locale, gettext

from gateway.pages import model_sentences
from gateway.pages.model_sentences import later

_ENGLISH = Locale("en")

KNOWN = (
    # what the demonstration models say of themselves
    later("A small dialogue in English and Chinese: the nearest known question's answer, word by word"),
    later("EfficientNet-Lite0: says which of 1,000 ImageNet classes a picture shows"),
    later("a version of its model is not kept any more"),
    later("an account with this address exists"),
    later("answered {}"),
    later("batch {}: you may see it, and not do this"),
    later("choose at least one"),
    later("current_password: it is wrong"),
    later("deployment {} has neither a canary nor an earlier version"),
    later("deployment {} has no canary"),
    later("deployment {}: you may see it, and not do this"),
    later("has {} entries, it must have {} to {}"),
    later("holds a character that no address has; encode it"),
    later("input {} has a cell {}, which is neither a number nor JSON"),
    later("is missing"),
    later("is missing: no account is made without one here"),
    later("is missing: visibility team needs one"),
    later("is no day"),
    later("is not a day"),
    later("is not a size such as {} GB"),
    later("is not a whole number"),
    later("is not an address"),
    later("is not an e-mail address"),
    later("is not right, was used or tried too often, or has expired"),
    later("is not the name of this account"),
    later("is not the same password"),
    later("is not valid Unicode text"),
    later("is taken"),
    later("is {}, above max_instances, which is {}"),
    later("is {}, which is the version that serves"),
    later("it is not valid, was used already, or has expired"),
    later("it is wrong"),
    later("it waited in the queue for more than {} s"),
    later("it would reserve {} core and {} GiB of memory, and the model host has {} core and {} GiB of memory free"),
    later("it would reserve {} core and {} GiB of memory, and the model host has {} cores and {} GiB of memory free"),
    later("it would reserve {} cores and {} GiB of memory, and a model host has {} cores and {} GiB of memory free"),
    later("it would reserve {} cores and {} GiB of memory, and the model host has {} core and {} GiB of memory free"),
    later("it would reserve {} cores and {} GiB of memory, and the model host has {} cores and {} GiB of memory free"),
    later("its owner's account is closed"),
    later("model {} does not have a version"),
    later("model {} does not have version {}"),
    later("model {} has no input {}; its inputs are {}"),
    later("model {}: you may see it, and not do this"),
    later("must be a number from {} to {}"),
    later("must be a number of MiB from {} to {}"),
    later("must be a number of minutes from {} to {}"),
    later("must be a whole number from {} to {}"),
    later("must be one of private, team, public"),
    later("must be there: no account is without one here"),
    later("must be {} to {} days"),
    later("must begin with https:// or http:// and name a host"),
    later("must have 1 to 64 letters, digits, _ or -, and begin with a letter or digit"),
    later("must have at most {} characters"),
    later("must have no fragment"),
    later("must have {} to {} characters"),
    later("must have {} to {} characters, not {}"),
    later("must hold no user and password"),
    later("must lead to the public internet"),
    later("no answer within {} s"),
    later("only a task that has failed, expired or was cancelled can be tried again; this one is queued"),
    later("only a task that has failed, expired or was cancelled can be tried again; this one is running"),
    later("only a task that has failed, expired or was cancelled can be tried again; this one is succeeded"),
    later("output {} has shape {}, and had {}"),
    later("registration is closed here: a new account needs a sign-up token"),
    later("requests are run one by one: the first dimension is not open on every input and output"),
    later("sign in to see this page"),
    later("size: {} bytes are more than the {} that a file may have"),
    later("task {}: you may see it, and not do this"),
    later("team {} would be left without an owner: make another one first"),
    later("team {}: only its owners may do this"),
    later("the OpenID provider cannot be used: it cannot be reached, or does not answer as it should"),
    later("the OpenID provider cannot be used: it takes long to answer"),
    later("the account does not exist any more"),
    later("the account is disabled: ask an administrator"),
    later("the answer is another provider's"),
    later("the e-mail address has to be confirmed first, by the code that was sent to it"),
    later("the file has no rows"),
    later("the last administrator cannot be changed so: make another one first"),
    later("the last administrator cannot be deleted: make another one first"),
    later("the letter was sent, or is too old to be of use: have another one made"),
    later("the operators have a model {}"),
    later("the page is too old, or was made for somebody else: load it again"),
    later("the provider does not take the code"),
    later("the provider said {}"),
    later("the queue is full: {} tasks wait and run"),
    later("the result is not kept any more"),
    later("the row has {} cells, there are {} columns"),
    later("the sign-in was not begun in this browser, has ended, or took too long: begin again"),
    later("the task has ended already: it is failed"),
    later("the task has ended already: it is succeeded"),
    later("the task is queued: cancel it first"),
    later("the task is running: cancel it first"),
    later("the task's input is not kept any more"),
    later("the team name {} is taken"),
    later("the username or the password is wrong"),
    later("the webhook is turned off: turn it on first"),
    later("the webhook was turned off"),
    later("the webhook was turned off: its receiver fails"),
    later("there are {} API keys already: revoke one first"),
    later("there are {} deployments, {} are allowed for each user"),
    later("there is a deployment {}"),
    later("there is a model {}"),
    later("there is no OpenID provider to sign in at"),
    later("there is no batch {}"),
    later("there is no deployment {}"),
    later("there is no golden request {}"),
    later("there is no model {}"),
    later("there is no output {} any more"),
    later("there is no such account"),
    later("there is no task {}"),
    later("there is no team {}"),
    later("there is no user {}"),
    later("there is nothing at this address"),
    later("this page is for administrators"),
    later("this page is for operators"),
    later("this would be more than the {} bytes of models that are allowed for each user"),
    later("this would be more than the {} models that are allowed for each user"),
    later("too many attempts"),
    later("too many requests of this kind (deployments)"),
    later("too many requests of this kind (keys)"),
    later("too many requests of this kind (scripts)"),
    later("too many requests of this kind (teams)"),
    later("you have made {} teams that are still there: delete one first"),
    later("you have {} webhooks already"),
    later("your deployments that are to run would have {} instances, {} are allowed for each user"),
    later("your queue is full: you have {} tasks that have not ended"),
    later("your quota of {} bytes of models does not allow {} more: you have {}"),
    later("{} is no member of team {}"),
    later("{} is no team that you are an owner or editor of"),
    later("{} is taken"),
)
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")
_PLACE = re.compile(r"(?:(?<=\bmodel )|(?<=\bversion )|(?<=\bdeployment )|(?<=\bfile )|(?<=\binput )|(?<=\boutput ))\{\}")
"""Of a name, which is quoted, or one word."""
_DEEPEST = 4
"""Sentences inside each other."""
_LONGEST = 800
"""Characters of one that is looked for at all."""


def said(text: str) -> str:
    """A sentence that an operation or a model host said, in the reader's language where that has it; of one inside another, what is known."""
    locale = get_locale()
    if not text or len(text) > _LONGEST or locale in (None, _ENGLISH):
        return text
    return _said(text, str(locale))


@functools.lru_cache(1024)
def _said(text: str, language: str) -> str:
    """In this context's language, which is that one."""
    found = str(gettext(text))
    return found if found != text else _known(text, _DEEPEST)


def _known(text: str, deepest: int) -> str:
    key = _VALUE.sub("{}", text)
    for sentence, values in ((text, []), (key, _VALUE.findall(text))):
        if sentence in _sentences() and sentence.count("{}") == len(values):
            return _filled(sentence, values)
    if not deepest:
        return text
    for sentence, pattern in _patterns():
        if match := pattern.fullmatch(text):
            values = list(match.groups())
            own = len(values) - (sentence in model_sentences.QUOTING)
            return _filled(sentence, [*(_known(value, deepest - 1) for value in values[:own]), *values[own:]])
    whose, colon, what = text.partition(": ")
    found = _known(what, deepest - 1) if colon else what
    return _filled("{}: {}", [whose, found]) if found != what else text


def _filled(sentence: str, values: list[str]) -> str:
    """A known sentence with its values, which may hold braces."""
    pieces = str(gettext(sentence)).split("{}")
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces, values, fillvalue="")))


@functools.cache
def _sentences() -> frozenset[str]:
    return frozenset((*KNOWN, *model_sentences.KNOWN, *model_sentences.QUOTING))


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Of the model hosts' sentences with places, the one that says most first: of two that fit, it is the one that was meant."""
    places = [sentence for sentence in (*model_sentences.KNOWN, *model_sentences.QUOTING) if "{}" in sentence and sentence != "{}: {}"]
    places.sort(key=lambda sentence: -len(sentence.replace("{}", "")))
    return [(sentence, _pattern(sentence)) for sentence in places]


def _pattern(sentence: str) -> re.Pattern[str]:
    named = _PLACE.sub("\0", sentence)
    escaped = re.escape(named).replace(re.escape("{}"), "(.+?)").replace(re.escape("\0"), r"('[^']*'|\"[^\"]*\"|\S+?)")
    return re.compile(re.sub(r"\(\.\+\?\)$", "(.*)", escaped), re.DOTALL)

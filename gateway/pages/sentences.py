"""What operations say in English and pages in the reader's language. {} stands for a number or for something in quotes.

A sentence that is not here is shown as it is: tests/pages/test_languages.py lists those of accounts, which everybody meets.
"""

import re

from flask_babel import gettext
from flask_babel import lazy_gettext as later

KNOWN = (
    later("an account with this address exists"),
    later("answered {}"),
    later("choose at least one"),
    later("current_password: it is wrong"),
    later("has {} entries, it must have {} to {}"),
    later("holds a character that no address has; encode it"),
    later("is missing"),
    later("is missing: no account is made without one here"),
    later("is missing: visibility team needs one"),
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
    later("it is not valid, was used already, or has expired"),
    later("it is wrong"),
    later("model {}: you may see it, and not do this"),
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
    later("registration is closed here: a new account needs a sign-up token"),
    later("sign in to see this page"),
    later("size: {} bytes are more than the {} that a file may have"),
    later("team {} would be left without an owner: make another one first"),
    later("team {}: only its owners may do this"),
    later("the OpenID provider cannot be used: it cannot be reached, or does not answer as it should"),
    later("the OpenID provider cannot be used: it takes long to answer"),
    later("the account does not exist any more"),
    later("the account is disabled: ask an administrator"),
    later("the answer is another provider's"),
    later("the e-mail address has to be confirmed first, by the code that was sent to it"),
    later("the last administrator cannot be changed so: make another one first"),
    later("the last administrator cannot be deleted: make another one first"),
    later("the letter was sent, or is too old to be of use: have another one made"),
    later("the page is too old, or was made for somebody else: load it again"),
    later("the provider does not take the code"),
    later("the provider said {}"),
    later("the sign-in was not begun in this browser, has ended, or took too long: begin again"),
    later("the team name {} is taken"),
    later("the username or the password is wrong"),
    later("the webhook is turned off: turn it on first"),
    later("the webhook was turned off"),
    later("the webhook was turned off: its receiver fails"),
    later("there are {} API keys already: revoke one first"),
    later("there is a model {}"),
    later("there is no OpenID provider to sign in at"),
    later("there is no model {}"),
    later("there is no such account"),
    later("there is no team {}"),
    later("there is no user {}"),
    later("there is nothing at this address"),
    later("this page is for administrators"),
    later("this page is for operators"),
    later("this would be more than the {} bytes of models that are allowed for each user"),
    later("this would be more than the {} models that are allowed for each user"),
    later("too many attempts"),
    later("you have made {} teams that are still there: delete one first"),
    later("you have {} webhooks already"),
    later("your quota of {} bytes of models does not allow {} more: you have {}"),
    later("{} is no member of team {}"),
    later("{} is no team that you are an owner or editor of"),
    later("is {}, above max_instances, which is {}"),
    later("must be a whole number from {} to {}"),
    later("must be a number from {} to {}"),
    later("must be a number of MiB from {} to {}"),
    later("must be a number of minutes from {} to {}"),
    later("there is a deployment {}"),
    later("model {} does not have version {}"),
    later("model {} does not have a version"),
    later("it would reserve {} cores and {} GiB of memory, and the model host has {} cores and {} GiB of memory free"),
    later("it would reserve {} core and {} GiB of memory, and the model host has {} cores and {} GiB of memory free"),
    later("it would reserve {} cores and {} GiB of memory, and the model host has {} core and {} GiB of memory free"),
    later("it would reserve {} core and {} GiB of memory, and the model host has {} core and {} GiB of memory free"),
    later("it would reserve {} cores and {} GiB of memory, and a model host has {} cores and {} GiB of memory free"),
    later("there are {} deployments, {} are allowed for each user"),
    later("your deployments that are to run would have {} instances, {} are allowed for each user"),
    later("deployment {} has no canary"),
    later("deployment {} has neither a canary nor an earlier version"),
    later("there is no golden request {}"),
    later("there is no deployment {}"),
    later("deployment {}: you may see it, and not do this"),
    later("is {}, which is the version that serves"),
    later("its owner's account is closed"),
    later("output {} has shape {}, and had {}"),
    later("there is no output {} any more"),
    later("a version of its model is not kept any more"),
    later("the operators have a model {}"),
    later("{} is taken"),
)
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")


def said(text: str) -> str:
    """A sentence that an operation said, in the reader's language where that has it."""
    if not text:
        return ""
    for key in (text, _VALUE.sub("{}", text)):
        found = str(gettext(key))
        if found != key:
            values = _VALUE.findall(text) if key != text else []
            return found.format(*values) if values else found
    return text

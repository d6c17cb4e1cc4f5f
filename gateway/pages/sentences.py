"""What operations say in English and pages in the reader's language. {} stands for a number or for something in quotes.

A sentence that is not here is shown as it is: tests/pages/test_languages.py lists those of accounts, which everybody meets.
"""

import re

from flask_babel import gettext
from flask_babel import lazy_gettext as later

KNOWN = (
    later("current_password: it is wrong"),
    later("is missing"),
    later("is missing: no account is made without one here"),
    later("is not an e-mail address"),
    later("is not right, was used or tried too often, or has expired"),
    later("is not the same password"),
    later("is not valid Unicode text"),
    later("is taken"),
    later("must be there: no account is without one here"),
    later("must have 1 to 64 letters, digits, _ or -, and begin with a letter or digit"),
    later("must have {} to {} characters, not {}"),
    later("registration is closed here: a new account needs a sign-up token"),
    later("sign in to see this page"),
    later("the account does not exist any more"),
    later("the account is disabled: ask an administrator"),
    later("the e-mail address has to be confirmed first, by the code that was sent to it"),
    later("the page is too old, or was made for somebody else: load it again"),
    later("the username or the password is wrong"),
    later("there is nothing at this address"),
    later("this page is for administrators"),
    later("this page is for operators"),
    later("too many attempts"),
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

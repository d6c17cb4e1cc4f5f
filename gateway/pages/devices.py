"""What a browser calls itself, in words."""

_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("Vivaldi", "Vivaldi"),
    ("SamsungBrowser", "Samsung Internet"),
    ("MicroMessenger", "WeChat"),
    ("QQBrowser", "QQ Browser"),
    ("Firefox", "Firefox"),
    ("FxiOS", "Firefox"),
    ("CriOS", "Chrome"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
    ("curl", "curl"),
)
"""In this order: most of them also call themselves by the names of others."""
_SYSTEMS = (
    ("HarmonyOS", "HarmonyOS"),
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)
_IN_HAND = ("Android", "iPhone", "HarmonyOS")


def browser(agent: str) -> str:
    """Such as Firefox; "" for one that nobody here knows."""
    return next((name for sign, name in _BROWSERS if sign in agent), "")


def system(agent: str) -> str:
    """Such as Linux; "" the same."""
    return next((name for sign, name in _SYSTEMS if sign in agent), "")


def is_in_hand(agent: str) -> bool:
    return system(agent) in _IN_HAND

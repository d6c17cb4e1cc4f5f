"""`python -m gateway`: the gateway under uWSGI, configured by OUTBOARD_GATEWAY_... (see docs/configuration.md)."""

import argparse
import os
import sys
from collections.abc import Sequence

from gateway import launch, log
from gateway.settings import Settings, SettingsError
from idl.codes import ServingError


def main(argv: Sequence[str] | None = None) -> int:
    """Replaces this process by uWSGI. Returns an exit status only where that fails: 2 for a wrong setting, 1 for anything else."""
    parser = argparse.ArgumentParser(
        prog="outboard gateway", description="The web side, under uWSGI; settings are OUTBOARD_GATEWAY_... variables."
    )
    parser.add_argument("--check", action="store_true", help="read the settings and prepare the data folder, then end")
    options = parser.parse_args(argv)
    try:
        settings = Settings.from_env(os.environ)
        log.configure(settings.log_level)
        launch.prepare(settings)
        if options.check:
            return 0
        launch.run(settings)
    except SettingsError as error:
        print(f"outboard: {error}", file=sys.stderr)
        return 2
    except (ServingError, launch.AlreadyRunning, OSError) as error:
        print(f"outboard: the gateway cannot start: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The app process of a device: it runs the fedrecall that is installed here, whatever app the server's run names.

Flower would install and import the app bundle that comes with a run. Code that a server sends could read the events
and answer with them, and no ledger would know. So bundles are neither installed nor looked at.
"""

from collections.abc import Callable

from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from fedrecall.client.device.app import app
from fedrecall.protocol.errors import FedrecallError


def main() -> None:
    """Do what Flower's ``flwr-clientapp`` does, with this device's own app.

    Raises:
        FedrecallError: this version of Flower loads apps in another way; the device then answers nothing.
    """
    try:
        _ = run_clientapp.install_from_fab, run_clientapp.get_load_client_app_fn  # type: ignore[attr-defined]
    except AttributeError as error:
        raise FedrecallError(f"{error}: install a version of Flower that fedrecall supports") from error
    run_clientapp.install_from_fab = _ignore  # type: ignore[attr-defined, assignment]
    run_clientapp.get_load_client_app_fn = _own  # type: ignore[attr-defined]
    flwr_clientapp()


def _ignore(*_: object, **__: object) -> None:
    """Install nothing."""


def _own(*_: object, **__: object) -> Callable[..., ClientApp]:
    """Load the same app for every run."""
    return lambda *_, **__: app


if __name__ == "__main__":
    main()
